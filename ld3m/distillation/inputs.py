"""What a distillation takes, looked at before anything slow: is there what it names, and do keys have an effect?"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ld3m import networks, priors
from ld3m.data import sources
from ld3m.errors import UserError
from ld3m.networks.timm import check_pretrained
from ld3m.priors.known import KNOWN
from ld3m.priors.source import check_prior_source
from ld3m.recipe import NetworkRecipe, Recipe
from ld3m.recipe.objectives import LEARNING_RATES
from ld3m.recipe.values import STARTS
from ld3m.registry import Registry


def check_inputs(recipe: Recipe, resumes: bool = False) -> None:
    """Looks for what a distillation names: files, of which it opens none, objective, networks and trackers.

    Commands that distil, or plan or print a distillation, call it first. It does not ask the Hub. What only the opened
    prior or data show is checked when they are loaded.

    Args:
        resumes: whether it resumes from a checkpoint, which has what `distill.init` gave it.

    Raises:
        UserError: with one line for each mistake: in data.source or data.root, prior.source, distill.init,
            sample.method, sample.choose, distill.objective, distill.networks, network.arch, evaluate.arch, log_with,
            and in keys that contradict a known prior.source or prior.steps=0.
    """
    checks: list[Callable[[], None]] = [
        lambda: sources.check_source(recipe.data),
        lambda: check_prior_source(recipe.prior.source),
        lambda: None if resumes else _check_start(recipe.distill.init),
        lambda: _check_sampling(recipe) if recipe.samples and not resumes else None,
        lambda: _check_known_prior(recipe),
        lambda: _check_without_denoiser(recipe),
        lambda: _check_objective(recipe.distill.objective),
        lambda: _check_backbone(recipe.distill.backbone),
        lambda: _check_network(recipe, recipe.network.arch, recipe.network, "network.arch"),
        *(partial(_check_network, recipe, arch, NetworkRecipe(), "evaluate.arch") for arch in recipe.evaluate.arch),
        lambda: _check_trackers(recipe.log_with),
    ]
    mistakes: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            mistakes += error.lines
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def check_classes(recipe: Recipe) -> str:
    """That the prior knows the classes that `data.subset` chooses, as far as names and the prior's configurations tell.

    Opens no image and asks no network.

    Returns:
        what was not looked at, in words.

    Raises:
        UserError: if `data.subset` chooses what is not there, or the prior does not know a class.
    """
    classes = sources.class_names(recipe.data)
    told = priors.check_classes(recipe.prior.source, classes or [])
    unseen = ["images", "weights"]
    unseen += [] if classes else [f"the classes of {recipe.data.source}"]
    unseen += [] if told else [f"the prior {recipe.prior.source}"]
    return ", ".join(unseen)


def _check_start(init: str) -> None:
    """That `distill.init` is one of `STARTS`, a finished run, or on the Hub."""
    if init in STARTS or init.startswith("hub:") or (Path(init) / "latents.safetensors").is_file():
        return
    raise UserError(
        f"distill.init: {init!r} is invalid: give one of {', '.join(STARTS)}, the folder of a finished run, or hub:<id>"
    )


def _check_sampling(recipe: Recipe) -> None:
    """That the method and the choice of a sampling are known."""
    from ld3m.sampling.choices import CHOICES  # which imports what only sampling needs
    from ld3m.sampling.methods import METHODS

    METHODS.find(recipe.sample.method)
    if recipe.sample.choose:
        CHOICES.find(recipe.sample.choose)


def _check_objective(name: str) -> None:
    """That an objective is known; ours are not imported for it."""
    Registry("ld3m.objectives", "distill.objective", dict.fromkeys(LEARNING_RATES)).find(name)


def _check_backbone(name: str | None) -> None:
    """That timm knows weights of a pre-trained model to match in."""
    if name:
        check_pretrained(name, "distill.networks")


def _check_trackers(names: Sequence[str]) -> None:
    """That trackers are known and installed."""
    if names:  # Accelerate, which knows them, takes seconds to import
        from ld3m.distillation import trackers

        trackers.check(names)


def _check_network(recipe: Recipe, arch: str, settings: NetworkRecipe, key: str) -> None:
    """That a network is known and fits the images; their classes, of which there are two here, do not matter."""
    networks.check(arch, networks.Shape(recipe.data.channels, recipe.data.resolution, 2), settings, key)


def _check_known_prior(recipe: Recipe) -> None:
    """That keys fit a prior that is fetched by name, before it is."""
    name, resolution, mistakes = recipe.prior.source, recipe.prior.resolution, list[str]()
    prior = KNOWN.get(name)
    if not prior or not prior.origin:  # the package's are opened soon
        return
    for key, value in prior.must.items():
        section, _, last = key.partition(".")
        if (found := getattr(getattr(recipe, section), last)) != value:
            mistakes.append(f"{key}: {found!r}, but {name} is an {prior.about}; set {key}={value}")
    if recipe.data.channels != prior.channels:
        mistakes.append(
            f"data.channels: {recipe.data.channels}, but the images of {name} have {prior.channels}; "
            f"set data.channels={prior.channels} or choose another prior.source"
        )
    if prior.kind == "DiTPipeline" and resolution not in (None, prior.resolution):
        mistakes.append(
            f"prior.resolution: {resolution}, but {name} renders at {prior.resolution} alone; leave the key out"
        )
    if mistakes:
        raise UserError(*mistakes)


def _check_without_denoiser(recipe: Recipe) -> None:
    """That nothing is asked of a denoiser or an autoencoder if there is none: the recipe derives keys left out."""
    sampler, learn, mistakes = recipe.prior, recipe.distill.learn, []
    if sampler.source == "pixels" and sampler.guidance != 1:
        mistakes.append(
            f"prior.guidance: {sampler.guidance:g}, but prior.source=pixels has no classes to guide to; "
            "set prior.guidance=1, or leave it out"
        )
    if not sampler.steps and learn != "latents":
        setting = "prior.source=pixels" if sampler.source == "pixels" else "prior.steps=0"
        mistakes.append(
            f"distill.learn: {learn!r}, but {setting} leaves the denoiser out and only Z has a part; "
            "set distill.learn=latents, or leave it out"
        )
    if sampler.source == "pixels" and (sampler.compiles or sampler.denoiser == "random"):
        key = "prior.compile: on" if sampler.compiles else "prior.denoiser: random"
        mistakes.append(f"{key}, but prior.source=pixels has no denoiser; leave the key out")
    if sampler.source == "pixels" and sampler.scaling_factor is not None:
        mistakes.append(
            f"prior.scaling_factor: {sampler.scaling_factor:g}, but prior.source=pixels encodes nothing; "
            "leave the key out"
        )
    if mistakes:
        raise UserError(*mistakes)
