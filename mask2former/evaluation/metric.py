"""What all metrics have in common: a small record per image, and a comparison when all images are there."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from detectron2.data import MetadataCatalog

from dinat_common.errors import UserError
from mask2former.tasks import Architecture, Task
from mask2former.utils.journal import Key

if TYPE_CHECKING:
    from typing_extensions import Self

Image: TypeAlias = Mapping[str, Any]
Records: TypeAlias = Iterable[tuple[Key, Any]]


class EvaluationError(UserError):
    """Ground truth or predictions that can't be evaluated; the message names the file or the image."""


class Metric(ABC):
    """One thing that is measured on a data set.

    Each image becomes a record, small enough for a line of JSON, and files where the submission format has files per
    image. Images can therefore be seen in any order and by any number of processes, and after an interruption only the
    missing ones are seen again.

    Attributes:
        task: Task whose results are measured, a key of `mask2former.tasks.TASKS`.
        name: Name of the results.
        needs: Metadata entries of a data set without which there is no ground truth.
        outputs: Files and folders that the metric writes.
        of_boxes: Whether only models that predict boxes are measured.
    """

    task: ClassVar[Task]
    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    of_boxes: ClassVar[bool] = False

    def __init__(self, dataset_name: str):
        """Read the metadata of a data set, but no file yet.

        Args:
            dataset_name: Registered data set whose metadata have the entries in `needs`.
        """
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)

    @classmethod
    def build(cls, dataset_name: str, architecture: Architecture) -> "Self":
        """Build the metric for the models of an architecture."""
        return cls(dataset_name)

    @abstractmethod
    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Write the result for one image.

        Args:
            image: Input of the model; has `file_name`, and `image_id` if the data set has one.
            prediction: Output of the model for this image and this task.
            folder: Folder of the files.

        Returns:
            The record, serializable as JSON, and the files that were written.

        Raises:
            EvaluationError: Ground truth is missing, damaged or of another size.
        """

    @abstractmethod
    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Compare all images with the ground truth.

        Args:
            records: Key and record of each image in the order of the keys; can be iterated several times.
            folder: Folder of the files.

        Returns:
            Percent by metric, NaN if there is nothing to measure. Names of single classes contain "-".

        Raises:
            EvaluationError: Ground truth is missing or damaged, or does not have the same images.
        """


def image_key(image: Image) -> Key:
    """Key of an image: its `image_id`, or else its folder and file name, which are the same on every machine."""
    if "image_id" in image:
        return image["image_id"]
    return "/".join(Path(image["file_name"]).parts[-2:])


def result_name(image: Image) -> str:
    """Name of an image's result files without ending: that of the image file, or `result_name` if several share it."""
    return image.get("result_name") or Path(image["file_name"]).stem


def require_same_images(expected: Collection[Key], predicted: Collection[Key], source: str) -> None:
    """Check that exactly the images of the ground truth were predicted.

    Args:
        expected: Keys of the images in the ground truth.
        predicted: Keys of the images with a prediction.
        source: File or folder of the ground truth.

    Raises:
        EvaluationError: Images have no prediction, or there is no ground truth for a prediction.
    """
    missing = sorted(set(expected) - set(predicted), key=lambda key: (isinstance(key, str), key))
    if missing:
        listed = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise EvaluationError(f"{source}: no prediction for {len(missing)} of {len(expected)} images: {listed}")
    unknown = set(predicted) - set(expected)
    if unknown:
        raise EvaluationError(f"{source}: no image {min(unknown, key=str)}, which was predicted")
