"""Hours of an evaluation before it is paid for."""

from pathlib import Path

import pytest
import torch

from ld3m.data.prepared import ImageSet
from ld3m.distillation import plan_evaluation
from ld3m.distillation.plan_evaluation import evaluation_hours
from ld3m.evaluation.effort import Cost
from ld3m.recipe import Recipe
from ld3m.sizing.devices import DEVICES

CPU = torch.device("cpu")
IMAGES = ImageSet([*"abcdefghij"], torch.zeros(3), torch.ones(3), {"test": [100] * 10}, [*range(10)], [], Path(), 32)


def recipe(**evaluate: object) -> Recipe:
    about = {"data": {"source": "x", "resolution": 32, "channels": 3}, "prior": {"source": "pixels"}}
    distill = {"images_per_class": 5, "factor": 2}
    settings = {"arch": ["convnet"], "seeds": 3, "epochs": 100, **evaluate}
    return Recipe.model_validate({"name": "x", **about, "distill": distill, "evaluate": settings})


def test_hours_of_a_device_are_those_of_the_operations() -> None:
    """By hand for a ConvNet of width 128: three 3 × 3 convolutions at 32, 16 and 8 px, and 2,048 features to 10."""
    operations = 2 * (9 * 128 * (3 * 32**2 + 128 * 16**2 + 128 * 8**2) + 2048 * 10)
    device = DEVICES["a100-40gb"]
    in_all = 3 * operations * 200 * 100 + operations * 1000  # 5 images of 4 small ones, ten classes, tested on 1,000
    for processes, networks in ((1, 3), (2, 2), (8, 1)):
        (hours,) = evaluation_hours(recipe(), IMAGES, processes, CPU, device).values()
        assert hours == pytest.approx(networks * device.seconds(in_all, "float32", False) / 3600)
    half = recipe(together=True, dtype="bfloat16", lr="learnt")
    (hours,) = evaluation_hours(half, IMAGES, 6, CPU, device).values()
    assert hours == pytest.approx(0.5 * device.seconds(in_all, "bfloat16", False) / 3600)


def test_hours_here_are_those_of_a_timed_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_evaluation, "costs", lambda sets, *_: {"convnet": Cost(0.5, 0.25)})
    assert evaluation_hours(recipe(), IMAGES, 1, CPU, None) == {"convnet": 3 * (0.5 * 200 * 100 + 0.25 * 1000) / 3600}
