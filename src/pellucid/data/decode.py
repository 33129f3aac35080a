"""From an image file of any kind to pixels: the one place that decides what odd files become.

    orientation   EXIF rotation is applied
    transparency  composited on a stated background, or kept where the caller asks for RGBA
    16 bit        scaled to 8 (Pillow alone would clip); floats must lie in [0, 1]
    CMYK, palette converted to RGB; grey is repeated
    animation     the first frame
    anything else, and any file that does not decode to its last pixel: `BadImage`

Contents decide the format, never the file's name. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

Encoded = str | os.PathLike[str] | bytes
"""An image file: where it is, or its contents."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
}
MAX_PIXELS = 89_478_485
"""Where Pillow begins to suspect a decompression bomb. Larger pictures are refused, not warned about."""

# What Pillow's readers raise on damaged files, gathered from its plugins.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_opening = threading.Lock()


class BadImage(ValueError):  # noqa: N818 - it names the image, which is what is wrong
    """A file that cannot be used as an image. `.reason` says why in a few words."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Header:
    """What an image file says of itself, read without decoding the pixels."""

    format: str
    mode: str
    width: int
    """Once upright, as is the height."""
    height: int
    frames: int
    rotated: bool
    """EXIF asks for a turn or a flip."""
    transparent: bool
    focal: float | None
    """Focal length in sides of the centre square, by EXIF's equivalent for 35 mm film (of one diagonal); None where it
    says none."""


def inspect(source: Encoded) -> Header:
    """Read an image's header. Raises `BadImage`."""
    try:
        with _open(source) as image:
            orientation, (width, height) = _orientation(image), image.size
            if image.format == "TIFF":  # whose size Pillow may already have turned
                width, height = image.tag_v2[256], image.tag_v2[257]  # type: ignore[attr-defined]
            if orientation in range(5, 9):
                width, height = height, width
            return Header(
                format="JPEG" if image.format == "MPO" else str(image.format),
                mode=image.mode,
                width=width,
                height=height,
                frames=1 if image.format == "MPO" else int(getattr(image, "n_frames", 1)),
                rotated=orientation in range(2, 9),
                transparent=image.has_transparency_data,
                focal=_focal(image, width, height),
            )
    except _DECODE_ERRORS as error:
        raise _bad(source, error) from error


def decode(
    source: Encoded, *, background: tuple[int, int, int] | None = (255, 255, 255), at_least: int | None = None
) -> Image.Image:
    """An image file as an upright 8-bit RGB picture.

    Args:
        source: a path, or the bytes of a file.
        background: 0..255 RGB under transparent pixels; None keeps transparency, and the result is RGBA.
        at_least: the caller needs no more pixels than this on the short side. A large JPEG is then
            decoded at 1/2, 1/4 or 1/8 of its size, never below `at_least`, several times faster.

    Raises:
        BadImage: the file is missing, unreadable, damaged, over `MAX_PIXELS`, or of no known format.
    """
    try:
        with _open(source) as image:
            if at_least is not None and image.format in ("JPEG", "MPO"):
                image.draft("RGB", (at_least, at_least))
            return upright_rgb(image, background)
    except _DECODE_ERRORS as error:
        raise _bad(source, error) from error


def upright_rgb(image: Image.Image, background: tuple[int, int, int] | None = (255, 255, 255)) -> Image.Image:
    """What `decode` makes of an image that is open already, by the same rules. Raises BadImage."""
    try:
        image.load()
        return _flatten(_eight_bit(_upright(image)), background)
    except _DECODE_ERRORS as error:
        raise _bad(b"", error) from error


