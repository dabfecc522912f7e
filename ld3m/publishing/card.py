"""The card of a data set on the Hub: what it is, how good, how to use it, how it was made, under which licence."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ld3m import markdown
from ld3m.data.known import imagenet
from ld3m.errors import UserError
from ld3m.evaluation import rows
from ld3m.evaluation.blocks import Block, Line, blocks
from ld3m.evaluation.protocols.details import ALWAYS
from ld3m.evaluation.tables import accuracy_text, training_text
from ld3m.files import ASSETS
from ld3m.priors.source import PACKAGED_PRIORS
from ld3m.publishing import front_matter
from ld3m.publishing.front_matter import NON_COMMERCIAL, WITHOUT_HUB_ID
from ld3m.recipe import Recipe
from ld3m.runs import labels, sources
from ld3m.runs import weights as image_weights
from ld3m.runs.folder import Metadata, load_recipe, metadata
from ld3m.runs.training_set import stored_digest

TEMPLATES = ASSETS / "card"
ON_THE_HUB = {
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "fashion-mnist-small": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
}
"""Data sources known by name, as the Hub has them."""
ID_ON_THE_HUB = re.compile(r"(\w[\w.-]*(?:/[\w.-]+)?)(?:[:@]|$)")
"""The name of a data set, before its config and revision."""
LICENCES = {
    "digits": "cc-by-4.0",
    "fashion-mnist": "mit",
    "fashion-mnist-small": "mit",
    "imagenet": "imagenet-terms-of-access",
}
"""Licences of the real images, for data sources known by name."""
UNPACK = "\ninputs, targets = formation.shown(inputs, targets, {factor})"
"""The line of the card's program that cuts each image into the `factor`² that it holds."""
WEIGHTS = '\nweights = torch.stack([*images["weight"]]){each}'
"""Its line that reads how much each image counts."""
PATH_KEYS = ("source", "root", "init", "folder")
"""Keys of recipe.yaml, prior.json and evaluation.json whose values may be folders of this machine."""


@dataclass(frozen=True)
class Section:
    """What the card says about one config, which is a finished run."""

    config: str
    """Its name, `ipc<images per class>-<resolution>px`, or `ipc1-factor2-32px` if each image holds several."""
    classes: list[str]
    images: int
    recipe: Recipe
    prior: dict[str, Any]
    evaluation: dict[str, Any]
    metadata: Metadata
    soft_labels: labels.Note | None = None
    """Of the soft labels that are stored with it."""
    weights: image_weights.Weights | None = None
    """Of its images, if they do not all count the same."""

    @classmethod
    def of(cls, folder: Path) -> "Section":
        """Reads it from a run's folder."""
        recipe, about = load_recipe(folder), metadata(folder)
        each, factor = recipe.distill.images_per_class, recipe.distill.factor
        suffix = f"-factor{factor}" if factor > 1 else ""
        return cls(
            config=f"ipc{each}{suffix}-{recipe.data.resolution}px",
            classes=about.classes,
            images=len(about.classes) * each,
            recipe=recipe,
            prior=without_folders(dict(sources.read_prior(folder) or {})),
            evaluation=without_folders(rows.read(folder)),
            metadata=about,
            soft_labels=_labels(folder),
            weights=image_weights.of_run(folder, about.classes),
        )

    @property
    def recipe_yaml(self) -> str:
        """The resolved recipe without paths of the machine it ran on, which nobody else has nor should see."""
        content = self.recipe.model_dump(mode="json")
        content["output"] = None
        return yaml.safe_dump(without_folders(content), sort_keys=False, allow_unicode=True)

    @property
    def has_prior(self) -> bool:
        """Whether a prior had a part."""
        return self.recipe.prior.source != "pixels"

    @property
    def licences(self) -> list[str]:
        """Licences of the result: the recipe's, or those of the real images and the prior, as far as known."""
        if self.recipe.hub.licence:
            return [self.recipe.hub.licence]
        known = (LICENCES.get(self.recipe.data.source), self.prior.get("licence"))
        return list(dict.fromkeys(licence for licence in known if licence))


def is_ours(text: str | None) -> bool:
    """Whether a card was written by `merge`."""
    return text is not None and "<!-- ld3m:" in text


