"""A door that stays: packages that add data sources import `ld3m.sources`. The code is in `ld3m.data`."""

from ld3m.data.examples import Example, Examples, GreyArrays, Source
from ld3m.data.sources import SOURCES, open_source

__all__ = ["SOURCES", "Example", "Examples", "GreyArrays", "Source", "open_source"]
