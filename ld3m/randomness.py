"""Random draws keyed by what they are for, never by the process that makes them."""

import hashlib

import torch


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """A fresh CPU generator that is a function of its key alone.

    Equal keys give equal streams on every process and after every resume; different keys give unrelated
    ones. Draws are made on the CPU and moved, so they do not depend on the device either.

    Args:
        seed: the recipe's seed.
        purpose: what the draw is for, such as "noise" or "real batch".
        key: iteration, class, image: whatever tells this draw from the others of its purpose.
    """
    digest = hashlib.blake2b(repr((seed, purpose, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
