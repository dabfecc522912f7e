"""Choices from an over-draw: which of the images that were drawn of a class are kept, and by which weights they count.

A choice is one function of a `ClassTask` and the drawn latents that returns `Kept` (`ld3m/sampling/approach.py`).
"""

from ld3m import registry
from ld3m.sampling.approach import Choice
from ld3m.sampling.choices.confident import confident, least_confident
from ld3m.sampling.choices.k_center import k_center
from ld3m.sampling.choices.moments import moments
from ld3m.sampling.choices.subgroup import subgroup

CHOICES: dict[str, Choice] = {
    "k-center": k_center,
    "confident": confident,
    "least-confident": least_confident,
    "subgroup": subgroup,
    "moments": moments,
}
"""By the name that `sample.choose` gives; other packages add theirs through entry points of the group
`ld3m.sampling_choices`."""


def choice(name: str) -> Choice:
    """The choice of a name.

    Raises:
        UserError: if there is none.
    """
    return registry.find("ld3m.sampling_choices", CHOICES, name, "sample.choose")
