"""The metadata at the beginning of a card, which the Hub indexes: read as people wrote it, and ours put in."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ld3m.errors import UserError, one_line

BLOCK = re.compile(r"\s*---[\r\n]+(.*?)(?:[\r\n]+|(?<=\n))---[ \t]*(?:\r\n|\n|$)", re.DOTALL)
"""Where the Hub finds it."""
TAGS = ("dataset-distillation", "ld3m", "synthetic", "diffusion", "arxiv:2403.03881")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
NON_COMMERCIAL = re.compile(r"(^|-)nc(-|$)|imagenet-terms|non-?commercial|research")
"""Part of the name of any licence that is flagged as non-commercial."""
WITHOUT_HUB_ID = {"imagenet-terms-of-access": "https://www.image-net.org/download.php"}
"""Licences that the Hub has no id for, and links to them."""

Meta = Mapping[str, Any]


def split(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and text.

    Raises:
        UserError: if the metadata cannot be read, so that nothing that people wrote is lost.
    """
    card = card.removeprefix("\ufeff")
    match = BLOCK.match(card)
    if not match:
        return {}, card
    try:
        meta = yaml.safe_load(match[1]) or {}
        if not isinstance(meta, dict):
            raise ValueError(f"no mapping but {meta!r}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--to: README.md there has damaged metadata ({one_line(error)}); mend it first") from None
    return meta, card[match.end() :]


def joined(meta: Meta, text: str) -> str:
    """A card of metadata and text."""
    return f"---\n{yaml.safe_dump(dict(meta), sort_keys=False, allow_unicode=True)}---\n{text}"


def with_config(
    meta: Meta,
    title: str,
    config: str,
    images: int,
    licences: Sequence[str],
    sources: Sequence[str],
    tags: Sequence[str],
) -> dict[str, Any]:
    """Metadata that covers one more config; people's own keys stay.

    Args:
        config: its name; a config of that name is replaced.
        licences: that apply to it, as far as known.
        sources: data sets of the Hub that it was made from.
        tags: of it.

    Raises:
        UserError: if a key that we add to has no value of its kind.
    """
    sources = _and_ours(meta, "source_datasets", sources)
    return {
        **meta,
        "pretty_name": title,
        **_licence(licences, meta),
        "task_categories": ["image-classification"],
        "size_categories": sorted(_and_ours(meta, "size_categories", [_size(images)]), key=str),
        **({"source_datasets": sources} if sources else {}),
        "tags": _and_ours(meta, "tags", tags),
        "configs": _configs(meta, config),
    }


def _configs(meta: Meta, config: str) -> list[dict[str, Any]]:
    """All configs by name; the first is the default one, if there are several."""
    before = _listed(meta, "configs")
    if bad := [each for each in before if not isinstance(each, dict) or "config_name" not in each]:
        raise UserError(f"--to: README.md there has a config without a config_name ({bad[0]!r}); mend it first")
    ours = {"config_name": config, "data_files": [{"split": "train", "path": f"{config}/*.parquet"}]}
    others = [{key: each[key] for key in each if key != "default"} for each in before if each["config_name"] != config]
    first, *rest = sorted([*others, ours], key=lambda each: str(each["config_name"]))
    return [first | {"default": True}, *rest] if rest else [first]


def _listed(meta: Meta, key: str) -> list[Any]:
    """A list of the metadata, which people may have written as one value or left empty."""
    value = meta.get(key) or []
    if not isinstance(value, str | list):
        raise UserError(f"--to: README.md there has {key}: {value!r}, which is no list; mend it first")
    return [value] if isinstance(value, str) else value


def _and_ours(meta: Meta, key: str, ours: Iterable[str]) -> list[Any]:
    """A list of the metadata, and after it what it lacks of ours."""
    before = _listed(meta, key)
    return [*before, *(each for each in dict.fromkeys(ours) if each not in before)]


def _size(images: int) -> str:
    return next((name for limit, name in SIZES if images < limit), "1M<n<10M")


def _licence(licences: Sequence[str], meta: Meta) -> dict[str, Any]:
    """The licence keys for all configs; one that is unknown makes them unknown for all."""
    if foreign := next((licence for licence in licences if licence in WITHOUT_HUB_ID), None):
        return {"license": "other", "license_name": foreign, "license_link": WITHOUT_HUB_ID[foreign]}
    if meta.get("license") == "other" and "license_name" in meta:
        return {}
    named = _and_ours(meta, "license", licences or ["unknown"])
    # Beside one that forbids commercial use, another would read as a choice.
    named = [licence for licence in named if NON_COMMERCIAL.search(str(licence))] or named
    return {"license": named[0] if len(named) == 1 else named}
