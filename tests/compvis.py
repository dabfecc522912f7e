"""The networks of the original latent-diffusion code, written anew with its names, to convert and compare with.

Heads, epsilons, paddings and orders are those of the original; nothing of diffusers is used.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6
"""Of norms in the autoencoder and before a transformer; those of the UNet have torch's own 1e-5."""


def sinusoid(times: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = times[:, None].double() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        conv = nn.Conv2d(before, after, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, before), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, after))
        conv = nn.Conv2d(after, after, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, after), nn.SiLU(), nn.Dropout(0), conv)
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        hidden = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(hidden)


class AttentionBlock(nn.Module):
    """Each head's query, key and value lie together in one convolution's channels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).unbind(2)
        weights = torch.einsum("nhct,nhcs->nhts", q, k).div(q.shape[2] ** 0.5).softmax(-1)
        mixed = torch.einsum("nhts,nhcs->nhct", weights, v).flatten(1, 2)
        return (flat + self.proj_out(mixed)).view_as(x)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context, channels, bias=False)
        self.to_v = nn.Linear(context, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            layer(given).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Gated(channels), nn.Dropout(0), nn.Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=EPSILON)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(Transformer(channels, context, heads) for _ in range(depth))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        flat = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            flat = block(flat, context)
        return x + self.proj_out(flat.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class UNet(nn.Module):
    """`unet_config.params`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        width, depth = config["model_channels"], config["num_res_blocks"]
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(config["in_channels"], width, 3, padding=1)])])
        channels, skips = width, [width]
        factors = config["channel_mult"]
        for level, factor in enumerate(factors):
            for _ in range(depth):
                block = [ResBlock(channels, factor * width, 4 * width), *self._attention(level, factor * width)]
                self.input_blocks.append(nn.ModuleList(block))
                channels = factor * width
                skips.append(channels)
            if level < len(factors) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
        last = len(factors) - 1
        middle = [
            ResBlock(channels, channels, 4 * width),
            self._make(channels),
            ResBlock(channels, channels, 4 * width),
        ]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for number in range(depth + 1):
                after = factors[level] * width
                block = [ResBlock(channels + skips.pop(), after, 4 * width), *self._attention(level, after)]
                channels = after
                if level and number == depth:
                    block.append(Upsample(channels))
                self.output_blocks.append(nn.ModuleList(block))
        conv = nn.Conv2d(width, config["out_channels"], 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), conv)

    def _attention(self, level: int, channels: int) -> list[nn.Module]:
        return [self._make(channels)] if 2**level in self.config["attention_resolutions"] else []

    def _make(self, channels: int) -> nn.Module:
        width = self.config.get("num_head_channels", -1)
        heads = self.config["num_heads"] if width == -1 else channels // width
        if not self.config.get("use_spatial_transformer"):
            return AttentionBlock(channels, heads)
        return SpatialTransformer(channels, self.config["context_dim"], heads, self.config["transformer_depth"])

    def forward(self, x: Tensor, times: Tensor, context: Tensor | None = None) -> Tensor:
        time = self.time_embed(sinusoid(times, self.config["model_channels"]).to(x))
        skips = []
        for block in self.input_blocks:
            x = run(block, x, time, context)
            skips.append(x)
        x = run(self.middle_block, x, time, context)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], dim=1), time, context)
        return self.out(x)


def run(block: Any, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
    for layer in block:
        x = layer(x, time, context)
    return x


# --- the first stage ---------------------------------------------------------------------------------------


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=EPSILON)


class ResnetBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(before), norm(after)
        self.conv1, self.conv2 = nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        q, k, v = (layer(hidden).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Stage(nn.Module):
    """Blocks of one resolution, each perhaps with attention."""

    def __init__(self, before: int, after: int, count: int, attended: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(before if number == 0 else after, after) for number in range(count))
        self.attn = nn.ModuleList(AttnBlock(after) for _ in range(count if attended else 0))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        return x


class Conv(nn.Module):
    """What the original wraps a convolution in, to halve or double the resolution."""

    def __init__(self, channels: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, **options)


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResnetBlock(channels, channels), ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = [config["ch"] * factor for factor in config["ch_mult"]]
        sizes = [config["resolution"] // 2**level for level in range(len(widths))]
        self.conv_in = nn.Conv2d(config["in_channels"], config["ch"], 3, padding=1)
        self.down = nn.ModuleList(
            Stage(before, after, config["num_res_blocks"], size in config["attn_resolutions"])
            for before, after, size in zip([config["ch"], *widths], widths, sizes, strict=False)
        )
        for stage, width in list(zip(self.down, widths, strict=True))[:-1]:
            stage.downsample = Conv(width, stride=2)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        channels = config["z_channels"] * (2 if config["double_z"] else 1)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample.conv(functional.pad(x, (0, 1, 0, 1)))
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths = [config["ch"] * factor for factor in config["ch_mult"]]
        sizes = [config["resolution"] // 2**level for level in range(len(widths))]
        self.conv_in = nn.Conv2d(config["z_channels"], widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Stage(before, after, config["num_res_blocks"] + 1, size in config["attn_resolutions"])
            for before, after, size in zip([*widths[1:], widths[-1]], widths, sizes, strict=True)
        )
        for stage, width in list(zip(self.up, widths, strict=True))[1:]:
            stage.upsample = Conv(width, padding=1)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config["out_ch"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            x = stage(x)
            if hasattr(stage, "upsample"):
                x = stage.upsample.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(functional.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)


class FirstStage(nn.Module):
    """`first_stage_config.params`: with codes where it is not of `double_z`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        inner, width = config["ddconfig"], config["embed_dim"]
        self.encoder, self.decoder = Encoder(inner), Decoder(inner)
        double = 2 if inner["double_z"] else 1
        self.quant_conv = nn.Conv2d(double * inner["z_channels"], double * width, 1)
        self.post_quant_conv = nn.Conv2d(width, inner["z_channels"], 1)
        if not inner["double_z"]:
            self.quantize = Codebook(config["n_embed"], width)

    def encode(self, x: Tensor) -> Tensor:
        """Before quantisation; the mean where there are moments."""
        moments = self.quant_conv(self.encoder(x))
        return moments if hasattr(self, "quantize") else moments.chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        if hasattr(self, "quantize"):
            flat = z.movedim(1, -1)
            codes = self.quantize.embedding.weight
            z = codes[torch.cdist(flat.flatten(0, 2), codes).argmin(1)].view_as(flat).movedim(-1, 1)
        return self.decoder(self.post_quant_conv(z))
