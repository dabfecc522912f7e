"""What a user may ask for: the keys of a recipe, their ranges and defaults, and the files they are read from.

Nothing here looks at data or at a prior.
"""

from ld3m.recipe.schema import (
    DataRecipe,
    DistilledDataRecipe,
    DistillRecipe,
    EvaluateRecipe,
    ExpertsRecipe,
    HubRecipe,
    NetworkRecipe,
    Recipe,
    SamplerRecipe,
    ScorerRecipe,
)

__all__ = [
    "DataRecipe",
    "DistillRecipe",
    "DistilledDataRecipe",
    "EvaluateRecipe",
    "ExpertsRecipe",
    "HubRecipe",
    "NetworkRecipe",
    "Recipe",
    "SamplerRecipe",
    "ScorerRecipe",
]
