"""A prior's sizes without its weights: a folder of its configurations with random weights, for rehearsals."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ld3m.errors import UserError
from ld3m.files import write_tensors, write_text
from ld3m.priors import whole
from ld3m.priors.diffusers_layout import UNUSED, is_whole, read_index
from ld3m.priors.kinds.ldm import read_class_table
from ld3m.priors.loading import Parts
from ld3m.priors.source import outline
from ld3m.recipe import SamplerRecipe

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
"""Bytes that CLIP's vocabulary writes as the characters of the same number; the others are those from 256 on."""


def random_copy(source: str, folder: Path) -> None:
    """Writes a prior with random weights in the place of its own, the same each time, in float16.

    `priors.load` takes it as it takes the prior itself, of which only the configurations need to be on this machine. It
    has the prior's shapes and costs what the prior costs; its images are noise.

    Args:
        folder: to write, which is missing or empty.

    Raises:
        UserError: if the configurations are not here or are damaged, or the folder cannot be written to.
    """
    here = outline(source)
    kind = read_index(here).kind
    parts = Parts(here, "cpu", SamplerRecipe(source=str(here)))
    for path in sorted(path for path in here.rglob("*") if path.suffix in (".json", ".txt")):
        if not path.name.endswith(".index.json"):  # of weights in several files
            write_text(folder / path.relative_to(here), path.read_text(encoding="utf-8"))
    with whole(here, kind), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if not is_whole(here):
            _network(parts, ".").half().save_pretrained(folder)
            return
        for part in sorted(path.parent.name for path in here.glob("*/config.json")):
            if part in UNUSED:
                continue
            if part != "class_embedder":
                _network(parts, part).half().save_pretrained(folder / part)
                continue
            table = read_class_table(parts)
            width = parts.json("unet/config.json", dict[str, Any])["cross_attention_dim"]
            rows = torch.randn(len(table.classes) + table.null_class, width)
            write_tensors(folder / part / "model.safetensors", {"weight": rows.half()})
    for part in sorted(path.parent.name for path in here.glob("text_encoder*/config.json")):
        tokenizer, config = part.replace("text_encoder", "tokenizer"), parts.json(f"{part}/config.json", dict[str, Any])
        if _architecture(config).startswith("CLIP") and not (here / tokenizer).is_dir():
            _write_tokenizer(folder / tokenizer, config)


def _network(parts: Parts, part: str) -> Any:
    """The network of a part's configuration, with the weights it would have before training."""
    config = parts.json(f"{part}/config.json", dict[str, Any])
    if part.startswith("text_encoder"):
        try:
            import transformers
        except ImportError:
            raise UserError(
                f"prior.source: a {parts.kind()} needs the package transformers: pip install 'ld3m[text]'"
            ) from None
        encoder = getattr(transformers, _architecture(config), None)
        if encoder is None:
            raise UserError(
                f"prior.source: {parts.folder / part} is a {_architecture(config)}, which transformers does not know"
            )
        return encoder(encoder.config_class.from_dict(config))
    import diffusers

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or not issubclass(kind, nn.Module):
        raise UserError(
            f"prior.source: {parts.folder / part} is a {config.get('_class_name')}, which diffusers does not know"
        )
    network = parts.read(part, lambda _: kind.from_config(config))
    blocks = getattr(network, "transformer_blocks", []) if parts.kind() == "DiTPipeline" else []
    for block in blocks:  # share one table of classes
        first = network.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
        block.norm1.emb.class_embedder.embedding_table.weight.data.copy_(first)
    return network


def _architecture(config: dict[str, Any]) -> str:
    """The class of transformers that a text encoder's configuration names."""
    return str((config.get("architectures") or ["CLIPTextModel"])[0])


def _write_tokenizer(folder: Path, encoder: dict[str, Any]) -> None:
    """A tokenizer of single bytes: as CLIP's own, whose vocabulary is none of the configurations, without merges."""
    from transformers import CLIPTokenizer

    others = [byte for byte in range(256) if byte not in BYTES]
    letters = [chr(byte) for byte in BYTES] + [chr(256 + number) for number in range(len(others))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_text(folder / "vocab.json", json.dumps({word: number for number, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=int(encoder["max_position_embeddings"]),
    )
    tokenizer.save_pretrained(folder)
