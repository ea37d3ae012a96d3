"""Results of an image classifier: a probability for each class, as rows, plain data and a picture.

Shapes:
    K: classes; H, W: height and width of the image; S, T: height and width of the picture
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinat_common.errors import checked_fraction
from mask2former.data.classes import ClassTable, Color
from mask2former.prediction.base import Prediction
from mask2former.prediction.drawing import Rgb, enlarged
from mask2former.prediction.text import TextLine, font_size
from mask2former.tasks import TASKS, Task

if TYPE_CHECKING:
    from typing_extensions import Self

# Number of classes in a picture and in a JSON file.
SHOWN = 5
# Ground, empty bar and letters of the table in a picture, and the share of the image that stays visible below it.
_GROUND, _EMPTY, _INK = (0, 0, 0), (90, 90, 90), (255, 255, 255)
_VISIBLE = 0.35


class RankedClass(NamedTuple):
    """A class and its probability.

    Attributes:
        category_id: Contiguous class id.
        name: Name of the class.
        probability: Probability, 0 to 1.
    """

    category_id: int
    name: str
    probability: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassificationPrediction(Prediction):
    """Probabilities of the classes of a whole image.

    Attributes:
        probabilities: Probability of each class, float [K]; they add up to 1.
        image_size: Height and width of the image.
        kept: Ids of the classes to list, after `filter`; None: all.
    """

    probabilities: NDArray[np.float32]
    image_size: tuple[int, int]
    kept: frozenset[int] | None = None
    task: ClassVar[Task] = "classification"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image_size

    def top(self, k: int = SHOWN) -> list[RankedClass]:
        """The `k` most probable classes, the best first; of equal ones, that with the smaller id."""
        order = (int(i) for i in np.argsort(-self.probabilities, kind="stable"))
        listed = [i for i in order if self.kept is None or i in self.kept][:k]
        return [RankedClass(i, self.classes.name(i), float(self.probabilities[i])) for i in listed]

    def entries(self, k: int = SHOWN) -> list[dict[str, Any]]:
        """The rows of `top` as JSON-ready dicts: `category_id`, `category_name` and `probability`."""
        return [
            {"category_id": row.category_id, "category_name": row.name, "probability": round(row.probability, 6)}
            for row in self.top(k)
        ]

    def content(self) -> dict[str, Any]:
        """The best classes under `classes`, see `entries`."""
        return {"classes": self.entries()}

    def filter(self, *, min_score: float = 0.0, classes: Iterable[int | str] | int | str | None = None) -> "Self":
        """The result that lists only some of the classes; probabilities stay as they are.

        Args:
            min_score: Lowest probability to list.
            classes: Class ids or names to list, or one of these; None: all.

        Raises:
            ConfigError: The classes do not exist, or the limit is not from 0 to 1.
        """
        min_score = checked_fraction(min_score, "min_score")
        wanted = None if classes is None else self._checked_classes(classes)
        listed = range(len(self.probabilities)) if self.kept is None else self.kept
        kept = frozenset(
            i
            for i in listed
            if self.probabilities[i] >= min_score and (wanted is None or i in wanted or self.classes.name(i) in wanted)
        )
        return replace(self, kept=kept)

    @classmethod
    def from_output(
        cls,
        output: Mapping[str, Any],
        image: Rgb,
        classes: ClassTable,
        lowest_score: float,
        predicts_boxes: bool = False,
    ) -> "Self":
        """See `Prediction.from_output`."""
        probabilities = output[TASKS[cls.task].output].float().cpu().numpy()
        size = (image.shape[0], image.shape[1])
        return cls(classes=classes, image=image, image_size=size, probabilities=probabilities)

    def record(self) -> list[float]:
        """The probabilities as JSON-ready numbers, which `from_record` restores exactly."""
        return [float(f"{probability:.9g}") for probability in self.probabilities]

    @classmethod
    def from_record(cls, record: Any, size: tuple[int, int], classes: ClassTable, image: Rgb | None) -> "Self":
        """See `Prediction.from_record`."""
        return cls(classes=classes, image=image, image_size=size, probabilities=np.array(record, np.float32))

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        rows = self.top()
        return draw_classes(image, rows, [self.classes.color(row.category_id) for row in rows], enlarge=enlarge)


def draw_classes(image: Rgb, rows: Sequence[RankedClass], colors: Sequence[Color], *, enlarge: bool = True) -> Rgb:
    """Draw the most probable classes in the lower left corner of an image: names, percentages and bars.

    Rows for which the picture has no room are left out, the least probable first.

    Args:
        image: RGB [H, W, 3].
        rows: Classes, the best first.
        colors: Colour of the bar of each class.
        enlarge: Whether small images are enlarged; otherwise the picture has the size of the image.

    Returns:
        RGB picture [S, T, 3].
    """
    picture = enlarged(image) if enlarge else image.copy()
    size = font_size(*picture.shape[:2])
    margin, gap, thickness = size // 2, round(0.4 * size), max(2, size // 5)
    step = round(1.35 * size) + thickness + gap
    rows = rows[: max(0, (picture.shape[0] - margin) // step)]
    room = picture.shape[1] - 2 * margin
    if not rows or room < 4 * size:
        return picture
    shares = [TextLine(f"{100 * row.probability:.1f}%", size) for row in rows]
    widest = max(share.width for share in shares)
    names = [TextLine(row.name, size, max(0, room - widest - size)) for row in rows]
    width = min(room, round(max(14 * size, max(name.width for name in names) + widest + size)))
    top = picture.shape[0] - len(rows) * step - margin
    ground = picture[top:, : width + 2 * margin]
    ground[:] = (_VISIBLE * ground + (1 - _VISIBLE) * np.array(_GROUND)).astype(np.uint8)
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for row, color, name, share in zip(rows, colors, names, shares, strict=False):
        middle, bar = top + margin + 0.6 * size, top + margin + round(1.35 * size)
        name.draw(pen, margin, middle, _INK)
        share.draw(pen, margin + width - share.width, middle, _INK)
        full = round(width * min(1.0, max(0.0, row.probability)))
        pen.rectangle((margin, bar, margin + width - 1, bar + thickness - 1), fill=_EMPTY)
        if full:
            pen.rectangle((margin, bar, margin + full - 1, bar + thickness - 1), fill=color)
        top += step
    return np.array(canvas)
