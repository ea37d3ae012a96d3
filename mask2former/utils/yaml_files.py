"""Config files in YAML with `_BASE_`: safe, strict about repeated keys, and with the file of every value."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from dinat_common.errors import ConfigError
from dinat_common.files import TextFileError, read_text, user_path

_BASE = "_BASE_"


@dataclass(frozen=True)
class ConfigFile:
    """Content of a config file with that of the files it is based on.

    Attributes:
        values: Sections and values.
        origins: File of each value, by full key such as SOLVER.BASE_LR.
    """

    values: dict[str, Any]
    origins: dict[str, Path] = field(default_factory=dict)


_KEPT = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses repeated keys and reads numbers as people write them.

    Numbers with an exponent need no decimal point (1e-4). Times such as 12:30, dates and numbers such as 010 are text,
    and Python's tuples are accepted.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - declared by PyYAML
        first: [(tag, pattern) for tag, pattern in pairs if tag in _KEPT]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    _lists = 0  # lists around the current place

    def construct_sequence(self, node: yaml.SequenceNode, deep: bool = False) -> list[Any]:
        """Construct a list."""
        self._lists += 1
        try:
            return super().construct_sequence(node, deep)
        finally:
            self._lists -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a dict whose keys are texts, or whole numbers in entries of lists; each is given once."""
        seen: set[str | int] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) and not (self._lists and type(key) is int):
                raise ConstructorError(None, None, f"the key {key!r} is not a text", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"{key} is given twice; join both", key_node.start_mark)
            seen.add(key)
        # Complete at once, so that a value that contains itself is noticed.
        return super().construct_mapping(node, deep=True)


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_config_file(path: str | Path) -> ConfigFile:
    """Read a config file and the files that its key `_BASE_` names.

    `_BASE_` is a file name or a list of them, relative to the file that contains it; `~` is the home folder. Later
    files take precedence over earlier ones, and the file itself over all of them.

    Raises:
        ConfigError: A file is missing, empty, not valid or not safe, or is based on itself. The message names the file
            and the line or key.
    """
    return _read(user_path(path), ())


def _read(path: Path, chain: tuple[Path, ...]) -> ConfigFile:
    content = _load(path, chain)
    chain = (*chain, path)
    result = ConfigFile({})
    for base in _bases(content, path):
        if any(_same(base, earlier) for earlier in chain):
            names = " -> ".join(map(str, (*chain, base)))
            raise ConfigError(f"{chain[0]}: {_BASE} goes in a circle: {names}")
        found = _read(base, chain)
        _merge(result, found.values, found.origins)
    own = {key: value for key, value in content.items() if key != _BASE}
    _merge(result, own, dict.fromkeys(_keys(own), path))
    return result


def _load(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    based = f" (a {_BASE} of {chain[-1]})" if chain else ""
    try:
        content = yaml.load(read_text(path), _Loader)  # noqa: S506 - a safe loader
    except FileNotFoundError as error:
        raise ConfigError(f"config file not found: {path}{based}") from error
    except (TextFileError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"{path}: not a YAML config file{based}: {reason}") from error
    except yaml.YAMLError as error:
        unsafe = isinstance(error, ConstructorError) and "could not determine a constructor" in str(error.problem)
        kind = "only safe YAML is read" if unsafe else "not a YAML config file"
        raise ConfigError(f"{path}: {kind}{based}: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not a YAML config file{based}: it is nested too deeply") from error
    if content is None:
        raise ConfigError(f"{path}: the file is empty{based}; expected config keys")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys{based}, found {type(content).__name__}")
    return content


def _reason(error: yaml.YAMLError) -> str:
    """Cause and place of an error of PyYAML in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or " ".join(str(error).split())
    if "'\\t'" in problem:
        problem += "; indent with spaces"
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _bases(content: Mapping[str, Any], path: Path) -> list[Path]:
    if _BASE not in content:
        return []
    given = content[_BASE]
    names = list(given) if isinstance(given, list | tuple) else [given]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"{path}: {_BASE} is {given!r}, expected the name of a file, or a list of them")
        if "://" in name:
            raise ConfigError(f"{path}: {_BASE} is {name}, expected a file; download it first")
    return [path.parent / user_path(name) for name in names]


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _keys(node: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Full keys of all values and sections."""
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def _merge(into: ConfigFile, values: Mapping[str, Any], origins: Mapping[str, Path]) -> None:
    """Add the values of another file to those of `into`, which they replace."""

    def merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
        for key, value in source.items():
            earlier = target.get(key)
            if isinstance(value, dict):
                # A new dict, since a YAML alias may have put the same one under several keys.
                target[key] = earlier if isinstance(earlier, dict) else {}
                merge(target[key], value)
            elif value is not None or not isinstance(earlier, dict):  # an empty section changes nothing
                target[key] = value

    merge(into.values, values)
    into.origins.update(origins)
