"""Sampling methods, a file each: where the chains of a class start, what guides them, what is drawn and kept.

A method is one function of a `ClassTask` that returns an `Approach` (`ld3m/sampling/approach.py`).
"""

from ld3m.registry import Registry
from ld3m.sampling.approach import Method
from ld3m.sampling.methods.cgs import cgs
from ld3m.sampling.methods.coda import coda
from ld3m.sampling.methods.d3hr import d3hr
from ld3m.sampling.methods.d4m import d4m
from ld3m.sampling.methods.ddoq import ddoq
from ld3m.sampling.methods.igd import igd
from ld3m.sampling.methods.mgd3 import mgd3
from ld3m.sampling.methods.plain import plain

METHODS: Registry[Method] = Registry(
    "ld3m.sampling_methods",
    "sample.method",
    {
        "plain": plain,
        "d4m": d4m,
        "ddoq": ddoq,
        "mgd3": mgd3,
        "coda": coda,
        "d3hr": d3hr,
        "igd": igd,
        "cgs": cgs,
    },
)
