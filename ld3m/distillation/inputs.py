"""What a distillation takes, looked at before anything slow: are its files there, and do its keys have an effect?"""

from collections.abc import Callable
from pathlib import Path

from ld3m.data import sources
from ld3m.errors import UserError
from ld3m.priors import folder as prior_folder
from ld3m.recipe import Recipe
from ld3m.recipe.values import STARTS


def check_inputs(recipe: Recipe, resumes: bool = False) -> None:
    """Looks for the files that a distillation reads; it opens none of them and does not ask the Hub.

    Commands that distil, or plan or print a distillation, call it first. What only the opened prior or data show is
    checked when they are loaded.

    Args:
        recipe: of the distillation.
        resumes: whether it resumes from a checkpoint, which has what `distill.init` gave it.

    Raises:
        UserError: with one line for each mistake: in data.source or data.root, prior.source, distill.init, and in keys
            that contradict prior.source=pixels or prior.steps=0.
    """
    checks: list[Callable[[], None]] = [
        lambda: sources.check_source(recipe.data),
        lambda: prior_folder.check_source(recipe.prior.source),
        lambda: None if resumes else _check_start(recipe.distill.init),
        lambda: _check_without_denoiser(recipe),
    ]
    mistakes: list[str] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            mistakes += error.lines
    if mistakes:
        raise UserError(*mistakes)


def _check_start(init: str) -> None:
    """That `distill.init` is one of `STARTS`, a finished run, or on the Hub."""
    if init in STARTS or init.startswith("hub:") or (Path(init) / "latents.safetensors").is_file():
        return
    raise UserError(
        f"distill.init: {init!r} is invalid: give one of {', '.join(STARTS)}, the folder of a finished run, or hub:<id>"
    )


def _check_without_denoiser(recipe: Recipe) -> None:
    """That nothing is asked of a denoiser if there is none: the recipe derives the keys that are left out."""
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
    if mistakes:
        raise UserError(*mistakes)
