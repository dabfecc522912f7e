"""A door that stays: programs on published cards import `ld3m.augment`. The code is in `ld3m.images.augment`."""

from ld3m.images.augment import OPERATIONS, Augmentation, draw

__all__ = ["OPERATIONS", "Augmentation", "draw"]
