"""What a user may ask for: the keys of recipes, their ranges, defaults and meanings, and the files they are read from.

Validation is pure, and nothing here opens data, a prior or a run: whoever needs those looks for them first.
"""

from ld3m.recipe.data import DataRecipe, DistilledDataRecipe, ScorerRecipe
from ld3m.recipe.evaluation import EvaluateRecipe
from ld3m.recipe.networks import ExpertsRecipe, NetworkRecipe, TeacherRecipe
from ld3m.recipe.rendering import SamplerRecipe
from ld3m.recipe.sampling import SampleRecipe
from ld3m.recipe.schema import DistillRecipe, HubRecipe, Recipe

__all__ = [
    "DataRecipe",
    "DistillRecipe",
    "DistilledDataRecipe",
    "EvaluateRecipe",
    "ExpertsRecipe",
    "HubRecipe",
    "NetworkRecipe",
    "Recipe",
    "SampleRecipe",
    "SamplerRecipe",
    "ScorerRecipe",
    "TeacherRecipe",
]
