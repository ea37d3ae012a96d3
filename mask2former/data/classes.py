"""Names and colours of classes, from a data set's metadata; made up if it has none."""

import colorsys
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from dinat_common.errors import ConfigError
from dinat_common.files import read_text, user_path
from mask2former.tasks import SEGMENTATION_SWITCHES, TASKS, Task, architecture_of, class_count, thing_ids

Color = tuple[int, int, int]

# Steps of the golden ratio spread any number of values evenly over a circle (or the unit interval).
_GOLDEN = 0.618033988749895
# Number of names in a message; ImageNet-22K has 21841.
_LISTED = 150


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of classes by their contiguous ids, which models predict.

    Attributes:
        names: Names of the classes.
        colors: RGB colours in 0..255.
        dataset_ids: Mapping from class ids to category ids in the data set's own files.
        thing_ids: Classes that are things.
    """

    names: Sequence[str] = ()
    colors: Sequence[Sequence[int]] = ()
    dataset_ids: Mapping[int, int] = field(default_factory=dict)
    thing_ids: frozenset[int] = frozenset()

    @classmethod
    def from_metadata(cls, metadata: Metadata, task: Task) -> "ClassTable":
        """The classes that number the results of a task, from Detectron2's metadata of a data set.

        Instances are numbered by `thing_classes`, panoptic segments and pixels by `stuff_classes`. The latter includes
        the things of panoptic data sets (Detectron2's "standard" panoptic format).
        """
        kind = TASKS[task].class_list
        things = metadata.get("thing_dataset_id_to_contiguous_id") or {}
        stuff = {} if kind == "thing" else metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        names, known_things = metadata.get(f"{kind}_classes") or (), thing_ids(metadata)
        return cls(
            names,
            metadata.get(f"{kind}_colors") or (),
            {class_id: dataset_id for dataset_id, class_id in (*stuff.items(), *things.items())},
            frozenset(range(len(names))) if known_things is None else known_things,
        )

    def name(self, class_id: int) -> str:
        """Name of a class; `class 7` for a class without a name."""
        return str(self.names[class_id]) if 0 <= class_id < len(self.names) else f"class {class_id}"

    def listed(self) -> str:
        """The names for a message: all of a few, the first of many."""
        shown = ", ".join(map(str, self.names[:_LISTED]))
        return f"{shown} and {len(self.names) - _LISTED} more" if len(self.names) > _LISTED else shown

    def dataset_id(self, class_id: int) -> int:
        """The category id in the data set's own files; the class id itself if the data set is unknown."""
        return int(self.dataset_ids.get(class_id, class_id))

    def color(self, class_id: int) -> Color:
        """Colour of a class; classes without a colour get well separated hues."""
        if 0 <= class_id < len(self.colors):
            red, green, blue = (int(channel) for channel in self.colors[class_id])
            return red, green, blue
        return _to_rgb(class_id * _GOLDEN % 1.0, 0.75, 0.9)

    def segment_colors(self, segments: Iterable[Mapping[str, Any]]) -> list[Color]:
        """Colours of an image's segments: stuff has the colour of its class, things of a class differ.

        Args:
            segments: Dicts with `category_id` and optional `isthing` (default: true) and `track_id`. In a video,
                `track_id` gives an object the same colour in every frame.
        """
        counts: Counter[int] = Counter()
        colors = []
        for segment in segments:
            category = int(segment["category_id"])
            if segment.get("isthing", True):
                colors.append(self.instance_color(category, int(segment.get("track_id", counts[category]))))
                counts[category] += 1
            else:
                colors.append(self.color(category))
        return colors

    def instance_color(self, class_id: int, index: int) -> Color:
        """Colour of the `index`-th instance of a class: near the colour of the class, but unlike other instances'."""
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in self.color(class_id)))
        if index == 0:
            return self.color(class_id)
        turn = index * _GOLDEN % 1.0 - 0.5
        brightness = 0.55 + 0.45 * (index * _GOLDEN * _GOLDEN % 1.0)
        return _to_rgb((hue + 0.3 * turn) % 1.0, max(saturation, 0.55), max(value, 0.8) * brightness)


def read_class_names(path: str | Path) -> list[str]:
    """Read the names of classes in the order of their ids from a file.

    Args:
        path: Text file in UTF-8 with one name per line, or, with the ending .json, a list of names or a dict from ids
            to names. A name in JSON may be a list whose last entry is the name, as in ImageNet's lists.

    Raises:
        ConfigError: The file can't be read, or is something else.
    """
    path = user_path(path)
    try:
        text = read_text(path)
        listed = json.loads(text) if path.suffix.lower() == ".json" else text.rstrip().splitlines()
        if isinstance(listed, dict):
            listed = [listed[str(class_id)] for class_id in range(len(listed))]
        if not isinstance(listed, list):
            raise ValueError(f"found {type(listed).__name__}")
        names = [(name[-1] if isinstance(name, list) and name else name) for name in listed]
    except OSError as error:
        raise ConfigError(f"class names {path}: can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"class names {path}: expected a text file in UTF-8 with one name per line, or JSON with a list of "
            f"names or a dict from ids (from 0, without gaps) to names ({error})"
        ) from error
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"class names {path}: entry {number} is {name!r}, expected a name")
    return [name.strip() for name in names]


def with_class_names(metadata: Metadata, names: Sequence[str], cfg: CfgNode) -> Metadata:
    """Metadata of a data set with other names of the classes that number the results of a config's model.

    Raises:
        ConfigError: The model has another number of classes.
    """
    if len(names) != class_count(cfg):
        key = architecture_of(cfg).classes
        raise ConfigError(
            f"{len(names)} class names, but {key} is {class_count(cfg)}: one name is needed for each class, in the "
            "order of the ids"
        )
    numbered = {f"{TASKS[task].class_list}_classes" for task in architecture_of(cfg).tasks or SEGMENTATION_SWITCHES}
    return Metadata(**{key: list(names) if key in numbered and v else v for key, v in metadata.as_dict().items()})


def _to_rgb(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
