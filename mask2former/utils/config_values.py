"""Values of config keys: what a text, a number or a list means for a key, by the type of the key's default."""

import ast
import math
import os
from collections.abc import Sequence
from typing import Any

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INFINITE = {sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in ("inf", ".inf")}
_NONE = frozenset({"none", "null"})


def fit_value(value: Any, default: Any) -> Any:
    """Convert a value from a file or a command line to the type of a key.

    Numbers, lists and so on may be written as texts, since a command line has nothing else. Whole numbers such as 1e3
    fit integers, a single value fits a list of such values, and names separated by commas fit a list of names. An
    empty value fits a text whose default is empty.

    Args:
        value: Value as YAML or a command line gives it.
        default: Default of the key, which decides the type. If it is None, every value fits.

    Returns:
        The value, of the type of `default`; a list for a list and a tuple for a tuple.

    Raises:
        ValueError: The value does not fit; the message begins with "expected".
    """
    if default is None:
        return _literal(value)
    if isinstance(default, bool):
        return _bool(value)
    if isinstance(default, int | float):
        return _number(value, default)
    if isinstance(default, str):
        return _text(value, default)
    if isinstance(default, list | tuple):
        return type(default)(_elements(value, default))
    raise ValueError(f"expected a value of type {type(default).__name__}")


def _literal(text: Any) -> Any:
    """Value that a text denotes in Python; the text itself if it denotes none. Other values stay."""
    if not isinstance(text, str):
        return text
    if text.strip().lower() in _NONE:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _bool(value: Any) -> bool:
    value = _literal(value)
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError("expected True or False")


def _number(value: Any, default: float) -> float:
    value = _INFINITE.get(value.strip().lower(), value) if isinstance(value, str) else value
    value = _literal(value)
    if isinstance(default, float):
        if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
        raise ValueError(f"expected a number such as {default}")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"expected a whole number such as {default}")


def _text(value: Any, default: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if default == "" and (value is None or (isinstance(value, str) and value.strip().lower() in _NONE)):
        return ""
    if not isinstance(value, str):
        hint = "" if value is None or isinstance(value, list | tuple | dict) else "; write it in quotes"
        raise ValueError(f"expected a text{hint}" + (f", such as {default}" if default else ""))
    literal = _literal(value)
    return literal if isinstance(literal, str) else value


def _elements(value: Any, default: Sequence[Any]) -> Sequence[Any]:
    # Lists of data sets are empty by default, and tuples.
    names = isinstance(default[0], str) if default else isinstance(default, tuple)
    found = _literal(value)
    if isinstance(found, str) and names:
        found = [name.strip() for name in found.strip("[]() ").rstrip(",").split(",")]
    elif default and isinstance(found, bool | int | float) and not isinstance(default[0], list | tuple):
        found = [found]
    if not isinstance(found, list | tuple):
        raise ValueError(f"expected a list{_such_as(default, names)}")
    if not (default or names):
        return found
    example = default[0] if default else "name"
    try:
        if isinstance(example, str) and not all(isinstance(element, str) and element for element in found):
            raise ValueError
        # Integers stay integers in a list of floats, such as a size that is a share or a number of pixels.
        return [
            element if type(element) is int and isinstance(example, float) else fit_value(element, example)
            for element in found
        ]
    except ValueError as error:
        raise ValueError(f"expected a list{_such_as(default, names)}") from error


def _such_as(default: Sequence[Any], names: bool) -> str:
    if default:
        return f" such as {default}"
    return " of names such as ('a', 'b'), or () for none" if names else ""
