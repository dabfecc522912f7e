"""Classifiers of torchvision and timm by name, with the weights that these libraries fetch, or without any."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ld3m.data.known import imagenet
from ld3m.errors import UserError, one_line
from ld3m.files import tensors_digest
from ld3m.machine.environment import misfit
from ld3m.networks import timm
from ld3m.teachers.teacher import Classifier

TORCHVISION, TIMM = "torchvision/", timm.PREFIX
"""What precedes a model's name."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels, as nearly all its networks have it."""


def torchvision_classifier(source: str) -> Classifier:
    """A classifier of torchvision with its pre-trained weights; `@<weights>` behind the model names others of it.

    Raises:
        UserError: if torchvision is missing, has no such model or weights, or they cannot be fetched.
    """
    models = torchvision(source, "teacher.source")
    name, _, wanted = source.removeprefix(TORCHVISION).partition("@")
    known = models.get_model_weights(name)
    if wanted and wanted not in known.__members__:
        raise UserError(f"teacher.source: {name} has no weights {wanted!r}; it has {', '.join(known.__members__)}")
    weights = known[wanted] if wanted else known.DEFAULT
    network = _fetched(source, lambda: models.get_model(name, weights=weights))
    preset, labels = weights.transforms(), list(weights.meta["categories"])
    return Classifier(
        name=f"{TORCHVISION}{name}@{weights.name}",
        network=network.eval(),
        classes=imagenet.ids() if len(labels) == len(imagenet.ids()) else labels,
        mean=torch.tensor(preset.mean),
        std=torch.tensor(preset.std),
        resolution=int(preset.crop_size[0]),
        digest=tensors_digest(network.state_dict()),
    )


def timm_classifier(source: str, classes: Sequence[str] | None) -> Classifier:
    """A classifier of timm with its pre-trained weights; `.<tag>` behind the model names others of it.

    Args:
        source: timm/<model>.
        classes: of its outputs, if the user says them.

    Raises:
        UserError: if timm is missing, has no such model or weights, they cannot be fetched, or it does not say its
            classes and the user does not either.
    """
    network = timm.pretrained(source, "teacher.source")
    config: Any = network.pretrained_cfg
    return Classifier(
        name=source,
        network=network,
        classes=classes or _timm_classes(network, source),
        mean=torch.tensor(config["mean"]),
        std=torch.tensor(config["std"]),
        resolution=int(config["input_size"][-1]),
        digest=tensors_digest(network.state_dict()),
    )


def _timm_classes(network: Any, source: str) -> list[str]:
    """The classes of a model's outputs as timm knows them: WordNet ids of ImageNet, or names of its own."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if names := network.pretrained_cfg.get("label_names"):
        return list(names)
    if subset := infer_imagenet_subset(network):
        return imagenet.ids() if network.num_classes == len(imagenet.ids()) else ImageNetInfo(subset).label_names()
    raise UserError(
        f"teacher.source: timm does not say what the {network.num_classes} outputs of {source} are; give "
        "teacher.classes=FILE with their names or WordNet ids, in their order"
    )


def untrained(arch: str, channels: int, classes: int, key: str) -> nn.Module:
    """A model of either library with random weights.

    Args:
        arch: torchvision/<model> or timm/<model>.
        channels: of its images; torchvision's have three.
    """
    if arch.startswith(TIMM):
        create = timm.library(arch, key).create_model
        network: nn.Module = create(arch.removeprefix(TIMM), pretrained=False, num_classes=classes, in_chans=channels)
        return network
    models, name = torchvision(arch, key), arch.removeprefix(TORCHVISION)
    extra = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = models.get_model(name, weights=None, num_classes=classes, **extra)
    assert isinstance(network, nn.Module)
    return network


def with_small_stem(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A ResNet with the stem that its weights have, if it is that for small images: 3 × 3, stride 1, no pooling.

    The distillation literature trains such ResNets of torchvision on CIFAR and Tiny ImageNet (SRe2L, RDED).
    """
    first, stem = weights.get("conv1.weight"), getattr(network, "conv1", None)
    if first is None or not isinstance(stem, nn.Conv2d) or first.dim() != 4:
        return network
    if first.shape[-1] == 3 and stem.kernel_size == (7, 7):
        network.conv1 = nn.Conv2d(first.shape[1], first.shape[0], 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


# --- the libraries -----------------------------------------------------------------------------------------


def torchvision(arch: str, key: str) -> Any:
    """torchvision's models, if it is installed and has this one; nothing is fetched.

    Args:
        arch: torchvision/<model>, or torchvision/<model>@<weights>.
        key: the recipe's key that named it, for messages.

    Raises:
        UserError: if not.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: one that was built for another PyTorch
        how = misfit(error) or f"pip install 'ld3m[timm]' ({one_line(error)})"
        raise UserError(f"{key}: {arch!r} needs torchvision, which timm brings along: {how}") from None
    name, known = arch.removeprefix(TORCHVISION).partition("@")[0], models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"near are {', '.join(TORCHVISION + each for each in near)}" if near else f"it has {len(known)} others"
        raise UserError(f"{key}: torchvision has no classifier {name!r}; {hint}")
    return models


def _fetched(source: str, create: Callable[[], nn.Module]) -> nn.Module:
    """A model of torchvision with its weights, which are fetched unless they are in the library's cache."""
    try:
        return create()
    except Exception as error:  # torch.hub raises what urllib does
        reason = str(getattr(error, "reason", "") or one_line(error))
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"teacher.source: the weights of {source} cannot be fetched ({reason}); put them into {folder}, or repeat "
            "it with a network"
        ) from None
