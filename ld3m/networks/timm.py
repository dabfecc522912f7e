"""Networks of the timm library (Wightman, https://github.com/huggingface/pytorch-image-models) by name."""

import difflib
from typing import Any

from torch import Tensor, nn

from ld3m.errors import UserError, one_line
from ld3m.machine.environment import misfit
from ld3m.networks.blocks import Shape

PREFIX = "timm/"
"""What precedes a model's name in a recipe or after `--arch`."""


class TimmNetwork(nn.Module):
    """An untrained timm model, sized for the images if its size depends on theirs.

    Args:
        arch: `timm/<model name>`.
        key: the recipe's key or the option that named it, for messages.

    Raises:
        UserError: if timm is missing or has no such model, or the model has no linear classifier.
    """

    def __init__(self, arch: str, shape: Shape, key: str = "network.arch") -> None:
        super().__init__()
        timm, name = library(arch, key), arch.removeprefix(PREFIX)
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


def library(arch: str, key: str) -> Any:
    """timm, if it is installed and has the model.

    Args:
        arch: `timm/<model>`; a tag of weights behind it, as in `resnet18.tv_in1k`, is not looked at.
        key: the recipe's key or the option that named it, for messages.

    Raises:
        UserError: if not.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another PyTorch
        how = misfit(error) or f"pip install 'ld3m[timm]' ({one_line(error)})"
        raise UserError(f"{key}: {arch!r} needs the extra timm: {how}") from None
    name = arch.removeprefix(PREFIX).partition(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"near are {', '.join(PREFIX + model for model in near)}" if near else "timm.list_models() lists all"
        raise UserError(f"{key}: timm has no model {name!r}; {hint}")
    return timm


def check_pretrained(arch: str, key: str) -> None:
    """That timm is installed and knows pre-trained weights of a model; none are fetched.

    Args:
        arch: `timm/<model>`, or `timm/<model>.<tag>` for others of its weights than the first.

    Raises:
        UserError: if not.
    """
    timm, name = library(arch, key), arch.removeprefix(PREFIX)
    known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    if name not in known and not any(each.startswith(f"{name}.") for each in known):
        raise UserError(f"{key}: timm has no such weights of {name!r}; it has {', '.join(known) or 'none'}")


def pretrained(arch: str, key: str, **settings: Any) -> Any:
    """A model with its pre-trained weights, in evaluation mode; they are fetched unless timm's cache has them.

    Args:
        arch: as for `check_pretrained`.
        settings: of `timm.create_model`.

    Raises:
        UserError: as `check_pretrained`, or if the weights cannot be fetched.
    """
    from ld3m.machine.hub import ask, explained  # only who fetches weights needs it

    check_pretrained(arch, key)
    timm = library(arch, key)
    try:
        return ask(lambda: timm.create_model(arch.removeprefix(PREFIX), pretrained=True, **settings)).eval()
    except Exception as error:  # timm and the Hub's clients have no kind of their own
        raise UserError(f"{key}: the weights of {arch} cannot be fetched ({explained(error)})") from None
