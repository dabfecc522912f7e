"""The parts of a prior, read one at a time."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ld3m import reading
from ld3m.errors import UserError, one_line
from ld3m.launched import say_once
from ld3m.machine.out_of_memory import ran_out
from ld3m.priors.diffusers_layout import GET_AGAIN, choose_weights, is_whole, read_index
from ld3m.priors.file_kinds import COMPUTED, check_weights
from ld3m.priors.noise_schedule import check_scheduler, ends_clean, is_consistency, is_flow, not_applied
from ld3m.recipe import SamplerRecipe

T = TypeVar("T")
DEFAULT_SCALING_FACTOR = 0.18215
"""What diffusers assumes if a VQModel's configuration has none: that of Stable Diffusion's KL autoencoder."""
AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderDC", "AutoencoderTiny")
"""The kinds that a denoiser's latents may be of."""


class Parts:
    """The parts of a prior's folder in diffusers' layout, read one at a time; on the meta device without weights."""

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        recipe: SamplerRecipe,
        denoiser_device: torch.device | str | None = None,
        size: int | None = None,
    ) -> None:
        self.folder = folder
        self.device = device
        self.denoiser_device = denoiser_device or device
        self.recipe = recipe
        self.size = recipe.resolution or size
        """Height and width that images are wanted at, if they are."""

    def model(
        self, kind: Any, part: str, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> Any:
        """A model's weights, moved to the device; they are never there twice in the same memory.

        From safetensors, or else from a .bin, of which both libraries unpickle tensors only; in full precision, or else
        in half.

        Raises:
            UserError: if the folder lacks them, they are not those of its configuration, or one is not finite.
        """
        here = self.folder / part
        files = self.read(part, lambda path: sorted(each.name for each in path.iterdir() if each.is_file()))
        weights = choose_weights(f"{part}/{name}" for name in files)
        if not weights.files:
            stem = "diffusion_pytorch_model" if kind.__module__.startswith("diffusers") else "model"
            raise self._not_whole(f"{here} has no {stem}.safetensors or .bin, only {', '.join(files) or 'nothing'}")
        self._check_kind(kind, part)
        for name in weights.files:
            self.read(name, check_weights)

        def load(path: Path) -> Any:
            model, report = kind.from_pretrained(
                path,
                torch_dtype=dtype,
                use_safetensors=weights.safe,
                variant=weights.variant,
                output_loading_info=True,
                local_files_only=True,
            )
            _check_complete(model, report)
            return model.to(device or self.device)

        return self.read(part, load)

    def denoiser(self, kind: Any, part: str = "unet") -> Any:
        """The model that the recipe gives a precision."""
        dtype = getattr(torch, self.recipe.dtype)
        if str(self.denoiser_device) == "meta":  # diffusers' own `to` warns, of a list that is empty
            return nn.Module.to(self.outline(kind, part), dtype)
        return self.model(kind, part, dtype, self.denoiser_device)

    def outline(self, kind: Any, part: str) -> Any:
        """A model of its configuration alone, on the meta device."""
        self._check_kind(kind, part)
        config = self.json(f"{part}/config.json", dict[str, Any])
        with torch.device("meta"):
            return self.read(part, lambda _: kind.from_config(config))

    def class_labels(self, network: str, count: int) -> list[list[str]]:
        """The names of so many classes, those between the commas of their labels in the index; none without labels.

        Args:
            network: what has the classes, for the error.

        Raises:
            UserError: if there are not as many labels as classes.
        """
        labels = read_index(self.folder).id2label or {}
        if labels and sorted(labels) != list(range(count)):
            raise UserError(
                f"prior.source: id2label in {self.folder / 'model_index.json'} has {len(labels)} names, but the "
                f"{network} has {count} classes; name each of 0 … {count - 1}, or leave id2label out"
            )
        return [[name.strip() for name in labels.get(number, "").split(",") if name.strip()] for number in range(count)]

    def autoencoder_kind(self) -> tuple[Any, str]:
        """The class of the autoencoder, and its folder, `vae/` or `vqvae/`; that of one alone is the prior's own.

        Raises:
            UserError: if it is of another kind.
        """
        import diffusers

        there = [part for part in ("vae", "vqvae") if (self.folder / part).is_dir()]
        index = read_index(self.folder).model_dump()
        part = next((part for part in there if index[part]), there[0] if there else "vqvae")
        part = part if is_whole(self.folder) else "."
        config = self.json(f"{part}/config.json", dict[str, Any])
        name = str(config.get("_class_name", "VQModel" if "num_vq_embeddings" in config else "AutoencoderKL"))
        kind = getattr(diffusers, name, None)
        if part != "." and name not in AUTOENCODERS:
            known = ", ".join(AUTOENCODERS)
            raise UserError(f"prior.source: {self.folder / part} is of the kind {name}; known are {known}")
        if not isinstance(kind, type) or not (hasattr(kind, "encode") and hasattr(kind, "decode")):
            raise UserError(
                f"prior.source: {self.folder} holds a {name}, not an autoencoder of diffusers; give the folder of one, "
                "such as AutoencoderKL, or of a whole prior, which has a model_index.json"
            )
        return kind, part

    def autoencoder(self) -> Any:
        """The autoencoder, in float32, scaled as the recipe says if it does.

        Raises:
            UserError: if its scaling factor is one that nobody chose.
        """
        kind, part = self.autoencoder_kind()
        if self.device == "meta":
            return self.outline(kind, part)
        autoencoder = self.model(kind, part)
        if self.recipe.scaling_factor is not None:
            autoencoder.register_to_config(scaling_factor=self.recipe.scaling_factor)
        elif kind.__name__ == "VQModel" and autoencoder.config.scaling_factor == DEFAULT_SCALING_FACTOR:
            raise UserError(
                f"prior.scaling_factor: {self.folder / part} is a VQModel with {DEFAULT_SCALING_FACTOR}, which "
                "diffusers assumes if there is none, as Stable Diffusion's autoencoder has it; CompVis' VQ "
                "models have 1: set prior.scaling_factor=1, or =0.18215 if that is correct"
            )
        return autoencoder

    def scheduler(self) -> Any:
        """The noise schedule of the scheduler: of betas as diffusers' DDIMScheduler, of a flow as its own kind.

        Raises:
            UserError: if its configuration does not say the noise that the prior was trained with.
        """
        import diffusers

        name = "scheduler/scheduler_config.json"
        config = self.json(name, dict[str, Any])
        check_scheduler(config, self.folder / name)
        if keys := not_applied(config):
            say_once(
                f"prior.source: {self.folder / name}: {' and '.join(keys)} is not applied, as in the paper's code: "
                "clean latents are not clipped, and no step draws noise of its own"
            )
        if is_flow(config) or is_consistency(config):
            kind = getattr(diffusers, str(config["_class_name"]))
            return self.read("scheduler", lambda _: kind.from_config(config))
        return self.read("scheduler", lambda _: diffusers.DDIMScheduler.from_config(config, **ends_clean(config)))

    def kind(self) -> str:
        """The `_class_name` of its model_index.json."""
        return read_index(self.folder).kind

    def json(self, name: str, shape: type[T]) -> T:
        """The content of a JSON file of a given shape, as `reading.read_json` has it."""
        path = self.folder / name
        return reading.read_json(path, shape, GET_AGAIN, f"prior.source: {path}")

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The content of a safetensors file; none of it is NaN or infinite."""
        path = self.folder / name
        return reading.read_tensors(path, GET_AGAIN, name=f"prior.source: {path}").tensors

    def read(self, name: str, reader: Any) -> Any:
        """What a reader makes of a part's path, without its warnings; UserError if it fails."""
        path = self.folder / name
        try:
            if not path.exists():  # libraries would ask the Hub for it
                raise self._not_whole(f"there is no {path}")
            with _errors_alone():
                return reader(path)
        except UserError:
            raise
        except Exception as error:  # diffusers, transformers and safetensors each raise their own
            part = name.partition("/")[0]
            if ran_out(error):
                raise UserError(
                    f"prior.source: memory ran out while {self.folder / part} was loaded; free some, choose a "
                    "smaller prior, or prior.dtype=bfloat16"
                ) from None
            text = str(error) if type(error) is ValueError else one_line(error)
            first, *_ = re.split(r"\. (?=[A-Z])", text)  # diffusers then gives advice for its own options
            raise self._not_whole(f"{part}: {first}") from None

    def _not_whole(self, what: str) -> UserError:
        return UserError(f"prior.source: {self.folder} is not a whole prior; {what}")

    def _check_kind(self, kind: Any, part: str) -> None:
        """That a configuration is not one of another class of the same library, which it would load as."""
        import diffusers

        found = self.json(f"{part}/config.json", dict[str, Any]).get("_class_name", kind.__name__)
        if found != kind.__name__ and kind.__module__.startswith("diffusers.") and hasattr(diffusers, str(found)):
            raise UserError(
                f"prior.source: {self.folder / part} is a {found}, but a {self.kind()} takes a {kind.__name__}; "
                "correct _class_name in model_index.json, or give another prior"
            )


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Keeps diffusers and transformers from warning of what is an error here."""
    libraries = [
        sys.modules[name] for name in ("diffusers.utils.logging", "transformers.utils.logging") if name in sys.modules
    ]
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)


def _check_complete(model: nn.Module, report: dict[str, Any]) -> None:
    """That a model took all of its weights and left none over; libraries only warn of it.

    Raises:
        ValueError: naming the first that did not fit, or is not finite.
    """
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the weights lack {missing[0]}, which the configuration asks for")
    if surplus := sorted(name for name in report["unexpected_keys"] if not name.endswith(COMPUTED)):
        raise ValueError(f"the weights have {surplus[0]}, for which the configuration has no layer")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{name} has values that are not finite in {weight.dtype}")