def merge(old: str | None, repo: str, section: Section) -> str:
    """The card with one config's part replaced and all else kept: other configs, and what people wrote.

    Args:
        old: the card as it is now, if there is one.
        repo: `user/name`.
    """
    meta, text = front_matter.split(old or "")
    name = _without_folders(section.recipe.data.source).removeprefix("hub:").rpartition("/")[2]
    title = str(meta.get("pretty_name") or f"{name}, distilled")
    for name, content in (
        ("about", _fill("about", title=markdown.text(title))),
        ("limits", (TEMPLATES / "limits.md").read_text(encoding="utf-8")),
        (section.config, _body(repo, section)),
    ):
        text = _put(text, name, content)
    licences, sources = section.licences, _sources(section.recipe.data.source)
    tags = [tag for tag in front_matter.TAGS if section.has_prior or tag != "diffusion"]
    meta = front_matter.with_config(meta, title, section.config, section.images, licences, sources, tags)
    return front_matter.joined(meta, text)


def _put(text: str, name: str, content: str) -> str:
    """Replaces the part of that name, or inserts it before the limits."""
    begin, end = f"<!-- ld3m:begin {name} -->", f"<!-- ld3m:end {name} -->"
    part = f"{begin}\n\n{content.strip()}\n\n{end}"
    there = re.compile(rf"^{re.escape(begin)}.*?^{re.escape(end)}", re.DOTALL | re.MULTILINE)  # never inside a recipe
    if there.search(text):
        return there.sub(lambda _: part, text, count=1)
    before, limits, rest = text.partition("<!-- ld3m:begin limits -->")
    return f"{before.rstrip()}\n\n{part}\n\n{limits}{rest}".strip() + "\n"


def _sources(source: str) -> list[str]:
    """The data sets of the Hub that a source is; none if it is a folder of this machine."""
    if source.startswith("hub:"):
        name = ID_ON_THE_HUB.match(source.removeprefix("hub:"))
        return [name[1]] if name else []
    return [ON_THE_HUB[source]] if source in ON_THE_HUB else []


# --- the text of a config ----------------------------------------------------------------------------------


def _body(repo: str, section: Section) -> str:
    recipe = section.recipe
    each, factor = recipe.distill.images_per_class, recipe.distill.factor
    count = len(section.classes)
    return _fill(
        "config",
        repo=repo,
        config=section.config,
        images=f"{section.images:,}",
        classes=f"{count} classes" if count > 1 else "1 class",
        per_class=f"{each} each" + (f" of {factor} × {factor} smaller ones side by side" if factor > 1 else ""),
        resolution=recipe.data.resolution,
        colour="grey" if recipe.data.channels == 1 else "colour",
        made=_made(recipe),
        accuracy=_accuracy(section),
        training=_training(repo, section),
        facts=markdown.table(["", ""], _facts(section).items()),
        recipe=markdown.fenced(section.recipe_yaml, "yaml"),
        class_list=_classes(section),
        licence=_licence(section),
    )


def _made(recipe: Recipe) -> str:
    """How the images were made, as a clause."""
    data, prior = (markdown.code(_without_folders(source)) for source in (recipe.data.source, recipe.prior.source))
    if recipe.samples and not recipe.distill.iterations:
        return f"sampled from\nthe prior {prior} ({markdown.text(recipe.sampling_text)}) for the classes of {data}"
    start = f", from latents that it sampled ({markdown.text(recipe.sampling_text)})" if recipe.samples else ""
    how = f"with the objective {markdown.code(recipe.distill.objective)} in {recipe.distill.iterations} iterations"
    through = "in pixels,\nwithout a prior," if recipe.prior.source == "pixels" else f"through\nthe prior {prior}"
    return f"distilled from {data} {through} {how}{start}"


def _fill(template: str, **values: object) -> str:
    return (TEMPLATES / f"{template}.md").read_text(encoding="utf-8").format(**values)


def _accuracy(section: Section) -> str:
    """A table for each protocol: a row per architecture or mean, a column per training set; and the protocol."""
    tables = [_accuracy_table(block) for block in blocks(section.evaluation) if block.split == "test"]
    return "\n\n".join(tables) or "Not measured yet; `ld3m evaluate` measures it."


