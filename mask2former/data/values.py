"""Values as people and programs write them in JSON and YAML: whole numbers as text or 3.0, flags as text, colours.

Each function returns None for a value that has no such meaning; `described` names it in an error.
"""

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageColor

Color = tuple[int, int, int]

# Larger numbers are not exact as floating-point numbers, which many programs write.
_LARGEST_EXACT = 2**53
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_THREE_NUMBERS = re.compile(r"[\s(\[]*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s)\]]*")
_LONGEST = 60


def described(value: Any) -> str:
    """A value for an error message, with its type, such as `'3 px' (str)`."""
    text = repr(value)
    return f"{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'} ({type(value).__name__})"


def number(value: Any) -> float | None:
    """A finite number, also as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= _LARGEST_EXACT or (isinstance(value, float) and math.isfinite(value)) else None


def whole_number(value: Any) -> int | None:
    """A whole number, also as text or as a floating-point number without a fraction."""
    if type(value) is int:  # nearly all: files of annotations have millions
        return value if abs(value) <= _LARGEST_EXACT else None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,15}\s*", value):
        return int(value)
    found = number(value)
    return None if found is None or found != math.floor(found) or abs(found) > _LARGEST_EXACT else int(found)


def flag(value: Any) -> bool | None:
    """True or false, also as 1 or 0 and as text."""
    return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else _FLAGS.get(str(_integral(value)).lower())


def _integral(value: Any) -> Any:
    return value if isinstance(value, bool) else whole_number(value)


def key(value: Any) -> int | str | None:
    """An id: a whole number, or text as it is."""
    return value if isinstance(value, str) else whole_number(value)


def name(value: Any) -> str | None:
    """A name without blanks around it; numbers become text. Null, true and false are no names."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def color(value: Any) -> Color | None:
    """An RGB colour: three numbers from 0 to 255, or text as in CSS: `#7b01ce`, `rgb(123, 1, 206)`, `red`.

    A fourth number, the opacity, is left out.
    """
    channels: Sequence[Any] = ()
    if isinstance(value, str):
        if numbers := _THREE_NUMBERS.fullmatch(value):
            channels = numbers.groups()
        else:
            try:
                channels = ImageColor.getrgb(value.strip())
            except ValueError:
                return None
    elif isinstance(value, Mapping):
        channels = [value.get(letter) for letter in "rgb"]
    elif isinstance(value, list | tuple):
        channels = value
    numbers = [whole_number(channel) for channel in channels]
    found = [channel for channel in numbers if channel is not None and 0 <= channel <= 255]
    return (found[0], found[1], found[2]) if len(found) == len(channels) and len(found) in (3, 4) else None


def segmentation(value: Any) -> Any:
    """A COCO `segmentation` in its usual form: a list of polygons [x, y, x, y, ...], or run lengths.

    A single polygon becomes a list, points [x, y] are joined, whole numbers in run lengths become integers, and text
    that Python made of bytes (`b'...'`) is read. Anything else stays as it is; nothing is checked.
    """
    if isinstance(value, Mapping):
        size, counts = value.get("size"), value.get("counts")
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
            counts = _bytes_text(counts)
        return {**value, "size": _whole_numbers(size), "counts": _whole_numbers(counts)}
    if not isinstance(value, list) or not value:
        return value
    if not any(isinstance(part, list) for part in value):
        return [value]
    if len(value) >= 3 and _are_points(value):
        return [_joined(value)]
    return [_joined(part) if isinstance(part, list) and _are_points(part) else part for part in value]


def _whole_numbers(values: Any) -> Any:
    if not isinstance(values, list) or all(type(value) is int for value in values):
        return values
    numbers = [whole_number(value) for value in values]
    return values if None in numbers else numbers


def _are_points(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(point, list) and len(point) == 2 for point in values)


def _joined(points: Sequence[Sequence[Any]]) -> list[Any]:
    return [coordinate for point in points for coordinate in point]


def _bytes_text(text: str) -> str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value.decode("ascii", "replace") if isinstance(value, bytes) else text
