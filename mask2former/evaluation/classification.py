"""Accuracy of image classifiers: top-1 and top-5, and a CSV file with the five most probable classes of each image."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from dinat_common.files import atomic_write
from mask2former.data.classes import ClassTable
from mask2former.evaluation.metric import EvaluationError, Image, Metric, Records, image_key, require_same_images
from mask2former.utils.journal import Key

_CLASSES = 5


class ClassAccuracy(Metric):
    """Share of the images whose class is the most probable one, or among the five most probable ones.

    Metrics: top1 and top5. Predictions are class probabilities [K]; `predictions.csv` has a line for each image with
    its label and the ids, names and probabilities of the five most probable classes. The metadata have `image_root` and
    `image_classes`, and the dicts of the data set have `label`.
    """

    task = "classification"
    name = "classification"
    needs = ("image_classes",)
    results_file = "predictions.csv"
    outputs = (results_file,)

    def record(self, image: Image, prediction: Any, folder: Path) -> tuple[Any, list[Path]]:
        """Keep the ids and the probabilities of the most probable classes."""
        if not bool(prediction.isfinite().all()):
            raise EvaluationError(f"{image['file_name']}: the model's class scores are not finite")
        probabilities, classes = prediction.float().cpu().topk(min(_CLASSES, len(prediction)))
        return [classes.tolist(), probabilities.tolist()], []

    def evaluate(self, records: Records, folder: Path) -> dict[str, float]:
        """Compare the classes with the labels, and write the CSV file."""
        labels = {image_key(image): int(image["label"]) for image in DatasetCatalog.get(self._dataset_name)}
        source = str(self._metadata.get("image_root") or self._dataset_name)
        require_same_images(labels.keys(), [key for key, _ in records], source)
        first = among = 0
        for key, (classes, _) in records:
            first += classes[0] == labels[key]
            among += labels[key] in classes
        with atomic_write(folder / self.results_file) as file:
            csv.writer(file, lineterminator="\n").writerows(self._rows(records, labels))
        return {"top1": 100 * first / len(labels), "top5": 100 * among / len(labels)}

    def _rows(self, records: Records, labels: dict[Key, int]) -> Iterator[list[Any]]:
        table = ClassTable.from_metadata(self._metadata, self.task)
        count = max(len(classes) for _, (classes, _) in records)
        numbered = (f"{column}_{place + 1}" for place in range(count) for column in ("class", "name", "probability"))
        yield ["image", "label", "label_name", *numbered]
        for key, (classes, probabilities) in records:
            row: list[Any] = [key, labels[key], table.name(labels[key])]
            for class_id, probability in zip(classes, probabilities, strict=True):
                row += [class_id, table.name(class_id), f"{probability:.6f}"]
            yield row
