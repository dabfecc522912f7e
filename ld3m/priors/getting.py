"""Known priors brought to this machine: fetched, unpacked, converted, checked, and noted for good.

What is fetched over HTTP lies below `LD3M_CACHE/priors`; a repository of the Hub stays in the Hub's own cache.
"""

import importlib.util
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from ld3m.errors import UserError, blamed_on, one_line
from ld3m.files import ANOTHER_CACHE, cache_key, remove_temporary, writable, write_folder
from ld3m.machine.download import download
from ld3m.machine.environment import without_secrets
from ld3m.machine.lock import hold
from ld3m.priors import stored
from ld3m.priors.diffusers_layout import files_of, read_index, weighty_files
from ld3m.priors.file_kinds import READABLE, kind_of
from ld3m.priors.hub_folder import HubFolder, snapshot
from ld3m.priors.known import KNOWN, KnownPrior, find

CHECKPOINTS = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
"""How files of weights end."""
MIRROR = "LD3M_PRIORS_FROM"
"""The environment variable of a mirror."""
Maker = Callable[[Path], None]
"""Writes a prior's folder."""


def get(name: str, origin: str | None = None, again: bool = False, key: str = "prior.source") -> Path:
    """The folder of a known prior, which is fetched unless it is on this machine; then no network is asked.

    One process fetches; those beside it wait, and find what it brought.

    Args:
        origin: where to take it from instead of its own origin, or of `mirrored`: a checkpoint of the original code, a
            zip archive with one, a folder in diffusers' layout, the URL of one of these files, or `hub:<id>`.

    Raises:
        UserError: if it is unknown, cannot be fetched, or is another model or damaged.
    """
    known = find(name, key)
    if not known.origin:
        if origin is not None:
            raise UserError(f"--from: {name} comes with the package; leave the option out")
        return known.outline
    if not again and (folder := stored.here(name)):
        return folder
    shelf = writable(stored.shelf(), ANOTHER_CACHE)
    with hold(shelf / f"{name}.lock", doing=f"gets the prior {name}"):
        if not again and (folder := stored.here(name)):
            return folder
        if origin is not None:
            return _Getting(name, known, origin, again, "--from").run()
        mirror = mirrored(known.origin)
        return _Getting(name, known, mirror or known.origin, again, MIRROR if mirror else key).run()


