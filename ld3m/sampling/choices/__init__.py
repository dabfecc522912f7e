"""Choices from an over-draw: which of the images that were drawn of a class are kept, and by which weights they count.

A choice is one function of a `ClassTask` and the drawn latents that returns `Kept` (`ld3m/sampling/approach.py`).
"""

from ld3m.registry import Registry
from ld3m.sampling.approach import Choice
from ld3m.sampling.choices.confident import confident, least_confident
from ld3m.sampling.choices.k_center import k_center
from ld3m.sampling.choices.moments import moments
from ld3m.sampling.choices.subgroup import subgroup

CHOICES: Registry[Choice] = Registry(
    "ld3m.sampling_choices",
    "sample.choose",
    {
        "k-center": k_center,
        "confident": confident,
        "least-confident": least_confident,
        "subgroup": subgroup,
        "moments": moments,
    },
)
