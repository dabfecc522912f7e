"""Pre-trained backbones to match in: what any model of timm makes of images, shown to it as it was trained.

Random and trained networks of one's own are `ld3m.networks`; `Draws` chooses.
"""

import torch
from torch import Tensor, nn

from ld3m.data.prepared import ImageSet
from ld3m.errors import UserError, one_line
from ld3m.networks import timm

KEY = "distill.networks"


class Backbone(nn.Module):
    """Features of a pre-trained model, in evaluation mode; its classifier is left out.

    Images are resized to the model's input size, whole and without the margin that its evaluation cuts off, and
    normalised as timm says; a grey one has the same in each channel.

    Args:
        arch: timm/<model>, or timm/<model>.<tag> for others of its weights.
        images: by which what it is shown is normalised.
        device: with "meta" the weights are not looked for.

    Raises:
        UserError: if timm, the model or its weights are not there, or it has no vector of features.
    """

    def __init__(self, arch: str, images: ImageSet, device: torch.device) -> None:
        super().__init__()
        library = timm.library(arch, KEY)
        self.images = images
        if device.type == "meta":
            self.model = library.create_model(arch.removeprefix(timm.PREFIX), pretrained=False, num_classes=0).eval()
        else:
            self.model = timm.pretrained(arch, KEY, num_classes=0)
        config = library.data.resolve_model_data_config(self.model)
        *_, height, width = config["input_size"]
        if height != width:
            raise UserError(f"{KEY}: {arch} sees {height} × {width} pixels; choose a model that sees squares")
        self.resolution = int(height)
        self.mode = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"
        self.mean, self.std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        self.to(device).requires_grad_(False)
        self._check(arch)

    @torch.no_grad()
    def _check(self, arch: str) -> None:
        """That a black image has a vector of features."""
        channels, size = self.images.shape.channels, self.images.resolution
        device = next(self.model.parameters()).device
        try:
            features = self.embed(torch.zeros(1, channels, size, size, device=device))
        except Exception as error:  # timm's models have other limits each
            raise UserError(f"{KEY}: {arch} fails on these images ({one_line(error)}); choose another") from None
        if features.dim() != 2:
            raise UserError(f"{KEY}: {arch} gives features {list(features.shape)}, not [1, features]; choose another")

    def embed(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W], normalised as the set's, to [N, features]."""
        seen = self.images.seen_by(images, self.mean, self.std, self.resolution, self.mode)
        features: Tensor = self.model(seen)
        return features