def mirrored(origin: str) -> str | None:
    """The file of an origin's URL in the folder or at the URL that LD3M_PRIORS_FROM names; None without one.

    The Hub's repositories have their own: HF_ENDPOINT.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror or HubFolder.of(origin):
        return None
    return f"{mirror.rstrip('/')}/{PurePosixPath(urlsplit(origin).path).name}"


class _Getting:
    """A prior's way into the cache, on the process that holds its lock."""

    def __init__(self, name: str, known: KnownPrior, origin: str, again: bool, key: str) -> None:
        self.name, self.known, self.origin, self.again, self.key = name, known, origin, again, key
        self.work = stored.shelf() / f"{name}.part"
        """Where it is made; a file that a killed process fetched in part stays there."""
        self.is_url = origin.startswith(("http://", "https://"))

    def run(self) -> Path:
        """Brings the prior here and notes it."""
        if self.known.kind == "StableDiffusionPipeline" and not importlib.util.find_spec("transformers"):
            raise UserError(f"{self.key}: {self.name} needs the package transformers: pip install 'ld3m[text]'")
        remove_temporary(self.work)
        hub = HubFolder.of(self.origin)
        folder = self._from_hub(hub) if hub else self._own(self._maker())
        stored.write_note(self.name, folder, without_secrets(self.origin), weighty_files(folder))
        shutil.rmtree(self.work, ignore_errors=True)
        return folder

    def _own(self, make: Maker) -> Path:
        """The prior's folder of ours, made in one step and in the place of an older one."""
        folder, made = stored.shelf() / self.name, self.work / "prior"
        shutil.rmtree(made, ignore_errors=True)
        write_folder(made, make)
        for path in made.rglob("*.*"):  # libraries write files that only the user can read
            path.chmod((made / "model_index.json").stat().st_mode)
        stored.note_path(self.name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        return folder

    # --- where from ----------------------------------------------------------------------------------------

    def _from_hub(self, hub: HubFolder) -> Path:
        if not constants.HF_HUB_OFFLINE:
            size = f"about {self.known.size / 1e9:.1f} GB from " if self.origin == self.known.origin else ""
            where = f"{self.origin} {self._terms()} to {constants.HF_HUB_CACHE}"
            print(f"ld3m: {self.name}: fetching {size}{where}", file=sys.stderr, flush=True)
        try:
            folder = snapshot(hub, self.again)
        except UserError as error:
            if constants.HF_HUB_OFFLINE:
                raise self._offline() from None
            reason, _, advice = str(error).removeprefix("prior.source: ").partition("; ")
            if self.origin == self.known.origin:
                advice = self._way_on()
            raise UserError(f"{self.key}: {self.name}: {reason}; {advice or 'give another'}") from None
        self._check(folder)
        return folder

    def _maker(self) -> Maker:
        """What writes the prior's folder from a URL, a file or a folder."""
        if self.is_url:
            return self._from_file(self._fetch())
        try:
            path = Path(self.origin).expanduser()
            if self.origin and path.is_dir():
                return self._from_folder(path)
            if path.is_file():
                return self._from_file(path)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError of a home folder that is not there
            raise UserError(f"{self.key}: cannot read {self.origin} ({one_line(error)}); give another") from None
        raise UserError(
            f"{self.key}: {self.origin!r} is not there; give a checkpoint, a zip archive with one, a folder in "
            "diffusers' layout, the URL of a file, or hub:<id>"
        )

    def _fetch(self) -> Path:
        """The file of a URL, in the folder of work."""
        if constants.HF_HUB_OFFLINE:
            raise self._offline()
        folder = self.work / cache_key(self.origin)  # another's file of the same name is another file
        path = folder / (PurePosixPath(urlsplit(self.origin).path).name or "prior")
        if self.again:  # what is there in part is compared with what the server has
            path.unlink(missing_ok=True)
        self._check_room(2 * self.known.size - sum(each.stat().st_size for each in folder.glob("*")))
        with blamed_on(self.key):
            download(self.origin, path, what=self.name, advice=self._way_on(), terms=self._terms())
        kind = kind_of(path)
        if kind not in READABLE and not zipfile.is_zipfile(path):
            path.unlink()
            raise UserError(f"{self.key}: {without_secrets(self.origin)} gives a file that is {kind}; {self._way_on()}")
        return path

    def _from_folder(self, folder: Path) -> Maker:
        """A folder in diffusers' layout, at whatever depth, or one that holds a checkpoint."""
        priors = sorted(path.parent for path in folder.rglob("model_index.json"))
        if not priors:
            files = [path for path in folder.iterdir() if path.suffix in CHECKPOINTS]
            if len(files) == 1:
                return self._from_file(files[0])
        if len(priors) != 1:
            found = f"{len(priors)} folders with one" if priors else "none, nor a single checkpoint"
            raise UserError(f"{self.key}: {folder}: a prior's folder has a model_index.json, and there are {found}")
        self._check_room(sum((priors[0] / name).stat().st_size for name in files_of(priors[0])))
        self._check(priors[0])

        def copy(target: Path) -> None:
            for name in files_of(priors[0]):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(priors[0] / name, target / name)

        return copy

    def _from_file(self, path: Path) -> Maker:
        """A checkpoint, or a zip archive of a checkpoint or of a folder in diffusers' layout."""
        if kind_of(path) not in READABLE and zipfile.is_zipfile(path):
            unpacked = self._unpack(path)
            return self._from_folder(unpacked) if unpacked.is_dir() else self._from_file(unpacked)
        self._check_room(4 * sum(self.known.parameters))
        return lambda folder: self._convert(path, folder)

    def _unpack(self, path: Path) -> Path:
        """The checkpoint in a zip archive, or the folder of all of it if it is one in diffusers' layout."""
        target = self.work / "unpacked"
        shutil.rmtree(target, ignore_errors=True)
        try:
            with zipfile.ZipFile(path) as archive:
                names = [each for each in archive.namelist() if not PurePosixPath(each).name.startswith("._")]
                chosen = [each for each in names if each.endswith(CHECKPOINTS)]
                whole = any(PurePosixPath(each).name == "model_index.json" for each in names)
                if not whole and len(chosen) != 1:
                    raise UserError(f"{self.key}: {path} holds {len(chosen)} checkpoints; give one")
                members = names if whole else chosen
                self._check_room(sum(archive.getinfo(each).file_size for each in members))
                paths = [Path(archive.extract(each, target)) for each in members]
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.key}: {path} is a damaged zip archive ({one_line(error)}); get it again") from None
        except OSError as error:
            raise UserError(
                f"{self.key}: cannot unpack {path} into {target} ({error.strerror or one_line(error)}); {ANOTHER_CACHE}"
            ) from None
        if self.is_url:
            path.unlink()
        return target if whole else paths[0]

    # --- what it is ----------------------------------------------------------------------------------------

    def _convert(self, checkpoint: Path, folder: Path) -> None:
        """The prior of a checkpoint; every tensor finds its place, or the error names one that does not."""
        from ld3m.priors.originals.convert import convert

        try:
            convert(checkpoint, folder, **self._options(checkpoint))
        except UserError as error:
            again = f"fetch it again: ld3m priors get {self.name} --again"
            reason = str(error).removeprefix(f"{checkpoint}: ")
            raise UserError(
                f"{self.key}: {checkpoint} is no checkpoint of {self.name}: {reason}; "
                f"{again if self.is_url else f'the original is {self.known.origin}'}"
            ) from None
        if not self.known.original:
            self._check(folder)

    def _options(self, checkpoint: Path) -> dict[str, Any]:
        """What `convert` must be told of a checkpoint.

        Raises:
            UserError: if it is a single file of another kind.
        """
        from ld3m.priors.checkpoints import read_checkpoint
        from ld3m.priors.originals import dit, stable_diffusion

        if self.known.original:
            return {"kind": self.known.original}
        weights = read_checkpoint(checkpoint).weights
        if self.known.kind == "DiTPipeline" and dit.TABLE in weights:
            return {"vae": dit.VAE}
        if self.known.kind == "StableDiffusionPipeline" and stable_diffusion.is_one(weights):
            return {"config": self.known.origin}
        raise UserError(f"it has none of the tensors of a {self.known.kind}")

    def _check(self, folder: Path) -> None:
        """That a folder in diffusers' layout is the prior of the name, and whole: all of it is loaded once.

        Raises:
            UserError: naming what differs.
        """
        from ld3m import priors
        from ld3m.priors.loading import Parts
        from ld3m.recipe import SamplerRecipe

        settings = SamplerRecipe(source=str(folder), guidance=1, scaling_factor=self.known.scaling_factor)
        if (kind := read_index(folder).kind) != self.known.kind:
            raise UserError(f"{self.key}: {folder} is a {kind}, but {self.name} is a {self.known.kind}; give another")
        with blamed_on(self.key):
            priors.load(settings)
        found, expected = (_shapes(Parts(each, "cpu", settings)) for each in (folder, self.known.outline))
        if different := next((name for name in expected if found.get(name) != expected[name]), None):
            raise UserError(
                f"{self.key}: {folder} is not {self.name}: its {different} is {found.get(different)}, not "
                f"{expected[different]}; give another"
            )

    # --- what is said --------------------------------------------------------------------------------------

    def _terms(self) -> str:
        commerce = ", which forbids commercial use," if self.known.forbids_commerce else ""
        return f"under {self.known.licence_name}{commerce}"

    def _offline(self) -> UserError:
        return UserError(f"{self.key}: {self.name} is not on this machine, and HF_HUB_OFFLINE is set; {self._way_on()}")

    def _way_on(self) -> str:
        """The two commands that bring a prior to a machine without a network."""
        elsewhere, given = f"ld3m priors get {self.name}, which names a FOLDER", "FOLDER"
        if self.known.origin and self.known.origin.startswith("http"):
            given = PurePosixPath(self.known.origin).name
            elsewhere = f"curl -LO {self.known.origin}"
        return f"on a machine with a network: {elsewhere}; then here: ld3m priors get {self.name} --from {given}"

    def _check_room(self, needed: int) -> None:
        """Raises a UserError if so many bytes do not fit beside what is there."""
        shelf = stored.shelf()
        if needed > (free := shutil.disk_usage(shelf).free):
            raise UserError(
                f"{self.key}: {self.name} takes {needed / 1e9:.1f} GB of disk while it is made, and {free / 1e9:.1f} "
                f"are free in {shelf}; set LD3M_CACHE to a larger disk"
            )


