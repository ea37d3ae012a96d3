"""Panoptic results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mask2former.data.coco_format import segment_info
from mask2former.png import panoptic_colors
from mask2former.predictions.base import Mask, Prediction, Rgb
from mask2former.visualization import draw_panoptic
from mask2former.visualization.classes import Task

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False, kw_only=True)
class PanopticPrediction(Prediction):
    """Every pixel belongs to one segment or none.

    Attributes:
        ids: segment ids [H, W]; 0: none.
        segments_info: what each is: dicts with `id`, `category_id`, `isthing`, perhaps `score` and `track_id`.
    """

    ids: NDArray[np.int32]
    segments_info: Sequence[dict[str, Any]]
    task: ClassVar[Task] = "panoptic"

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.ids.shape[0], self.ids.shape[1]

    def entries_and_masks(self) -> Iterator[tuple[dict[str, Any], Mask]]:
        """See `Prediction.entries_and_masks`."""
        for info in self.segments_info:
            entry = self._entry(
                info["id"], info["category_id"], info["isthing"], info.get("score"), info.get("track_id")
            )
            yield entry, self.ids == info["id"]

    def with_tracks(self, numbers: Mapping[int, int]) -> "Self":
        """See `Prediction.with_tracks`."""
        infos = [i | ({"track_id": numbers[i["id"]]} if i["id"] in numbers else {}) for i in self.segments_info]
        return replace(self, segments_info=infos)

    def to_coco(self, image_id: int | str = 0) -> dict[str, Any]:
        """An entry of `annotations` of a panoptic JSON: `image_id`, `file_name` (of the PNG) and `segments_info`.

        `panoptic_png` gives the colours of the PNG.
        """
        entries = [
            segment_info(mask, entry["id"], self.classes.dataset_id(entry["category_id"]))
            | ({"score": entry["score"]} if "score" in entry else {})
            for entry, mask in self.entries_and_masks()
        ]
        return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": entries}

    def panoptic_png(self) -> Rgb:
        """The segment ids as colours [H, W, 3]: id = R + 256 G + 65536 B."""
        return panoptic_colors(self.ids)

    def _draw(self, image: Rgb, enlarge: bool) -> Rgb:
        return draw_panoptic(image, self.ids, self.segments_info, self.classes, enlarge=enlarge)

    def _keep(self, ids: Sequence[int]) -> "Self":
        kept = [info for info in self.segments_info if info["id"] in ids]
        return replace(self, ids=np.where(np.isin(self.ids, ids), self.ids, 0), segments_info=kept)
