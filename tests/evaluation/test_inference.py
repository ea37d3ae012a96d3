import json
import logging

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from mask2former.config import add_maskformer2_config
from mask2former.evaluation import evaluation_fingerprint, run_inference, weights_digest, write_speed
from mask2former.modeling.inference import InferenceSettings


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.inference_settings = InferenceSettings(overlap_threshold=0.3)
        self.seen = []

    def forward(self, inputs, target_counts=None, settings=None):
        self.seen.append((self.training, settings, torch.is_grad_enabled()))
        return [{"number": image["number"]} for image in inputs]


class Evaluator(DatasetEvaluator):
    def __init__(self, fails=False):
        self.got = []
        self.fails = fails

    def process(self, inputs, outputs):
        if self.fails:
            raise ValueError("no")
        self.got += [(image["number"], output["number"]) for image, output in zip(inputs, outputs, strict=True)]


BATCHES = [[{"number": 0}, {"number": 1}], [{"number": 2}]]


def test_every_image_goes_through_the_model_into_the_evaluator(caplog):
    model, evaluator = Model().train(), Evaluator()
    with caplog.at_level(logging.INFO):
        speed = run_inference(model, BATCHES, evaluator)
    assert evaluator.got == [(0, 0), (1, 1), (2, 2)]
    assert speed.images == 3
    assert speed.images_per_second == pytest.approx(3 / speed.seconds)
    assert speed.peak_memory_bytes > 50_000_000
    assert speed.processes == 1
    assert speed.device.startswith("cpu")
    assert "Predicted 2 images (batch 1 of 2): " in caplog.text
    assert "eta: 0:00:0" in caplog.text
    assert "Predicted 3 images (batch 2 of 2): " in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_asked_for_classes_and_left_as_it_was(fails):
    model = Model().train()
    try:
        run_inference(model, BATCHES, Evaluator(fails))
    except ValueError:
        assert fails
    assert set(model.seen) == {(False, InferenceSettings(overlap_threshold=0.3, semantic_scores=False), False)}
    assert model.inference_settings == InferenceSettings(overlap_threshold=0.3)
    assert model.training is not fails  # Detectron2 restores it where nothing fails


def test_a_model_without_settings_runs_too():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, inputs):
            return inputs

    assert run_inference(Plain(), BATCHES, Evaluator()).images == 3


def test_where_nothing_was_left_the_file_keeps_the_speed_of_before(tmp_path):
    path = tmp_path / "speed.json"
    speed = run_inference(Model(), BATCHES, Evaluator())
    nothing = run_inference(Model(), [], Evaluator())
    assert nothing is None
    write_speed(path, {"a": speed})
    write_speed(path, {"a": nothing, "c": speed}, keep=True)
    written = json.loads(path.read_text())
    assert written.keys() == {"a", "c"}
    assert written["a"]["images"] == 3
    write_speed(path, {"a": nothing, "c": speed})
    assert json.loads(path.read_text()).keys() == {"c"}


@pytest.fixture
def fingerprint(tmp_path):
    """Fingerprints of an evaluation, with changes."""
    name = "fingerprint_of_a_test"
    DatasetCatalog.register(name, lambda: [])
    file = tmp_path / "truth.json"
    file.write_text("[]")
    MetadataCatalog.get(name).set(json_file=str(file))

    def of(*opts, model=None, augmented=False, truth="[]"):
        if truth != file.read_text():
            file.write_text(truth)
        cfg = get_cfg()
        add_maskformer2_config(cfg)
        cfg.merge_from_list(list(opts))
        cfg.freeze()
        return evaluation_fingerprint(cfg, name, weights_digest(model or Model()), augmented=augmented)

    yield of
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OUTPUT_DIR", "elsewhere"),
        ("DATASETS.CUSTOM", []),
        ("MODEL.WEIGHTS", "copy.pth"),
        ("TEST.AUG.FLIP", False),
        ("TEST.EVAL_PERIOD", 9),
        ("SOLVER.BASE_LR", 1.0),
        ("DATALOADER.NUM_WORKERS", 7),
    ],
)
def test_what_changes_no_prediction_does_not_count(fingerprint, key, value):
    assert fingerprint(key, value) == fingerprint()


def test_what_changes_predictions_or_their_comparison_counts(fingerprint):
    other = Model()
    with torch.no_grad():
        other.scale[1] = 2
    found = [
        fingerprint(),
        fingerprint("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.5),
        fingerprint("INPUT.MIN_SIZE_TEST", 5),
        fingerprint("DATASETS.TRAIN", ("other",)),
        fingerprint("DATASETS.CUSTOM", [{"name": "own", "classes": [{"name": "a", "isthing": True}]}]),
        fingerprint("DATASETS.CUSTOM", [{"name": "own", "classes": [{"name": "a", "isthing": False}]}]),
        fingerprint(augmented=True),
        fingerprint("TEST.AUG.FLIP", False, augmented=True),
        fingerprint(model=other),
        fingerprint(truth="[1]"),
    ]
    texts = [json.dumps(entry) for entry in found]
    assert len(set(texts)) == len(texts)
