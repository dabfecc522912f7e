"""Uploads a run as a data set of the Hugging Face Hub, in one commit."""

import io
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ld3m.errors import UserError, one_line
from ld3m.files import write_bytes, write_json, write_text
from ld3m.machine.hub import asking, explained, is_of_the_network, patiently, status_of
from ld3m.publishing import card
from ld3m.publishing.options import Destination
from ld3m.runs import labels
from ld3m.runs.download import COPIED
from ld3m.runs.folder import has_result, image_paths, load_recipe
from ld3m.runs.result import read_image

SHARD_BYTES = 500_000_000
"""Images in one Parquet file, roughly."""


def push(folder: Path, destination: Destination, dry_run: bool = False) -> None:
    """Creates or updates a data set of the Hub: images, latents, recipe, figures and card of a run, in one commit.

    A repository holds a config for each number of images per class and resolution; other configs stay. Files that are
    already there are not sent again, and nothing is visible until all of it is.

    Args:
        dry_run: writes to the run's folder hub/ what would be sent, and makes no request.

    Raises:
        UserError: if the run is not finished, without a login or permission, if the name is taken, or if the Hub cannot
            be reached.
    """
    if not has_result(folder):
        raise UserError(f"RUN: {folder} has no latents; only what ld3m distill made can be pushed")
    recipe = load_recipe(folder)
    wanted = destination.to or recipe.hub.repo_id or f"ld3m-{recipe.name}"
    _check_name(wanted, "hub.repo_id" if wanted == recipe.hub.repo_id else "--to")
    with tempfile.TemporaryDirectory() as temporary:
        staged = folder / "hub" if dry_run else Path(temporary)
        shutil.rmtree(staged, ignore_errors=True)
        section = card.Section.of(folder)
        _stage(folder, section, staged)
        if dry_run:
            repo = wanted if "/" in wanted else f"<login>/{wanted}"
            write_text(staged / "README.md", card.merge(None, repo, section))
            _list(staged, repo)
            return
        from huggingface_hub import HfApi

        api = HfApi(token=destination.token, library_name="ld3m", library_version=version("ld3m"))
        try:
            with asking():
                _push(api, staged, section, wanted, destination, destination.private or recipe.hub.private)
        except UserError:
            raise
        except Exception as error:  # the client's own, httpx's and the file system's
            raise _explained(error, wanted, destination.token) from None


def _check_name(repo: str, key: str) -> None:
    """That the Hub allows the name of a data set; it is not asked."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"{key}: {repo!r} is not a valid name; give USER/NAME of letters, digits, -, _ and ., 96 characters at most"
        ) from None


def _push(api: Any, staged: Path, section: card.Section, wanted: str, destination: Destination, private: bool) -> None:
    login = patiently(lambda: api.whoami()["name"])
    repo = wanted if "/" in wanted else f"{login}/{wanted}"
    if not destination.create_pr:
        patiently(lambda: api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True))
        if destination.revision and not destination.revision.startswith("refs/"):  # an open pull request has its own
            patiently(lambda: api.create_branch(repo, repo_type="dataset", branch=destination.revision, exist_ok=True))
    before = patiently(lambda: api.repo_info(repo, repo_type="dataset", revision=destination.revision).sha)
    commit = patiently(lambda: _commit(api, repo, staged, section, destination))
    if commit.oid == before and not destination.create_pr:
        print(f"{commit.repo_url}: nothing changed, nothing was sent")
    else:
        print(f"{commit.pr_url or commit.commit_url}: {section.config}, {section.images} images")
        print(f'load_dataset("{repo}", "{section.config}", split="train")')


def _commit(api: Any, repo: str, staged: Path, section: card.Section, destination: Destination) -> Any:
    """Commits what is staged, and the card as it is now on the Hub with our part replaced."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head = api.repo_info(repo, repo_type="dataset", revision=destination.revision)
    remote = [file.rfilename for file in head.siblings or []]
    old = None
    if "README.md" in remote:
        path = api.hf_hub_download(repo, "README.md", repo_type="dataset", revision=head.sha)
        old = Path(path).read_text(encoding="utf-8")
    if not card.is_ours(old) and (foreign := sorted(set(remote) - {"README.md", ".gitattributes"})):
        raise UserError(f"--to: {repo} holds other files ({foreign[0]}, …) and was not made by ld3m; give another name")
    write_text(staged / "README.md", card.merge(old, repo, section))
    files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
    mine = [path for path in remote if path.startswith(f"{section.config}/")]
    operations: list[Any] = [CommitOperationDelete(path_in_repo=path) for path in mine if path not in files]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    return api.create_commit(
        repo,
        operations,
        commit_message=f"{section.config}: {section.images} images of {len(section.classes)} classes, by ld3m",
        repo_type="dataset",
        revision=destination.revision,
        create_pr=destination.create_pr,
        parent_commit=head.sha,  # a card changed meanwhile is not overwritten: the commit fails, and is tried again
    )


