"""A picture: from a file to uint8 [3, S, S], by one rule, whatever the file's extension says.

S is the side in pixels. Nothing here needs torch: processes that only decode start in no time.

    format        by content: JPEG, PNG, BMP, GIF, WebP, TIFF or PPM; no other reader ever runs
    frame         the first one of an animation, the first page of a document
    orientation   as EXIF says
    alpha         over white: RGBA, LA, palettes and colour keys with transparency
    16-bit grey   times 255 / 65535; 16-bit colour likewise
    32-bit grey   its range is not known: the first of 0..1 (floats only), 0..255 and 0..65535
                  that holds all its values becomes 0..255; if none does, it cannot be read
    CMYK, YCbCr   Pillow's plain conversion; colour profiles are not applied
    size          both sides to S, bilinear with antialias; the aspect is not kept
"""

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from graft.errors import DataError

# Raised when a file comes to mean other pixels: what was computed from them is then not found.
FORMAT = 1
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 64_000_000

# Our limit is checked from the header, before anything is decoded. Pillow's own is one for the
# whole process, first warns and then refuses, and could not be raised by `dataset.max_pixels`.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of odd metadata, file by file; what is wrong with the picture itself is an error.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Unreadable(DataError):
    """A file that cannot be used as a picture; `reason` says why, without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}.")
        self.reason = reason


def decode(
    path: Path, size: int, *, max_pixels: int | None = MAX_PIXELS, digest: str | None = None
) -> NDArray[np.uint8]:
    """A picture file as uint8 [3, size, size], RGB, by the rule above.

    With `digest` (`digest_of`), from a file that still has these bytes.

    For what torchvision users have, an RGB file without an EXIF turn, this is bit for bit what
    `Resize((size, size))` makes of the Pillow picture.

    Raises:
        Unreadable: the file is missing, not a picture, damaged, changed, or has over `max_pixels`.
    """
    with opened(path, max_pixels=max_pixels, digest=digest) as picture:
        resized = rgb(picture).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def decode_all(
    files: Sequence[tuple[Path, str | None]], size: int, max_pixels: int | None
) -> tuple[NDArray[np.uint8], str]:
    """Several picture files, each with its digest, as uint8 [B, 3, size, size].

    Where one cannot be used, those before it, and why not.
    """
    out = np.empty((len(files), 3, size, size), dtype=np.uint8)
    for number, (path, digest) in enumerate(files):
        try:
            out[number] = decode(path, size, max_pixels=max_pixels, digest=digest)
        except Unreadable as error:
            return out[:number], error.reason
    return out, ""


@contextmanager
def opened(
    path: Path, *, max_pixels: int | None, digest: str | None = None
) -> Iterator[Image.Image]:
    """A picture whose header has been read, and nothing else yet.

    Whatever goes wrong, here or while the caller decodes it, becomes Unreadable.
    """
    try:
        with (
            opened_file(path) as stream,
            Image.open(_as_checked(stream, digest), formats=FORMATS) as picture,
        ):
            pixels = picture.width * picture.height
            if max_pixels is not None and pixels > max_pixels:
                raise Unreadable(
                    path,
                    f"{picture.width}x{picture.height} is {pixels:,} pixels, more than "
                    f"dataset.max_pixels={max_pixels}",
                )
            yield picture
    except Unreadable:
        raise
    except _Changed:
        raise Unreadable(path, "changed since it was checked") from None
    except UnidentifiedImageError:
        raise Unreadable(path, f"not a picture ({', '.join(FORMATS)})") from None
    except Exception as error:
        # Decoders raise nearly anything on damaged files: struct.error, IndexError, EOFError, ...
        raise Unreadable(path, _reason(error)) from error


def digest_of(stream: BinaryIO) -> str:
    """blake2b of what is left of a file, 16 hexadecimal digits."""
    return hashlib.file_digest(
        cast(Any, stream), lambda: hashlib.blake2b(digest_size=8)
    ).hexdigest()


class _Changed(Exception):
    """A file has other bytes than were checked."""


def _as_checked(stream: BinaryIO, digest: str | None) -> BinaryIO:
    """The file, read once and compared, so that what is decoded is what was compared."""
    if digest is None:
        return stream
    content = io.BytesIO(stream.read())
    if digest_of(content) != digest:
        raise _Changed
    content.seek(0)
    return content


@contextmanager
def opened_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file for reading; anything else is refused without being opened.

    Raises:
        Unreadable: it is a folder, a pipe, a socket or a device, or it is empty.
        OSError: it is missing, not permitted, or a loop of links.
    """
    _must_be_a_file(path, os.stat(path))
    # What `path` names may have changed since: a pipe must not block, and is looked at again.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        _must_be_a_file(path, os.fstat(handle))
        yield stream


def rgb(picture: Image.Image) -> Image.Image:
    """An opened picture as mode RGB, turned upright, with its alpha over white."""
    picture.load()
    if picture.mode == "F" or picture.mode.startswith("I"):
        plain = _scaled(picture).convert("RGB")
    elif picture.has_transparency_data:
        above = picture.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    else:
        plain = picture.convert("RGB")
    turn = _TURNS.get(_orientation(picture))
    return plain if turn is None else plain.transpose(turn)


def _must_be_a_file(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(path, f"{_KINDS.get(kind, 'something')}, not a file")
    if status.st_size == 0:
        raise Unreadable(path, "an empty file")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return f"truncated or damaged ({str(error) or type(error).__name__})"


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Metadata that cannot be read says nothing; the picture itself is whole.
        return 1


def _scaled(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8 bits. `convert("L")` would cut off what is above 255: white."""
    values = np.asarray(picture).astype(np.float32)
    grey = np.rint(values * np.float32(255 / _largest(picture, values))).astype(np.uint8)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        grey[values == key] = 255
    return Image.fromarray(grey)


def _largest(picture: Image.Image, values: NDArray[np.float32]) -> int:
    """The value that stands for white."""
    if picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM"):
        return 65535
    for largest in (1, 255, 65535) if picture.mode == "F" else (255, 65535):
        if values.min() >= 0 and values.max() <= largest:
            return largest
    raise ValueError("32-bit values outside 0 to 65535 have no known range")
