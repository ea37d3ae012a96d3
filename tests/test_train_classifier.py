"""train_net.py with an image classifier: training, resuming, evaluation, fine-tuning, and the proof that it learns."""

import csv
import json

import pytest
import torch

from .conftest import ROOT, load_script

CONFIG = ROOT / "configs/shapes/classification/dinat_pico.yaml"
DATASET = "shapes_val_classification"
# A few steps, with all of the published augmentation.
SMALL = {
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.CLASSIFICATION.SIZE": 48,
    "INPUT.CLASSIFICATION.ERASING": 0.5,
    "INPUT.CLASSIFICATION.MIX_PROB": 1.0,
    "INPUT.CLASSIFICATION.RAND_AUGMENT": "rand-m9-mstd0.5-inc1",
    "MODEL.DEVICE": "cpu",
    "MODEL.DINAT.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.DINAT.DILATIONS": "[[1], [1], [1], [1]]",
    "MODEL.DINAT.DROP_PATH_RATE": 0.1,
    "SEED": 1,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.EPOCHS": 2,
    "SOLVER.WARMUP_EPOCHS": 1,
    "SOLVER.COOLDOWN_EPOCHS": 1,
    "TEST.IMS_PER_BATCH": 7,
}


def options(output, flags=(), **changes):
    values = {**SMALL, "OUTPUT_DIR": output, **{key.replace("__", "."): value for key, value in changes.items()}}
    words = (str(word) for pair in values.items() for word in pair)
    return ["--config-file", str(CONFIG), "--num-gpus", "1", *flags, *words]


def metrics(output):
    return json.loads((output / "inference" / "metrics.json").read_text())[DATASET]


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    load_script("datasets/prepare_shapes.py").prepare_classes(root, train=20, val=20, size=48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def run(loggers_restored):
    """The command line in this process."""
    return load_script("train_net.py").run


def test_a_resumed_training_ends_with_the_same_weights_and_the_table_and_the_csv_agree(run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(options(whole, TEST__BEST_METRIC="classification/top1", TEST__EVAL_PERIOD=3))
    # Two steps in an epoch of 20 images, and three epochs with the cooldown.
    assert "6 iterations, 2 in an epoch" in (whole / "log.txt").read_text()
    assert (whole / "model_best.pth").is_file()
    run(options(parts, SOLVER__CHECKPOINT_PERIOD=3))
    (parts / "last_checkpoint").write_text("model_0000002.pth")
    run(options(parts, ["--resume"]))
    first, second = (torch.load(folder / "model_final.pth")["model"] for folder in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = metrics(whole)["classification"]
    assert metrics(parts)["classification"] == found
    rows = list(csv.DictReader((whole / "inference" / "predictions.csv").open()))
    assert len(rows) == 20 and rows[0]["image"] == "arrow/00000.jpg"
    classes = [[row[f"class_{place}"] for place in range(1, 6)] for row in rows]
    right = [row["label"] in found for row, found in zip(rows, classes, strict=True)]
    assert found["top5"] == pytest.approx(5 * sum(right))
    assert found["top1"] == pytest.approx(5 * sum(row["label"] == row["class_1"] for row in rows))
    assert all(float(row["probability_1"]) >= float(row["probability_5"]) for row in rows)


def test_an_interrupted_evaluation_goes_on_and_another_class_count_starts_from_a_checkpoint(run, tmp_path):
    run(options(tmp_path / "one", SOLVER__EPOCHS=1, SOLVER__COOLDOWN_EPOCHS=0))
    weights = tmp_path / "one" / "model_final.pth"
    evaluated = tmp_path / "evaluated"
    run(options(evaluated, ["--eval-only"], MODEL__WEIGHTS=weights))
    assert metrics(evaluated) == metrics(tmp_path / "one")
    records = evaluated / "inference" / "records" / "rank0.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:9]))
    run(options(evaluated, ["--eval-only", "--resume"], MODEL__WEIGHTS=weights))
    assert "8 images were predicted before" in (evaluated / "log.txt").read_text()
    assert metrics(evaluated) == metrics(tmp_path / "one")
    run(options(tmp_path / "more", MODEL__WEIGHTS=weights, MODEL__CLASSIFIER__NUM_CLASSES=12, SOLVER__EPOCHS=1))
    assert "has 10 classes, the model has 12: only the class head" in (tmp_path / "more" / "log.txt").read_text()


@pytest.mark.slow
def test_ten_classes_are_learnt_from_scratch_and_faster_from_a_checkpoint(run, tmp_path, monkeypatch):
    """Takes about two minutes."""
    load_script("datasets/prepare_shapes.py").prepare_classes(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    words = ["--config-file", str(CONFIG), "MODEL.DEVICE", "cpu", "SEED", "1", "--num-gpus", "1"]
    run([*words, "OUTPUT_DIR", str(tmp_path / "scratch")])
    assert metrics(tmp_path / "scratch")["classification"]["top1"] >= 95
    weights = str(tmp_path / "scratch" / "model_final.pth")
    short = ["MODEL.WEIGHTS", weights, "SOLVER.EPOCHS", "2", "SOLVER.BASE_LR", "0.0003"]
    run([*words, *short, "OUTPUT_DIR", str(tmp_path / "tuned")])
    assert metrics(tmp_path / "tuned")["classification"]["top1"] >= 95
