import json

import numpy as np
import pytest
from PIL import Image

from dinat_common.files import write_json
from mask2former.data.classes import ClassTable
from mask2former.prediction.results import PanopticPrediction
from tests.conftest import load_script

shapes_demo = load_script("demo/shapes_demo.py")

GOOD = {"PQ": 71.26, "PQ_th": 65.0, "PQ_st": 90.0, "AP": 55.5, "mIoU": 88.0}


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Replaces the commands and the drawing; the training leaves what `steps.metrics` says."""

    class Steps:
        metrics = GOOD
        commands = []

    def run(*command):
        Steps.commands.append([str(word) for word in command])
        if command[0] == "train_net.py":
            tasks = {"panoptic_seg": ("PQ", "PQ_th", "PQ_st"), "segm": ("AP",), "sem_seg": ("mIoU",)}
            results = {task: {name: Steps.metrics[name] for name in names} for task, names in tasks.items()}
            write_json(tmp_path / "out" / "train" / "inference" / "metrics.json", {"shapes": results})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes_demo, "run", run)
    monkeypatch.setattr(
        shapes_demo, "draw_pictures", lambda weights, folder, count, opts: [folder / "overview.png", folder / "1.png"]
    )
    Steps.commands = []
    return Steps


def test_the_steps_leave_metrics_and_table_and_pass_options_on(steps, tmp_path, capsys):
    out = tmp_path / "out"
    assert shapes_demo.main(["--output", str(out), "SOLVER.MAX_ITER", "7"]) == 0
    assert json.loads((out / "metrics.json").read_text()) == GOOD
    table = (out / "results.md").read_text()
    assert "| PQ " in table and "71.3" in table and ">= 60" in table and "![overview](overview.png)" in table
    assert [command[0] for command in steps.commands] == [
        "datasets/prepare_shapes.py",
        "train_net.py",
        "tools/deterministic_weights.py",
        "demo/demo.py",
    ]
    assert steps.commands[1][-2:] == ["SOLVER.MAX_ITER", "7"]
    printed = capsys.readouterr().out
    assert "no meaning" in printed and str(out / "metrics.json") in printed
    assert Image.open(out / "full_size" / "astronaut.png").size == (512, 512)
    assert [path.name for path in (out / "full_size").iterdir()] == ["astronaut.png"], "the checkpoint is removed"


@pytest.mark.parametrize("value", [49.9, None])
def test_a_missed_target_is_named_and_status_1(value, steps, tmp_path, capsys):
    steps.metrics = GOOD | {"PQ_th": value}
    assert shapes_demo.main(["--output", str(tmp_path / "out"), "--skip-full-size"]) == 1
    printed = capsys.readouterr()
    assert "below target: PQ_th" in printed.err and "missed" in printed.out
    assert (tmp_path / "out" / "metrics.json").exists()
    assert len(steps.commands) == 2


def test_a_training_without_evaluation_is_reported(tmp_path):
    file = tmp_path / "metrics.json"
    with pytest.raises(shapes_demo.DemoError, match=r"wrote no .*metrics.json with PQ.*No such file"):
        shapes_demo.read_metrics(file)
    file.write_text('{"shapes": {"panoptic_seg": {"PQ": 3.0}}}')
    with pytest.raises(shapes_demo.DemoError, match="PQ_th"):
        shapes_demo.read_metrics(file)


def test_a_failing_command_ends_the_demo(monkeypatch, tmp_path, capfd):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "prepare_shapes.py").write_text("import sys; sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes_demo, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        shapes_demo.main(["--output", str(tmp_path / "out")])
    assert stopped.value.code == 1
    printed = capfd.readouterr()
    assert "datasets/prepare_shapes.py failed with exit status 3" in printed.err
    assert "$ python datasets/prepare_shapes.py" in printed.out


def test_a_comparison_shows_image_ground_truth_and_prediction(tmp_path):
    Image.new("RGB", (64, 48), (90, 90, 90)).save(tmp_path / "a.jpg")
    colors = np.zeros((48, 64, 3), dtype=np.uint8)
    colors[:, :32] = (5, 1, 0)
    Image.fromarray(colors).save(tmp_path / "a.png")
    info = [{"id": 261, "category_id": 0, "isthing": True}]
    record = {
        "file_name": str(tmp_path / "a.jpg"),
        "pan_seg_file_name": str(tmp_path / "a.png"),
        "segments_info": info,
    }
    classes = ClassTable(names=("",), colors=((250, 0, 0),))
    seen = []

    def predict(image):
        seen.append(image.shape)
        return PanopticPrediction(ids=np.full((48, 64), 261, dtype=np.int32), segments_info=info, classes=classes)

    row = shapes_demo.comparison(record, predict, classes)
    assert seen == [(48, 64, 3)]
    middle = row[row.shape[0] - 100].astype(int)
    red = middle[:, 0] - middle[:, 1] > 60
    first, second, third = np.array_split(red, 3)
    assert not first.any()
    assert 0.4 < second.mean() < 0.55
    assert third.mean() > 0.9
