"""Images of any kind as the uint8 pixels that prepared data holds."""

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ld3m.data.examples import UnreadableImageError


def upright(image: Image.Image) -> Image.Image:
    """A loaded image, turned as its EXIF data says."""
    image.load()  # some formats have their EXIF after the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return ImageOps.exif_transpose(image)  # copies the image even if there is nothing to turn
    return image


def is_transparent(image: Image.Image) -> bool:
    """Whether an image says of its pixels how much of them is seen."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def on_white(image: Image.Image) -> Image.Image:
    """A loaded image as it looks on white paper, if it is transparent anywhere; else itself."""
    if not is_transparent(image):
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def convert(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """A PIL image of at most 8 bits per value as uint8 [channels, resolution, resolution].

    EXIF rotation is applied, transparency is laid on white; the short side is resized (bicubic, antialiased) to
    `resolution` and the centre cropped. Images of more bits become such by `depth.to_8_bits`.

    Raises:
        UnreadableImageError: if it has more than 8 bits.
    """
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UnreadableImageError(f"has more than 8 bits per value (mode {image.mode}); save it as 8-bit PNG")
    image = on_white(image)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def convert_grey(images: np.ndarray, resolution: int) -> np.ndarray:
    """Grey uint8 images [n, H, W] as [n, 1, resolution, resolution], each as `convert` makes it, in two calls for all.

    Pillow resizes rows, rounds to 8 bits, and then resizes columns. No row sees another and no column sees another:
    the images may stand above each other for the first pass and side by side for the second.
    """
    count, height, width = images.shape
    if (height, width) == (resolution, resolution):
        return images[:, None]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    bicubic = Image.Resampling.BICUBIC
    tall = Image.fromarray(np.ascontiguousarray(images).reshape(count * height, width))
    narrowed = np.asarray(tall.resize((resolution, tall.height), bicubic, box=(left, 0, left + side, tall.height)))
    rows = narrowed.reshape(count, height, resolution).swapaxes(0, 1)  # [height, count, resolution]
    wide = Image.fromarray(np.ascontiguousarray(rows).reshape(height, count * resolution))
    fitted = np.asarray(wide.resize((wide.width, resolution), bicubic, box=(0, top, wide.width, top + side)))
    return fitted.reshape(resolution, count, resolution).swapaxes(0, 1)[:, None]
