"""Distil an image data set into a few images per class through a frozen latent diffusion model.

    import ld3m

    recipe = ld3m.load_recipe("quickstart", "distill.iterations=20")
    run = ld3m.distill(recipe, output="runs/short")
    report = ld3m.evaluate(run)

The names in `__all__` are imported when they are first asked for, so that `import ld3m` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ld3m import sampling
    from ld3m.api import auto, compare, distill, evaluate, load_latents, load_prior, load_recipe, rehearse, sample, tune
    from ld3m.errors import UserError
    from ld3m.recipe import Recipe

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "UserError",
    "auto",
    "compare",
    "distill",
    "evaluate",
    "load_latents",
    "load_prior",
    "load_recipe",
    "rehearse",
    "sample",
    "sampling",
    "tune",
]

_MODULES = {"Recipe": "ld3m.recipe", "UserError": "ld3m.errors", "sampling": ""}
"""Where a name of `__all__` comes from; all others are from `ld3m.api`, and "" is a package of this one itself."""


def __getattr__(name: str) -> object:
    """Imports one of `__all__` (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'ld3m' has no attribute {name!r}")
    module = _MODULES.get(name, "ld3m.api")
    value = getattr(import_module(module), name) if module else import_module(f"ld3m.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
