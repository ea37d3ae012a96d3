"""tools/reproduce.py on miniature data and tiny random models."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.data.problems import Findings, Problem
from mask2former.data.published import SettingCheck
from mask2former.evaluation import reproduction
from mask2former.evaluation.reproduction import Record, draw_chart, read_records, read_results, write_report
from mask2former.model_zoo import SETTINGS
from tests.conftest import ROOT, config_path, load_script
from tests.tiny import TINY

script = load_script("tools/reproduce.py")
MISSING = Problem("missing", "unpack it")
RUN_PROCESS = script.run_process
SMALL = [*TINY[TINY.index("MODEL.DEVICE") :], "TEST.AUG.MIN_SIZES", "(64,)", "DATALOADER.NUM_WORKERS", "0"]
PQ = {"panoptic_seg": {"PQ": 58.0}, "segm": {"AP": 50.0, "AP50": 60.0}, "sem_seg": {"mIoU": None}}


@pytest.fixture
def weights(tmp_path):
    """A folder with a file for each setting, in both formats that are looked for."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for index, setting in enumerate(SETTINGS.values()):
        name = Path(setting.checkpoint).with_suffix((".pth", ".safetensors")[index % 2]).name
        (folder / name).write_bytes(setting.name.encode())
    return folder


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Findings of the check of the data, by setting and split, to which a test adds its own."""
    found = {name: {"train": Findings(), "val": Findings()} for name in SETTINGS}
    checks = {name: SettingCheck(name, {"val": 7}, found[name]) for name in SETTINGS}
    monkeypatch.setattr(reproduction, "check_settings", lambda names, splits: [checks[name] for name in names])
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    return found


@pytest.fixture
def evaluated(monkeypatch, request):
    """Replaces train_net.py: notes its command lines and writes results. No weights are opened, few charts drawn."""
    calls = []
    monkeypatch.setattr(script, "check_weights", lambda path, cfg: "")
    if getattr(request, "param", None) != "chart":
        monkeypatch.setattr(reproduction, "draw_chart", lambda records, file: None)

    def run_process(command):
        calls.append(command)
        output = Path(command[command.index("OUTPUT_DIR") + 1])
        multi = "TEST.AUG.ENABLED" in command
        tasks = {**PQ, **{f"{task}_TTA": {"IoU" if task == "sem_seg" else "AP": 57.0} for task in PQ}}
        write(output, {"a data set": tasks}, {"a data set_TTA" if multi else "a data set": {"images_per_second": 2.5}})
        return 0, ""

    monkeypatch.setattr(script, "run_process", run_process)
    return calls


def write(output, metrics, speed=None):
    (output / "inference").mkdir(parents=True, exist_ok=True)
    (output / "inference" / "metrics.json").write_text(json.dumps(metrics))
    if speed is not None:
        (output / "inference" / "speed.json").write_text(json.dumps(speed))


def run(tmp_path, weights, *words):
    return script.main(
        ["--datasets", str(tmp_path), "--weights", str(weights), "--output", str(tmp_path / "out"), *words]
    )


def entries(tmp_path):
    content = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    return {entry["setting"]: entry for entry in content["settings"]}


@pytest.mark.parametrize("evaluated", ["chart"], indirect=True)
def test_all_eight_are_evaluated_reported_and_kept(tmp_path, weights, data, evaluated, capsys):
    assert run(tmp_path, weights, "--num-gpus", "2", "MODEL.DEVICE", "cpu") == 0
    assert len(evaluated) == 8
    for command, setting in zip(evaluated, SETTINGS.values(), strict=True):
        assert command[1:4] == [str(ROOT / "train_net.py"), "--eval-only", "--resume"]
        assert command[command.index("--config-file") + 1] == str(config_path(setting.name))
        assert command[command.index("--num-gpus") + 1] == "2"
        assert command[command.index("MODEL.DEVICE") + 1] == "cpu"
        assert ("TEST.AUG.ENABLED" in command) == setting.multi_scale
        assert Path(command[command.index("MODEL.WEIGHTS") + 1]).stem == Path(setting.checkpoint).stem
        assert command[command.index("OUTPUT_DIR") + 1] == str(tmp_path / "out" / setting.name)
    found = entries(tmp_path)
    assert found["coco-panoptic"]["comparison"] == {
        "PQ": {"paper": 58.5, "ours": 58.0, "difference": -0.5},
        "AP": {"paper": 49.2, "ours": 50.0, "difference": pytest.approx(0.8)},
        "mIoU": {"paper": 68.3, "ours": None, "difference": None},
    }
    semantic = found["cityscapes-semantic"]
    assert semantic["ours"] == {"mIoU": 57.0} and semantic["speed"] == {"images_per_second": 2.5}
    assert semantic["multi_scale"] and semantic["versions"]["torch"] and semantic["finished"].endswith("+00:00")
    assert len(semantic["checkpoint_sha256"]) == len(semantic["config_sha256"]) == 64
    assert len({entry["checkpoint_sha256"] for entry in found.values()}) == 8
    text = (tmp_path / "out" / "reproduction.md").read_text()
    row = next(line for line in text.splitlines() if "cityscapes-semantic" in line)
    assert [cell.strip() for cell in row.split("|")][2:9] == ["mIoU", "84.5", "57.00", "-27.50", "multi", "7", "2.5"]
    assert "nothing to measure" in text and "Without a result" not in text
    assert Image.open(tmp_path / "out" / "reproduction.png").size[0] > 500
    capsys.readouterr()
    assert run(tmp_path, weights, "--num-gpus", "1", "MODEL.DEVICE", "cpu") == 0
    assert len(evaluated) == 8 and capsys.readouterr().out.count("finished: kept") == 8


def test_a_changed_checkpoint_or_config_is_evaluated_again(tmp_path, weights, data, evaluated):
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance")
    before = entries(tmp_path)
    (weights / SETTINGS["coco-panoptic"].checkpoint).write_text("trained longer")
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance")
    assert [Path(command[-1]).name for command in evaluated] == ["coco-panoptic", "coco-instance", "coco-panoptic"]
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance", "INPUT.MIN_SIZE_TEST", "640")
    assert len(evaluated) == 5
    after = entries(tmp_path)
    for key in ("config_sha256", "checkpoint_sha256"):
        assert before["coco-panoptic"][key] != after["coco-panoptic"][key]
    # Settings that were not asked for are listed, and earlier results of others stay.
    assert after["ade20k-semantic"]["reason"] == "not among --settings"
    run(tmp_path, weights, "--settings", "ade20k-semantic")
    assert entries(tmp_path)["coco-instance"]["status"] == "done"


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path, weights, data, evaluated, monkeypatch, capsys):
    def interrupt(command):
        raise KeyboardInterrupt

    finish = script.run_process
    monkeypatch.setattr(script, "run_process", lambda command: (interrupt if evaluated else finish)(command))
    names = ["--settings", "coco-panoptic", "coco-instance"]
    with pytest.raises(SystemExit) as end:
        run(tmp_path, weights, *names)
    assert end.value.code == 130
    assert "the same command continues" in capsys.readouterr().err
    found = entries(tmp_path)
    assert found["coco-panoptic"]["status"] == "done" and found["coco-instance"]["status"] == "open"
    assert "not evaluated yet" in (tmp_path / "out" / "reproduction.md").read_text()
    monkeypatch.setattr(script, "run_process", finish)
    assert run(tmp_path, weights, *names) == 0
    assert [Path(command[-1]).name for command in evaluated] == ["coco-panoptic", "coco-instance"]


def test_what_is_missing_is_listed_with_the_reason(tmp_path, weights, data, evaluated, capsys):
    data["coco-panoptic"]["val"].add(MISSING, "panoptic_val2017")
    data["ade20k-panoptic"]["val"].add(Problem("other count", "nothing", blocks=False), "7 instead of 2000")
    data["ade20k-instance"]["train"].add(MISSING, "images/training")
    (weights / "mask2former_dinat_large_coco_instance.safetensors").unlink()
    assert run(tmp_path, weights) == 0
    found = entries(tmp_path)
    assert [name for name, entry in found.items() if entry["status"] == "missing"] == ["coco-panoptic", "coco-instance"]
    assert found["coco-panoptic"]["reason"] == "data: missing: panoptic_val2017"
    reason = found["coco-instance"]["reason"]
    assert reason.startswith("weights: no mask2former_dinat_large_coco_instance.pth (or .safetensors) in ")
    assert "published at https://shi-labs.com/" in reason
    assert len(evaluated) == 6
    assert found["ade20k-panoptic"]["remarks"] == ["other count: 7 instead of 2000"]
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert "Without a result" in text and "missing: panoptic_val2017" in text
    assert "| ade20k-panoptic | other count: 7 instead of 2000 |" in text
    assert "ade20k-panoptic: other count: 7 instead of 2000" in capsys.readouterr().out


def test_a_dry_run_shows_the_plan_and_does_nothing(tmp_path, weights, data, evaluated, capsys):
    (weights / SETTINGS["ade20k-panoptic"].checkpoint).write_bytes(b"x" * 3_400_000)
    data["coco-instance"]["val"].add(MISSING, "val2017")
    assert run(tmp_path, weights, "--dry-run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ade20k-panoptic", "7", "single", "3", "MB", "evaluate"] in rows
    assert ["ade20k-semantic", "7", "multi", "0", "MB", "evaluate"] in rows
    assert ["coco-instance", "7", "single", "0", "MB", "missing"] in rows
    assert evaluated == [] and not (tmp_path / "out").exists()


def test_a_failed_evaluation_is_reported_and_the_others_go_on(tmp_path, weights, data, evaluated, monkeypatch, capfd):
    failing = [sys.executable, "-c", "import sys; sys.exit('error: no GPU')"]
    succeed = script.run_process

    def fail_first(command):
        return RUN_PROCESS(failing) if command[-1].endswith("coco-panoptic") else succeed(command)

    monkeypatch.setattr(script, "run_process", fail_first)
    assert run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance") == 1
    found = entries(tmp_path)
    assert found["coco-panoptic"]["status"] == "failed"
    assert found["coco-panoptic"]["reason"].startswith("exit status 1: error: no GPU (see ")
    assert found["coco-instance"]["status"] == "done"
    assert "error: no GPU" in capfd.readouterr().err


def test_results_that_lack_a_metric_are_named(tmp_path):
    write(tmp_path, {"cityscapes": {"sem_seg": {"IoU": 83.0}}})
    assert read_results(tmp_path, "cityscapes-semantic", multi_scale=False) == ({"mIoU": 83.0}, {})
    with pytest.raises(ValueError, match=r"metrics\.json: expected mIoU, as mIoU or IoU under 'sem_seg_TTA'"):
        read_results(tmp_path, "cityscapes-semantic", multi_scale=True)


def test_records_come_back_and_unreadable_ones_count_as_none(tmp_path):
    assert read_records(tmp_path) == {}
    record = Record("coco-instance", "done", ours={"AP": 50.0}, speed={"device": "a GPU"}, remarks=["few images"])
    write_report([record], tmp_path)
    assert read_records(tmp_path) == {"coco-instance": record}
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "reproduction.json").write_text("{")
    assert read_records(tmp_path) == {}
    (tmp_path / "reproduction.json").write_text('{"version": 0}')
    assert read_records(tmp_path) == {}


@pytest.mark.parametrize("ours", [25.4, 50.8, None])
def test_bars_of_the_chart_are_as_long_as_the_numbers(ours):
    file = io.BytesIO()
    draw_chart([Record("coco-instance", "done", ours={"AP": ours})], file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    longest = {
        name: (pixels == colour).all(axis=2).sum(axis=1).max()
        for name, colour in {"paper": (184, 188, 196), "ours": (47, 111, 178)}.items()
    }
    legend = 40  # pixels, at most
    assert longest["ours"] == pytest.approx(longest["paper"] * (ours or 0) / 50.8, abs=3 if ours else legend)


def test_weights_that_do_not_fit_are_found_before_anything_runs(tmp_path, data, deterministic, capsys):
    output = tmp_path / "weights" / Path(SETTINGS["coco-panoptic"].checkpoint).with_suffix(".safetensors")
    deterministic.main(["--config-file", str(config_path("ade20k-panoptic")), "--output", str(output), *TINY])
    (tmp_path / "weights" / SETTINGS["coco-instance"].checkpoint).write_text("damaged")
    assert run(tmp_path, output.parent, "--dry-run", "--settings", "coco-panoptic", "coco-instance", *SMALL) == 0
    printed = capsys.readouterr().out
    assert re.search(r"coco-panoptic: weights: .* is a checkpoint of another setting: .* 3 have another shape", printed)
    assert re.search(r"coco-instance: weights: .*mask2former_dinat_large_coco_instance\.pth: .*damaged", printed)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--settings", "coco-panoptik"], 2, "--settings coco-panoptik: expected names among coco-panoptic"),
        (["--settings", "coco-panoptic", "MODEL.WEIGHTS", "x"], 2, "MODEL.WEIGHTS is set for each setting"),
        (["--weights", "absent"], 2, "--weights absent: no such folder"),
        (["MODEL.NONSENSE", "1"], 1, "unknown config key MODEL.NONSENSE"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, data, capsys, words, status, message):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, tmp_path, *words)
    assert end.value.code == status
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_miniature_data_and_tiny_models_run_end_to_end(tmp_path, trees, deterministic, monkeypatch, capfd):
    """Real evaluations of two settings, one of them multi-scale; the others' weights are missing."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("ade20k-semantic", "coco-panoptic"):
        output = tmp_path / "weights" / Path(SETTINGS[name].checkpoint).with_suffix(".safetensors")
        deterministic.main(["--config-file", str(config_path(name)), "--output", str(output), *TINY])
    words = ["--datasets", str(trees), "--weights", str(tmp_path / "weights"), "--output", str(tmp_path / "out")]
    assert script.main([*words, *SMALL]) == 0, capfd.readouterr().err
    found = entries(tmp_path)
    assert [name for name, entry in found.items() if entry["status"] == "done"] == ["coco-panoptic", "ade20k-semantic"]
    metrics = json.loads((tmp_path / "out" / "ade20k-semantic" / "inference" / "metrics.json").read_text())
    ours = found["ade20k-semantic"]["ours"]["mIoU"]
    assert ours == next(iter(metrics.values()))["sem_seg_TTA"]["mIoU"] and ours >= 0
    assert set(found["coco-panoptic"]["ours"]) == {"PQ", "AP", "mIoU"}
    assert found["coco-panoptic"]["images"] == 4
    assert found["coco-panoptic"]["speed"]["images_per_second"] > 0
    assert found["coco-panoptic"]["speed"]["peak_memory_bytes"] > 1e8
    capfd.readouterr()
    assert script.main([*words, *SMALL, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("finished: kept") == 2
