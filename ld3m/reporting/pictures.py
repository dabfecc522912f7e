"""The images of a run as its page shows them: at several iterations, and real ones to look at beside them."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ld3m.errors import UserError
from ld3m.images import grids
from ld3m.reading import unless_unreadable
from ld3m.reporting import webp
from ld3m.runs.folder import REAL, classes, has_result, image_paths, metadata

MOST_COMPARED = 20
"""Images that are shown side by side: a real one, and as they were first and last."""
ELEMENT = 200
"""Bytes of a picture's element in the page without its content."""
SHARE_OF_REAL = 0.15
"""Share of a page's room for pictures that the real images may take."""
LAYOUT_BEFORE = 10
"""Columns of a picture of one image per class in older versions, however few classes there were."""

Sheet = Path | Image.Image


@dataclass(frozen=True)
class Frame:
    """All images of the page, at one iteration."""

    iteration: int
    uri: str


@dataclass(frozen=True)
class Images:
    """Which images the page shows, and how they lie in a frame: in rows, class by class."""

    classes: list[str]
    each: int
    columns: int
    all_classes: int
    images_per_class: int
    left_out: int
    """Pictures of the run's evolution that have another layout."""
    sheets: Mapping[int, Sheet]
    """All images by iteration, in order."""
    real_sheet: Path | None
    """As many real images in the same layout, if the run kept them."""
    frames: Sequence[Frame] = ()
    """The sheets, or some of them, as the page has them."""
    real: str | None = None

    @classmethod
    def of(cls, folder: Path, images_per_class: int, last: int, unread: list[str]) -> "Images | None":
        """What there is to show of a run; None if there are no pictures of it yet.

        Args:
            last: its last iteration, which its images are of.
            unread: is added a line for each picture that cannot be read.
        """
        names = unless_unreadable(unread, [], classes, folder)
        if not names and has_result(folder):  # damaged; the latents have them too
            names = unless_unreadable([], [], lambda: metadata(folder).classes)
        if not names:
            return None
        found = {name: unless_unreadable(unread, [], image_paths, folder, name) for name in names}
        if has_result(folder) and (few := [name for name in names if len(found[name]) < images_per_class]):
            unread.append(f"images/{few[0]} has {len(found[few[0]])} images, not {images_per_class}")
        count, each = grids.shown(len(names), images_per_class)
        columns = grids.columns(count, each)
        drawn = unless_unreadable(unread, {}, grids.frames, folder)
        read = {i: unless_unreadable(unread, None, _size, path) for i, path in drawn.items()}
        sizes = {iteration: size for iteration, size in read.items() if size}
        sheets: dict[int, Sheet] = {}
        if sizes:
            if each == 1 and not _fits(sizes[max(sizes)], count, columns):
                columns = LAYOUT_BEFORE
            sheets |= {i: drawn[i] for i, size in sizes.items() if _fits(size, count * each, columns)}
        else:
            paths = [found[name] for name in names[:count]]
            each = min(each, *map(len, paths))  # a set of others may have unlike numbers
            if each:
                columns = grids.columns(count, each)
                shown = [path for of_class in paths for path in of_class[:each]]
                if sheet := unless_unreadable(unread, None, _sheet, shown, columns):
                    sheets[last] = sheet
        if not sheets:
            return None
        real = unless_unreadable(unread, None, _real, folder, count * each, columns)
        left_out = max(0, len(sizes) - len(sheets))
        return cls(list(names[:count]), each, columns, len(names), images_per_class, left_out, sheets, real)

    def compressed(self, room: int) -> "Images":
        """With frames for the page, so many that all its pictures take `room` bytes at most."""
        room = (room - ELEMENT * (len(self.sheets) + 1)) * 3 // 4  # base64 takes four characters for three bytes
        of_real = int(SHARE_OF_REAL * room) if self.real_sheet else 0
        real = _data_uri(webp.fit({0: self.real_sheet}, self.columns, of_real)[0]) if self.real_sheet else None
        shrunk = webp.fit(self.sheets, self.columns, room - of_real)
        return replace(self, frames=[Frame(i, _data_uri(picture)) for i, picture in shrunk.items()], real=real)

    @property
    def compared(self) -> list[tuple[int, str]]:
        """The images to show side by side, the first of each class: index in a frame, and class."""
        return [(label * self.each, name) for label, name in enumerate(self.classes[:MOST_COMPARED])]

    @property
    def rows(self) -> int:
        """Rows of images in a frame."""
        return math.ceil(len(self.classes) * self.each / self.columns)

    @property
    def small(self) -> int:
        """Pixels of an edge up to which an image is shown without smoothing."""
        return webp.SMALL


def _size(path: Path) -> tuple[int, int]:
    return webp.opened(path).size


def _fits(size: tuple[int, int], count: int, columns: int) -> bool:
    """Whether a sheet of that width and height can be so many square images in rows of so many."""
    edge = size[0] // columns
    return size == (columns * edge, math.ceil(count / columns) * edge)


def _sheet(paths: Sequence[Path], columns: int) -> Image.Image:
    """Images side by side.

    Raises:
        UserError: if one cannot be read, or has another size than the first.
    """
    edge = webp.opened(paths[0]).width
    sheet = Image.new("RGB", (edge * columns, edge * math.ceil(len(paths) / columns)), "white")
    for index, path in enumerate(paths):
        image = webp.opened(path)
        if image.size != (edge, edge):
            raise UserError(f"RUN: {path} is {image.width} x {image.height} pixels, not {edge} x {edge}; remove it")
        sheet.paste(image, (index % columns * edge, index // columns * edge))
    return sheet


def _real(folder: Path, count: int, columns: int) -> Path | None:
    """The run's real images, if it kept them in the layout of its pictures."""
    path = folder / REAL
    return path if path.exists() and _fits(webp.opened(path).size, count, columns) else None


def _data_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