def _accuracy_table(block: Block) -> str:
    heads = [markdown.text(_trained_on(line, block)) for line in block.lines]
    lines = [
        [markdown.text(name), *(accuracy_text(line.cells.get(name)) for line in block.lines)]
        for name in [*block.archs, *block.means]
    ]
    images = f"{block.tested_on:,} " if block.tested_on else ""
    return "\n".join(
        [
            f"Test accuracy in % on {images}real images, mean ± standard deviation (number of networks):",
            "",
            markdown.table(["trained from scratch on", *heads], lines),
            "",
            *(f"{markdown.text(note)}.\n" for note in block.notes),
            _networks(block.protocol),
        ]
    )


def _networks(how: Mapping[str, Any]) -> str:
    """How the networks of a table were trained; what all of glad have in common stands in no file of a run."""
    rest = "; all details are in evaluation.json" if "name" in how else ", momentum 0.9, weight decay 0.0005"
    return f"Networks: {markdown.text(training_text(how))}{rest}."


def _trained_on(line: Line, block: Block) -> str:
    images = f"{line.images:,}"
    kinds = {
        "distilled": f"these {images}",
        "random": f"{images} random real images",
        "full": f"all {images} real images",
    }
    is_run = line.trained_on.startswith("run ")
    other = f"{images} images of the {line.label}" if is_run else f"{images} real images, {line.label}"
    own_epochs = line.label.removeprefix(line.trained_on)
    name = f"{kinds[line.trained_on]}{own_epochs}" if line.trained_on in kinds else other
    return name + ("" if block.protocol.get("augment", True) else ", without augmentation")


def _training(repo: str, section: Section) -> str:
    """A program that trains the first architecture as it was measured by glad; nothing if none was."""
    results = [row for row in section.evaluation.get("results", []) if row["trained_on"] == "distilled"]
    glad = [row for row in results if row["protocol"].keys() <= {*ALWAYS}]  # of which the program is
    measured = [row for row in glad if isinstance(row["protocol"]["augment"], bool)]
    if not measured or "normalisation" not in section.evaluation:
        return ""
    protocol, data, factor = measured[0]["protocol"], section.recipe.data, section.recipe.distill.factor
    batch = f"augment.draw(draws, {data.resolution}, len(chosen))(inputs[chosen])"
    each = "" if factor == 1 else f".repeat_interleave({factor**2})"
    loss = "functional.cross_entropy(network(batch_images), targets[chosen])"
    weighted = f"(weights[chosen] * {loss[:-1]}, reduction='none')).mean()"
    by_weight = section.weights is not None and "weights" in measured[0]
    return _fill(
        "training",
        repo=repo,
        config=section.config,
        augmented="differentiable Siamese augmentation" if protocol["augment"] else "without augmentation",
        modules="augment, networks" if factor == 1 else "augment, formation, networks",
        unpack="" if factor == 1 else UNPACK.format(factor=factor),
        weights=WEIGHTS.format(each=each) if by_weight else "",
        loss=weighted if by_weight else loss,
        unpacked="" if factor == 1 else f"each image cut into the {factor**2} that it holds, which are enlarged, ",
        batch_images=batch if protocol["augment"] else "inputs[chosen]",
        arch=json.dumps(measured[0]["arch"]),
        channels=data.channels,
        resolution=data.resolution,
        count=len(section.classes),
        **{name: [round(value, 4) for value in section.evaluation["normalisation"][name]] for name in ("mean", "std")},
        **{name: protocol[name] for name in ("epochs", "batch", "lr", "ema")},
    )


def _facts(section: Section) -> dict[str, str]:
    recipe, prior = section.recipe, section.prior
    about = section.metadata
    source = _without_folders(recipe.prior.source)
    sampling = f"{recipe.prior.steps_text}, guidance {recipe.prior.guidance:g}, `{recipe.prior.skip}` skip"
    noise = markdown.text(f"{about.noise}, of iteration {about.noise_iteration}")
    of_prior = {
        "prior": f"{markdown.code(source)}, {markdown.text(prior.get('kind') or 'kind not recorded')}",
        "revision of the prior": markdown.code(prior.get("revision") or "none"),
        "SHA-256 of the prior": markdown.code(prior.get("sha256") or "not recorded"),
        "licence of the prior": markdown.text(prior.get("licence") or "not known"),
    }
    return {
        "seed": str(about.seed),
        "digest of the recipe": markdown.code(about.recipe),
        "versions": markdown.text(
            ", ".join(f"{name} {version}" for name, version in about.versions.items()) or "not recorded"
        ),
        **(of_prior if section.has_prior else {}),
        **({"sampled latents": markdown.text(recipe.sampling_text)} if recipe.samples else {}),
        **({"sampling": sampling, "noise": noise} if recipe.prior.steps else {}),
        "normalisation": _normalisation(section),
        **({"soft labels": _soft_labels(section.config, section.soft_labels)} if section.soft_labels else {}),
        **({"weights": f"{image_weights.text(section.weights)}: column `weight`"} if section.weights else {}),
    }


