"""A door that stays: programs on published cards import `ld3m.formation`, now `ld3m.images.multi_formation`."""

from ld3m.images.multi_formation import enlarge, pack, shown, unpack

__all__ = ["enlarge", "pack", "shown", "unpack"]
