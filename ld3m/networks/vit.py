"""A small vision transformer without layer norm."""

import torch
from torch import Tensor, nn

from ld3m.errors import UserError
from ld3m.networks.blocks import Shape

PATCH = 16
WIDTH = 512
DEPTH = 10
HEADS = 8
DROPOUT = 0.1


class ViT(nn.Module):
    """Patches of 16×16 pixels and a class token through ten transformer layers.

    The vision transformer (Dosovitskiy et al., ICLR 2021) of GLaD's evaluation: width 512, eight heads of 64, MLPs as
    wide as the tokens, dropout 0.1, and no layer norm anywhere.

    Raises:
        UserError: if the resolution is not a whole number of patches.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if shape.resolution % PATCH:
            below = shape.resolution // PATCH * PATCH
            fitting = f"{below} or {below + PATCH}" if below else f"{PATCH}"
            raise UserError(
                f"data.resolution: {shape.resolution} is no multiple of {PATCH}, the side of vit's patches; "
                f"give {fitting}, or choose another network"
            )
        patches = (shape.resolution // PATCH) ** 2
        self.positions = nn.Parameter(torch.randn(1, patches + 1, WIDTH))
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.patch_embedding = nn.Linear(shape.channels * PATCH**2, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.Sequential(*(Layer() for _ in range(DEPTH)))
        self.classifier = nn.Linear(WIDTH, shape.classes)

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] normalised images to [N, 512], what becomes of the class token."""
        patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [N, channels, rows, columns, 16, 16]
        patches = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # channels last, as in the public code
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), self.patch_embedding(patches)], dim=1)
        return self.layers(self.dropout(tokens + self.positions))[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))


class Layer(nn.Module):
    """Attention, then an MLP of one hidden layer, both added to what they read: tokens [N, T, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.mlp(tokens)


class Attention(nn.Module):
    """Softmax attention of tokens [N, T, 512] among themselves.

    Written out, since torch's fused attention cannot be differentiated twice, as matching gradients needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(DROPOUT))

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.queries_keys_values(tokens).unflatten(2, (3, HEADS, -1))  # [N, T, 3, heads, 64]
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        return self.output((weights @ values).transpose(1, 2).flatten(2))
