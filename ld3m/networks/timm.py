"""Networks of the timm library (Wightman, https://github.com/huggingface/pytorch-image-models) by name."""

import difflib
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ld3m.errors import UserError, one_line
from ld3m.networks.blocks import Shape

PREFIX = "timm/"
"""What precedes a model's name in a recipe or after `--arch`."""


class TimmNetwork(nn.Module):
    """An untrained timm model, sized for the images if its size depends on theirs.

    Args:
        arch: `timm/<model name>`.
        shape: the images and classes it is for.
        key: the recipe's key or the option that named it, for messages.

    Raises:
        UserError: if timm is missing or has no such model, or the model has no linear classifier.
    """

    def __init__(self, arch: str, shape: Shape, key: str = "network.arch") -> None:
        super().__init__()
        timm = _import(arch, key)
        name = arch.removeprefix(PREFIX)
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
            hint = f"near are {', '.join(PREFIX + model for model in near)}" if near else "timm.list_models() lists all"
            raise UserError(f"{key}: timm has no model {name!r}; {hint}")
        settings: dict[str, Any] = {"num_classes": shape.classes, "in_chans": shape.channels}
        if timm.get_pretrained_cfg(name).fixed_input_size:
            settings["img_size"] = shape.resolution
        self.model = timm.create_model(name, pretrained=False, **settings)
        if not isinstance(self.classifier, nn.Linear):
            raise UserError(f"{key}: {arch} does not end in one linear layer after its features; choose another")

    @property
    def classifier(self) -> nn.Module:
        """The linear layer after `embed`; a part of the model, registered once."""
        return self.model.get_classifier()

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, features], what the classifier sees."""
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


def _import(arch: str, key: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{key}: {arch!r} needs the extra timm: pip install 'ld3m[timm]' ({one_line(error)})") from None
    return timm