def decode_mask(source: Encoded) -> Image.Image:
    """A label image as mode "L" holding region indices, 0 = ground.

    A palette image holds indices; its 255 ("void" by custom) counts as ground. A grey image that
    contains 255 is black and white, cut at 128, unless most of it is below; any other grey image holds
    indices, all below 128.

    Raises:
        BadImage: as `decode`, and for colour or ambiguous grey values.
    """
    try:
        with _open(source) as image:
            image.load()
            upright = _upright(image)
            if upright.mode == "P":
                index = np.array(upright)
                if index.any() and set(np.unique(index)) <= {0, 255}:  # black and white, saved with a palette
                    return Image.fromarray((index > 0).astype(np.uint8))
                return Image.fromarray(np.where(index == 255, 0, index).astype(np.uint8))
            if upright.mode in ("RGB", "RGBA"):
                rgb = np.asarray(upright.convert("RGB"))
                if not (rgb == rgb[..., :1]).all():
                    raise BadImage("a colour mask: save it as a palette image whose indices are the regions")
            grey = np.asarray(
                upright if upright.mode.startswith("I") else upright.convert("L"), dtype=np.int64
            )
            top = int(grey.max())
            if top == 255:
                if ((grey > 0) & (grey < 128)).sum() > (grey >= 128).sum():
                    raise BadImage(
                        "a mask that holds 255 and mostly small indices: is 255 a border? Save it as a palette image"
                    )
                return Image.fromarray((grey >= 128).astype(np.uint8))
            if top >= 128:
                raise BadImage(f"a mask with values up to {top}: use indices below 128, or black and white")
            return Image.fromarray(grey.astype(np.uint8))
    except _DECODE_ERRORS as error:
        raise _bad(source, error) from error


def prepare(image: Image.Image, size: int, channels: int = 3) -> np.ndarray:
    """The centre square of a picture at size x size, antialiased. (size, size, channels) uint8."""
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: use 3 for colour or 1 for grey")
    fitted = ImageOps.fit(
        image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC
    )
    return np.asarray(fitted, dtype=np.uint8).reshape(size, size, channels)


def prepare_mask(mask: Image.Image, size: int) -> np.ndarray:
    """The same centre square of a label image, nearest neighbour. (size, size) uint8."""
    return np.asarray(ImageOps.fit(mask, (size, size), Image.Resampling.NEAREST), dtype=np.uint8)


def _open(source: Encoded) -> Image.Image:
    """Header read, pixels not yet. The caller closes it."""
    if isinstance(source, bytes):
        if not source:
            raise BadImage("empty file")
        stream: IO[bytes] = io.BytesIO(source)
    else:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise BadImage(
                "a folder, not a picture" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            )
        if status.st_size == 0:
            raise BadImage("empty file")
        stream = Path(source).open("rb")  # noqa: SIM115 - the image closes it
    try:
        # catch_warnings swaps global state, hence the lock; only headers are read under it
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:  # whatever limit the process has set in Pillow
            raise BadImage(f"{image.width}x{image.height} pixels, over the limit of {MAX_PIXELS:,}")
    except BaseException:
        stream.close()
        raise
    image._exclusive_fp = True  # so that closing the image closes our stream
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except _DECODE_ERRORS:
        return 1


def _focal(image: Image.Image, width: int, height: int) -> float | None:
    try:
        film = float(image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
    except _DECODE_ERRORS:
        return None
    found = film / math.hypot(36, 24) * math.hypot(width, height) / min(width, height)
    return found if 0.1 < found < 100 else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return image.copy()  # unreadable EXIF asks for nothing; the pixels are whole


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadImage("32-bit values outside 0..65535: convert it to 8 or 16 bit")
        return Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        real = np.asarray(image)
        if not (np.isfinite(real).all() and real.min() >= 0 and real.max() <= 1):
            raise BadImage("floating-point values outside 0..1: convert it to 8 or 16 bit")
        return Image.fromarray(np.rint(real * 255).astype(np.uint8))
    return image


def _flatten(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if background is None:
        return image.convert("RGBA")
    if image.has_transparency_data:
        return Image.alpha_composite(
            Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA")
        ).convert("RGB")
    return image.convert("RGB")


def _bad(source: Encoded, error: BaseException) -> BadImage:
    name = "" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(error, BadImage):
        return BadImage(error.reason, name)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return BadImage(f"over the limit of {MAX_PIXELS:,} pixels", name)
    if isinstance(error, PermissionError):
        return BadImage("no permission to read it", name)
    if isinstance(error, FileNotFoundError):
        return BadImage("a link to nothing" if name and Path(name).is_symlink() else "no such file", name)
    if isinstance(error, OSError) and error.errno is not None:
        return BadImage(os.strerror(error.errno).lower(), name)
    if isinstance(error, Image.UnidentifiedImageError):
        return BadImage("not an image of a format we read (" + ", ".join(FORMATS) + ")", name)
    return BadImage(f"damaged, or of an unusual kind ({str(error) or type(error).__name__})", name)
