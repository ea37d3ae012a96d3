"""Print what a model of any kind finds: python examples/results.py CONFIG WEIGHTS PHOTO [KEY VALUE ...].

What a result holds depends on the task of the model: a Mask2Former, a detector, a UPerNet or an image classifier.
"""

import sys
from collections.abc import Iterator, Sequence

from dinat_common.errors import run_script
from mask2former import Predictor
from mask2former.prediction import (
    ClassificationPrediction,
    InstancePrediction,
    PanopticPrediction,
    Prediction,
    SemanticPrediction,
)


def described(result: Prediction) -> Iterator[str]:
    """A line for each thing that was found."""
    if isinstance(result, ClassificationPrediction):
        for row in result.top(3):
            yield f"{row.name}: {row.probability:.1%}"
    elif isinstance(result, InstancePrediction):
        # Boxes are x, y, width, height in pixels: floats as a detector predicted them, otherwise integers around masks.
        found = zip(result.category_ids, result.scores, result.boxes.tolist(), result.masks, strict=True)
        for category, score, box, mask in found:
            yield f"{result.classes.name(category)}: {score:.1%}, box {box}, {mask.sum()} pixels"
    elif isinstance(result, SemanticPrediction):
        # `labels` is the class map [height, width].
        for segment in result.segments():
            share = segment["area"] / result.labels.size
            yield f"{segment['category_name']}: {share:.1%} of the pixels"
    elif isinstance(result, PanopticPrediction):
        # `ids` is the map of segment ids [height, width].
        for segment in result.segments():
            kind = "thing" if segment["isthing"] else "stuff"
            yield f"{segment['category_name']} ({kind}): {segment['score']:.1%}, {segment['area']} pixels"


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict the photograph and print the result."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) < 3:
        sys.exit(__doc__.splitlines()[0])
    config, weights, photo, *opts = given
    predictor = Predictor.from_config(config, weights, opts)
    result = predictor(photo)
    print(f"{predictor.task}, {result.size[1]} x {result.size[0]} pixels")
    for line in described(result):
        print(line)


if __name__ == "__main__":
    run_script(main)
