"""What every metric has in common: a small record per image, compared when all images are there."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import MetadataCatalog

from mask2former.evaluation.errors import EvaluationError

Image = Mapping[str, Any]
Key = int | str
Records = Iterable[tuple[Key, Any]]


class Metric(ABC):
    """One thing that is measured on a data set.

    Each image becomes a record of what the end result needs, small enough for a line of JSON, and files where the
    submission format wants a file per image. So images can be seen in any order by any number of processes, and again
    after an interruption only those that are missing.

    Attributes:
        task: what the results are called.
        needs: entries of a data set's metadata without which there is no ground truth.
        outputs: the files and folders that it writes into its folder.
    """

    task: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]

    def __init__(self, dataset_name: str):
        """Take a data set's metadata; no file is read yet.

        Args:
            dataset_name: a registered data set whose metadata has the entries of `needs`.
        """
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)

    @abstractmethod
    def record(self, image: Image, output: Mapping[str, Any], folder: Path) -> tuple[Any, list[Path]]:
        """Compare an image with its ground truth as far as that is possible alone, and write its files.

        Args:
            image: what the model was given; has `file_name`, and `image_id` if the data set has one.
            output: what the model returned for it.
            folder: where files go.

        Returns:
            The record, which JSON can hold, and the complete files that were written.

        Raises:
            EvaluationError: ground truth that is missing, damaged or of another size.
        """

    @abstractmethod
    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Compute the metrics from the records of all images.

        Args:
            records: (key of the image, record) in the order of the keys; can be gone through several times.
            folder: where files go.

        Returns:
            Metric -> percent, NaN where there is nothing to measure. Names with a "-" are those of single classes.

        Raises:
            EvaluationError: images of the ground truth that have no record.
        """


def image_key(image: Image) -> Key:
    """What an image is called in records: its `image_id`, or its file and folder, the same on every machine."""
    if "image_id" in image:
        return image["image_id"]
    return "/".join(Path(image["file_name"]).parts[-2:])


def require_all(expected: Collection[Any], found: Collection[Any], source: str) -> None:
    """Check that every image of the ground truth was predicted.

    Args:
        expected: names of the images in the ground truth.
        found: names of the images that were predicted.
        source: file or folder of the ground truth.

    Raises:
        EvaluationError: some were not.
    """
    missing = sorted(set(expected) - set(found))
    if missing:
        listed = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise EvaluationError(f"{source}: no prediction for {len(missing)} of {len(expected)} images: {listed}")