def _labels(folder: Path) -> labels.Note | None:
    """What is noted of a run's soft labels, if it has some.

    Raises:
        UserError: if they are of other images than the run has now.
    """
    if not labels.has_labels(folder):
        return None
    note = labels.read_note(folder)
    if note.content != stored_digest(folder):
        raise UserError(
            f"RUN: {folder / labels.FOLDER} has labels of other images than {folder} has now; {labels.ADVICE}"
        )
    return note


def _soft_labels(config: str, note: labels.Note) -> str:
    use = "ld3m evaluate with evaluate.labels=soft and teacher.source=stored trains with them"
    return f"{markdown.text(labels.text(note))}; in {markdown.code(f'{config}/{labels.FOLDER}/')}; {use}"


def _normalisation(section: Section) -> str:
    real = section.evaluation.get("normalisation")
    if not real:
        return "none; pixels as they are"
    mean, std = (", ".join(f"{value:.4f}" for value in real[name]) for name in ("mean", "std"))
    return f"none in the files; networks were trained with mean {mean} and std {std} of the real images"


def _classes(section: Section) -> str:
    """Labels, names, and their numbers in the source, or WordNet ids."""
    indices = section.metadata.ids.values()
    of_imagenet = section.recipe.data.source == "imagenet"
    names_there = [f"`{imagenet.classes()[index].wordnet_id}`" if of_imagenet else str(index) for index in indices]
    rows = [
        [str(label), markdown.text(name), known_as]
        for label, (name, known_as) in enumerate(zip(section.classes, names_there, strict=True))
    ]
    return markdown.table(["label", "class", "WordNet id" if of_imagenet else "number in the source"], rows)


def _licence(section: Section) -> str:
    """The licences that apply; non-commercial ones are flagged."""
    recipe, prior = section.recipe, section.prior.get("licence")
    data, prior_source = (_without_folders(source) for source in (recipe.data.source, recipe.prior.source))
    if recipe.hub.licence:
        sentences = [f"{markdown.code(recipe.hub.licence)}, as stated by its author."]
    elif not section.has_prior:
        terms = _licence_link(LICENCES.get(recipe.data.source))
        sentences = [f"The images derive from the real images ({markdown.code(data)}): {terms}."]
    else:
        sentences = [
            "The images derive from the real images and from the prior, so the terms of both licences apply to them.",
            f"Real images ({markdown.code(data)}): {_licence_link(LICENCES.get(recipe.data.source))}.",
            f"Prior ({markdown.code(prior_source)}): {_licence_link(prior)}.",
        ]
    licences = dict.fromkeys([*section.licences, prior])
    if non_commercial := [licence for licence in licences if licence and NON_COMMERCIAL.search(licence)]:
        sentences.append(f"**Not for commercial use**: {', '.join(map(_licence_link, non_commercial))}.")
    return "\n".join(sentences)


def _licence_link(licence: str | None) -> str:
    if licence in WITHOUT_HUB_ID:
        return f"[{licence}]({WITHOUT_HUB_ID[licence]})"
    return markdown.code(licence) if licence else "licence unknown; ask the publisher"


def without_folders(content: Any) -> Any:
    """A document in which paths of this machine are cut down to their last part, under any of `PATH_KEYS`."""
    if isinstance(content, list):
        return [without_folders(part) for part in content]
    if not isinstance(content, dict):
        return content
    return {
        key: _without_folders(value) if key in PATH_KEYS and isinstance(value, str) else without_folders(value)
        for key, value in content.items()
    }


def _without_folders(source: str) -> str:
    """A source as others may see it: the last part of an absolute path, all else as it is."""
    path = source.removeprefix("hub:")
    if source in PACKAGED_PRIORS or not (PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()):
        return source
    return PureWindowsPath(path).name  # which knows both separators