def _shapes(parts: Any) -> dict[str, Any]:
    """The size of images of a prior's configurations, and the shapes of the weights that they ask for."""
    import diffusers

    networks = {"autoencoder": parts.outline(*parts.autoencoder_kind())}
    for part in ("unet", "transformer"):
        if (parts.folder / part).is_dir():
            kind = parts.json(f"{part}/config.json", dict[str, Any])["_class_name"]
            networks["denoiser"] = parts.outline(getattr(diffusers, kind), part)
    shapes: dict[str, Any] = {"size of latents": networks["denoiser"].config.sample_size}
    for name, network in networks.items():
        shapes |= {f"{name}'s {key}": tuple(value.shape) for key, value in network.state_dict().items()}
    return shapes


def listing() -> str:
    """The known priors in a table: what each is, where it is if it is here, its size and licence."""
    rows = []
    for name, known in KNOWN.items():
        size = f"{known.size / 1e9:.1f} GB" if known.origin else ""
        licence = known.licence_name + ", non-commercial" * known.forbids_commerce
        rows.append((name, known.about, f"{known.resolution} px", size, licence, _where(name, known)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    remarks = [f"{name}: {known.remark}" for name, known in KNOWN.items() if known.remark]
    settings = [f"{name}: {known.settings}" for name, known in KNOWN.items() if known.settings]
    return "\n".join([*lines, "", "Settings:", *settings, "", "Remarks:", *remarks])


def _where(name: str, known: KnownPrior) -> str:
    """Where a prior is, or that it is not here."""
    if not known.origin:
        return "in the package"
    try:
        folder = stored.here(name)
    except UserError:
        return f"damaged; ld3m priors get {name} --again"
    return str(folder) if folder else "not here"