def _stage(folder: Path, section: card.Section, staged: Path) -> None:
    """Writes the files of a run's config, all but the card."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=section.classes)})
    counted = [value for name in section.classes for value in (section.weights or {}).get(name, ())]
    if counted:
        features["weight"] = datasets.Value("float64")
    paths = [(label, path) for label, name in enumerate(section.classes) for path in _checked(folder, name, section)]
    shards = 1 + sum(path.stat().st_size for _, path in paths) // SHARD_BYTES
    for shard in range(shards):
        first, end = (index * len(paths) // shards for index in (shard, shard + 1))
        part = paths[first:end]
        rows: dict[str, Any] = {
            "image": [{"bytes": path.read_bytes(), "path": f"{path.parent.name}-{path.name}"} for _, path in part],
            "label": [label for label, _ in part],
            **({"weight": counted[first:end]} if counted else {}),
        }
        buffer = io.BytesIO()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(buffer)
        write_bytes(staged / section.config / f"train-{shard:05d}-of-{shards:05d}.parquet", buffer.getvalue())
    for name in COPIED:
        if (folder / name).is_file():
            write_bytes(staged / section.config / name, (folder / name).read_bytes())
    for path in labels.paths(folder):
        (target := staged / section.config / labels.FOLDER).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    write_text(staged / section.config / "recipe.yaml", section.recipe_yaml)
    for name, content in (("prior.json", section.prior), ("evaluation.json", section.evaluation)):
        if content:
            write_json(staged / section.config / name, content)
    latents = (folder / "latents.safetensors").read_bytes()
    write_bytes(staged / "latents" / f"{section.config}.safetensors", latents)


def _checked(folder: Path, name: str, section: card.Section) -> list[Path]:
    """The images of a class, once they are as many as they must be and all can be read."""
    recipe, paths = section.recipe, image_paths(folder, name)
    if len(paths) != (each := recipe.distill.images_per_class):
        raise UserError(
            f"RUN: {folder / 'images' / name} has {len(paths)} images, not {each}; ld3m render makes them from the "
            "latents"
        )
    for path in paths:
        read_image(path, recipe.data.channels, recipe.data.resolution)
    return paths


def _list(staged: Path, repo: str) -> None:
    print(f"for https://huggingface.co/datasets/{repo}, written to {staged}:")
    for path in sorted(staged.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>12,}  {path.relative_to(staged).as_posix()}")


# --- what can go wrong -------------------------------------------------------------------------------------


def _explained(error: Exception, repo: str, token: str | None) -> UserError:
    """The error of a client as one line that says what to do."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import LocalTokenNotFoundError

    status, _ = status_of(error)
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and not (token or get_token())):
        return UserError("push-to-hub: you are not logged in; run hf auth login, or set HF_TOKEN")
    if status == 401:
        return UserError("push-to-hub: the Hub does not accept your token; run hf auth login, or set another HF_TOKEN")
    if status == 403:
        return UserError(f"--to: your token may not write to {repo}; give a token with write access, or another name")
    if status == 404:
        return UserError(f"--to: {repo} does not exist, or you may not see it; give another name")
    if status in (409, 412):
        return UserError(f"--to: {repo} is taken, or being changed by somebody else; give another name, or try again")
    if "Invalid metadata" in str(error):
        return UserError(f"hub.licence: the Hub rejects the card ({one_line(error)}); give a licence that it knows")
    if status is not None or is_of_the_network(error):
        return UserError(f"push-to-hub: {explained(error)}; nothing is sent twice")
    message = one_line(error)
    return UserError(f"push-to-hub: {message.replace(token, '…') if token else message}")
