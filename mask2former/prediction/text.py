"""Text in pictures: in any script, with the fonts of the system, on one line.

DejaVu Sans, which matplotlib ships, has Latin, Greek, Cyrillic, Hebrew, Arabic and many symbols. Other characters are
drawn with a font of the system that has them; those that no font has are written in Latin letters, after a warning.
"""

import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

_LOG = logging.getLogger(__name__)

_DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
# Words in the names of fonts that are taken only if no other has a character.
_SPECIAL = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "serif", "color")
# Fonts that have a box, or nothing, for every character.
_PLACEHOLDERS = ("lastresort", "blank", "notdef")
# Debian's names of packages; the beginnings are those of Unicode's names of characters.
_CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "HALFWIDTH", "FULLWIDTH")
# Scripts whose letters take other forms, or another order, next to each other: Indic ones, Tibetan, Burmese, Khmer.
_SHAPED = ((0x0900, 0x0E00), (0x0F00, 0x10A0), (0x1780, 0x1800))
_ELLIPSIS = "…"

# Characters, and the file of the font that draws them.
Run = tuple[str, str]

_missing: set[str] = set()


def font_size(height: int, width: int) -> int:
    """Text height in pixels for a picture of this size: 14 at 640 x 480, 87 at 4000 x 3000."""
    return max(12, round(math.sqrt(height * width) / 40))


@lru_cache(maxsize=64)
def font(size: int, path: str = _DEJAVU) -> ImageFont.FreeTypeFont:
    """A font in a size in pixels, by default DejaVu Sans (Pillow has a font of every size since 10.1 only)."""
    return ImageFont.truetype(path, size)


class TextLine:
    """A text on one line, ready to be drawn.

    Line breaks and control characters become spaces, and a text that is too long loses its middle.

    Attributes:
        size: Height of the letters in pixels.
        width: Width in pixels.
        up: Height above the baseline in pixels: that of DejaVu Sans, or of the highest letter.
        down: Depth below the baseline in pixels.
    """

    def __init__(self, text: str, size: int, max_width: float = math.inf):
        """Find the fonts, and shorten the text to `max_width` pixels."""
        self.size = size
        clusters = list(_clusters(clean(text)))
        runs = _runs(clusters)
        if _width(runs, size) > max_width:
            fitting, too_many = 0, len(clusters)
            while too_many - fitting > 1:
                kept = (fitting + too_many) // 2
                if _width(_runs(_shortened(clusters, kept)), size) <= max_width:
                    fitting = kept
                else:
                    too_many = kept
            runs = _runs(_shortened(clusters, fitting)) if fitting else []
        self._runs = runs
        self.width = _width(runs, size)
        ascent, descent = font(size).getmetrics()
        boxes = [font(size, path).getbbox(part, anchor="ls") for part, path in runs]
        self.up = max([float(ascent), *(-box[1] for box in boxes)])
        self.down = max([float(descent), *(box[3] for box in boxes)])

    def __bool__(self) -> bool:
        """Whether anything is left of the text."""
        return bool(self._runs)

    def draw(self, pen: ImageDraw.ImageDraw, left: float, middle: float, ink: tuple[int, ...]) -> None:
        """Draw the text.

        Args:
            pen: Picture to draw on.
            left: Left edge of the text in pixels.
            middle: Height in pixels that halves the line.
            ink: Colour of the letters.
        """
        baseline = middle + (self.up - self.down) / 2
        for part, path in self._runs:
            pen.text((left, baseline), part, fill=ink, font=font(self.size, path), anchor="ls")
            left += font(self.size, path).getlength(part)

    def image(self, ink: tuple[int, int, int]) -> NDArray[np.uint8]:
        """The text alone, RGBA [height, width, 4], on a transparent ground."""
        height = max(1, math.ceil(self.up + self.down))
        canvas = Image.new("RGBA", (max(1, math.ceil(self.width)), height), (*ink, 0))
        self.draw(ImageDraw.Draw(canvas), 0, height / 2, (*ink, 255))
        return np.array(canvas)


