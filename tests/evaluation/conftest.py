"""Small random data sets in COCO's panoptic, instance and semantic formats, and predictions that are partly right."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..conftest import load_script
from .predictions import predict

drawing = load_script("benchmarks/_scenes.py")
# Category ids have gaps.
NAMES = {3: "cat", 7: "dog", 11: "sky", 20: "sea", 33: "sand"}
CATEGORIES = [{"id": i, "name": name, "isthing": int(i < 10)} for i, name in NAMES.items()]
CAT, DOG, SKY, SEA, SAND = range(5)


def draw(rng, index):
    """Void pixels, ids that use all three channels, one crowd region in all; sand never occurs."""
    classes = {1: CAT, 300: CAT, 70000: DOG, 4: CAT, 5: SKY, 6: SEA}
    cells = rng.choice([0, *classes], (6, 8))
    present = {i: c for i, c in classes.items() if (cells == i).any()}
    crowd = frozenset({4} & present.keys() if index == 0 else ())
    return drawing.LabeledImage(cells.repeat(8, axis=0).repeat(8, axis=1), present, crowd)


@pytest.fixture
def make_dataset(tmp_path):
    """Registers a data set of given images; returns its name and folder, and what a model says that saw all images."""
    name = "evaluated_in_a_test"

    def make(images, rng):
        drawing.register(name, tmp_path / "ground_truth", images, CATEGORIES)
        inputs, outputs = predict(name, rng)
        inputs = [dict(image) for image in inputs]
        root = tmp_path / "ground_truth"
        return SimpleNamespace(name=name, root=root, images=images, inputs=inputs, outputs=outputs)

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def dataset(make_dataset):
    """A data set of five images; the model gives scores for its classes."""
    rng = np.random.default_rng(7)
    made = make_dataset([draw(rng, index) for index in range(5)], rng)
    for output in made.outputs:
        scores = torch.nn.functional.one_hot(output["sem_seg"], len(NAMES)).permute(2, 0, 1)
        output["sem_seg"] = scores + torch.from_numpy(rng.random(scores.shape)) * 0.1
    return made
