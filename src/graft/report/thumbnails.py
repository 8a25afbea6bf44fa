"""Small copies of pictures, as text that stands in a page."""

import base64
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Twice the side at which the page shows them, for screens with small pixels.
SIDE = 192
# A picture of more pixels than this is not opened: a page must not cost gigabytes.
MAX_PIXELS = 64_000_000


def thumbnail(path: Path) -> str | None:
    """A data URI of the picture, at most `SIDE` pixels high and wide; None where it has none.

    The picture may have been moved or deleted since the run: the page then says so.
    """
    from PIL import Image, ImageOps

    try:
        # is_file: a named pipe would be waited for.
        if not path.is_file():
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    return None
                opened.draft("RGB", (SIDE, SIDE))
                return _encoded(_on_white(ImageOps.exif_transpose(opened)))
    except Exception:  # whatever a damaged file makes the decoder raise
        return None


def _on_white(picture: "Image.Image") -> "Image.Image":
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        values = np.asarray(picture, dtype=np.float32)
        values = values / max(1.0, float(values.max()) / 255)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    solid = Image.new("RGBA", picture.size, "white")
    solid.alpha_composite(picture.convert("RGBA"))
    return solid.convert("RGB")


def _encoded(picture: "Image.Image") -> str:
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
