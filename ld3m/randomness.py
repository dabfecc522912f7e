"""Random draws keyed by what they are for, never by the process that makes them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """A fresh CPU generator that is a function of its key alone.

    Equal keys give equal streams on every process and after every resume; different keys give unrelated
    ones. Draws are made on the CPU and moved, so they do not depend on the device either.

    Args:
        purpose: what the draw is for, such as "noise" or "real batch".
        key: iteration, class, image: whatever distinguishes this draw from others of the same purpose.
    """
    digest = hashlib.blake2b(repr((seed, purpose, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@contextmanager
def global_draws(source: torch.Generator) -> Iterator[None]:
    """Makes what is drawn without a generator, such as initial weights and dropout, a function of `source` alone.

    Seeds torch's global generators, of every device, for what runs inside; the CPU's is restored at the end.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=source)))
        yield