def clean(text: str) -> str:
    """A text on one line: spaces for line breaks and control characters, composed letters, no half characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _clusters(text: str) -> Iterator[str]:
    """Yield each letter together with its marks and with the invisible characters that join it to the next."""
    cluster = ""
    for character in text:
        joins = unicodedata.category(character)[0] == "M" or _invisible(character) or cluster.endswith("\u200d")
        if cluster and not joins:
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _shortened(clusters: Sequence[str], kept: int) -> list[str]:
    """The first and the last clusters, in all `kept`, around an ellipsis; at the end stand the number and the score."""
    last = min(kept // 2, 12)
    return [*clusters[: kept - last], _ELLIPSIS, *clusters[len(clusters) - last :]]


def _runs(clusters: Sequence[str]) -> list[Run]:
    """Join clusters that one font draws; a space needs no font of its own."""
    runs: list[Run] = []
    for cluster in clusters:
        text, path = _drawable(cluster)
        if runs and (path == runs[-1][1] or text.isspace()):
            runs[-1] = (runs[-1][0] + text, runs[-1][1])
        else:
            runs.append((text, path))
    return runs


def _width(runs: Sequence[Run], size: int) -> float:
    return sum(font(size, path).getlength(part) for part, path in runs)


@cache
def _drawable(cluster: str) -> Run:
    """A cluster and the font for it; in Latin letters if it can't be drawn as it is."""
    if _can_be_laid_out(cluster):
        for path in [_DEJAVU, *_system_fonts()]:
            if _has(path, cluster):
                return cluster, path
    _warn(cluster)
    return _in_latin_letters(cluster), _DEJAVU


def _can_be_laid_out(cluster: str) -> bool:
    """Whether Pillow arranges these characters: without the library FriBiDi, it draws all from left to right."""
    return features.check("raqm") or not any(
        unicodedata.bidirectional(c) in ("R", "AL") or any(start <= ord(c) < end for start, end in _SHAPED)
        for c in cluster
    )


def _invisible(character: str) -> bool:
    """Whether a character only controls how others look, such as a joiner or a variation selector."""
    return unicodedata.category(character) == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F


@cache
def _has(path: str, text: str) -> bool:
    """Whether a font has all characters of a text, and draws them."""
    try:
        face = FT2Font(path)
        if not all(_invisible(c) or face.get_char_index(ord(c)) for c in text):
            return False
        # Fonts of coloured pictures have no outlines, and no size but their own.
        seen = any(not _invisible(c) and not c.isspace() for c in text)
        return not seen or font(32, path).getmask(text).getbbox() is not None
    except (OSError, RuntimeError, ValueError):
        return False


@cache
def _system_fonts() -> list[str]:
    """Fonts of the system, upright sans serifs of normal weight first."""

    def rank(path: str) -> tuple[int, bool, str]:
        name = Path(path).stem.lower()
        return sum(word in name for word in _SPECIAL), "sans" not in name, name

    found = {str(path) for path in findSystemFonts()}
    return sorted((path for path in found if not any(w in Path(path).stem.lower() for w in _PLACEHOLDERS)), key=rank)


def _in_latin_letters(cluster: str) -> str:
    try:
        from anyascii import anyascii
    except ImportError:
        return "".join(f"U+{ord(c):04X}" for c in cluster)
    return anyascii(cluster) or "?"


def _warn(cluster: str) -> None:
    """Say once in a process that a font is missing, and which package has it."""
    _missing.add(cluster)
    if len(_missing) > 1:
        return
    name = unicodedata.name(cluster[0], "a character without a name")
    if not _can_be_laid_out(cluster):
        package = "libfribidi0, the library that arranges it"
    elif name.startswith(_CJK):
        package = "fonts-noto-cjk"
    elif unicodedata.category(cluster[0]) == "So":
        package = "fonts-symbola"
    else:
        package = "fonts-noto-core"
    _LOG.warning(
        "no installed font draws %s (%s): it and others like it are written in Latin letters in pictures; install %s "
        "(fonts-noto-cjk has Chinese, Japanese and Korean, fonts-noto-core other scripts, fonts-symbola emoji)",
        *(cluster, name, package),
    )
