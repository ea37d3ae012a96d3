"""tools/reproduce.py: which models are evaluated, what is missing, results of each kind, and the report."""

import io
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mask2former.checkpoint import to_openmmlab
from mask2former.data.datasets import imagenet
from mask2former.data.problems import Findings, Problem
from mask2former.data.published import DatasetCheck
from mask2former.evaluation import reproduction_report
from mask2former.evaluation.reproduction import (
    EVALUATIONS,
    GROUPS,
    Record,
    compact,
    read_records,
    read_results,
    select,
)
from mask2former.evaluation.reproduction_report import draw_chart, write_report
from mask2former.model_zoo import MODELS, SETTINGS
from tests.conftest import ROOT, config_path, load_script
from tests.kinds import KINDS
from tests.tiny import TINY

script = load_script("tools/reproduce.py")
MISSING = Problem("missing", "unpack it")
OTHER_COUNT = Problem("other count", "nothing", blocks=False)
RUN_PROCESS = script.run_process
SMALL = [*TINY[TINY.index("MODEL.DEVICE") :], "TEST.AUG.MIN_SIZES", "(64,)", "DATALOADER.NUM_WORKERS", "0"]
DATASETS = {
    "classification": {"imagenet_val", "imagenet_22k_val"},
    "detection": {"coco_2017_val"},
    "upernet": {"ade20k_sem_seg_val"},
}
# All that train_net.py may report, at one scale.
RESULTS = {
    "classification": {"top1": 81.0, "top5": 95.0},
    "bbox": {"AP": 46.0, "AP50": 60.0},
    "panoptic_seg": {"PQ": 58.0},
    "segm": {"AP": 50.0, "AP50": 60.0},
    "sem_seg": {"mIoU": None},
}


@pytest.fixture
def weights(tmp_path):
    """A folder with a file for each model, in both formats that are looked for."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for index, model in enumerate(MODELS.values()):
        name = Path(model.checkpoint).with_suffix((".pth", ".safetensors")[index % 2]).name
        (folder / name).write_bytes(model.name.encode())
    return folder


@pytest.fixture
def data(monkeypatch):
    """Findings of the check of the data, by name of the data set, to which a test adds its own."""
    found = {}

    def check(names):
        return {name: DatasetCheck(7, found.setdefault(name, Findings())) for name in names}

    monkeypatch.setattr(script, "check_datasets", check)
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    check(["coco_2017_val", "coco_2017_val_panoptic_with_sem_seg", "ade20k_panoptic_val", "ade20k_sem_seg_val"])
    return found


@cache
def read_config(path, opts):
    return setup_cfg(path, opts)


setup_cfg = script.setup_cfg


@pytest.fixture
def evaluated(monkeypatch, request):
    """Replaces train_net.py: notes its command lines and writes results. No weights are opened, few charts drawn."""
    calls = []
    monkeypatch.setattr(script, "setup_cfg", lambda path, opts: read_config(path, tuple(opts)))
    monkeypatch.setattr(script, "check_weights", lambda path, cfg, **options: "")
    if getattr(request, "param", None) != "chart":
        monkeypatch.setattr(reproduction_report, "draw_chart", lambda records, file: None)

    def run_process(command):
        calls.append(command)
        augmented = {f"{task}_TTA": {"IoU" if task == "sem_seg" else "AP": 57.0} for task in RESULTS}
        speed = {"a data set": {"images_per_second": 2.5}, "a data set_TTA": {"images_per_second": 0.25}}
        write(output_of(command), {"a data set": {**RESULTS, **augmented}}, speed)
        return 0, ""

    monkeypatch.setattr(script, "run_process", run_process)
    return calls


def output_of(command):
    return Path(command[command.index("OUTPUT_DIR") + 1])


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


def cells(text, name):
    """Cells of the first row of a table of the report with this name."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_every_model_has_an_evaluation_and_the_doubtful_two():
    assert [evaluation.model.name for evaluation in EVALUATIONS.values() if evaluation.name in MODELS] == [
        name for name, model in MODELS.items() if not model.ways
    ]
    doubtful = {"upernet_dinat_large@512", "upernet_dinat_large@640", "upernet_dinat_s_large@512"}
    assert set(EVALUATIONS) - set(MODELS) == {*doubtful, "upernet_dinat_s_large@640"}
    assert {group: len(names) for group, names in GROUPS.items()} == {
        "classification": 25,
        "detection": 21,
        "upernet": 15,
        "mask2former": 8,
    }


def test_no_two_models_share_a_file_name():
    files = [Path(name).stem for m in MODELS.values() for name in (m.checkpoint, *m.other_checkpoints)]
    assert len(files) == len(set(files)) == 67 + 5


def test_the_two_ways_are_the_published_files_and_the_published_name():
    for name in ("upernet_dinat_large", "upernet_dinat_s_large"):
        small, large = (EVALUATIONS[f"{name}@{side}"] for side in (512, 640))
        configs = [setup_cfg(ROOT / small.model.config_file, way.opts) for way in (small, large)]
        assert small.opts == () and large.doubt and large.doubt == small.doubt
        sizes = [(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.TEST.AUG.MAX_SIZE) for cfg in configs]
        assert sizes == [(512, 2048, 3584), (640, 2560, 4480)]
        # The same factors, the largest with the longer side in proportion.
        for cfg in configs:
            assert [size / cfg.INPUT.MIN_SIZE_TEST for size in cfg.TEST.AUG.MIN_SIZES] == [
                0.5,
                0.75,
                1,
                1.25,
                1.5,
                1.75,
            ]
            assert cfg.TEST.AUG.MAX_SIZE == 1.75 * cfg.INPUT.MAX_SIZE_TEST


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["nat_mini"], ["nat_mini"]),
        (["mask2former"], list(SETTINGS)),
        (["coco-panoptic", "coco-*"], ["coco-panoptic", "coco-instance"]),
        (["*dinat_s*large*"], "dinat_s_large dinat_s_large_384 dinat_s_large_21k cascadedmaskrcnn_dinat_s_large "
         "upernet_dinat_s_large@512 upernet_dinat_s_large@640".split()),
        (["upernet_dinat_large"], ["upernet_dinat_large@512", "upernet_dinat_large@640"]),
        (["*@640", "upernet_dinat_large@640"], ["upernet_dinat_large@640", "upernet_dinat_s_large@640"]),
        (["maskrcnn_dinat_mini", "SOLVER.MAX_ITER", "1"], ["maskrcnn_dinat_mini"]),
        ([], list(EVALUATIONS)),
    ],
)  # fmt: skip
def test_models_groups_and_patterns_are_selected_once(tmp_path, words, names):
    command = ["--datasets", str(tmp_path), "--weights", str(tmp_path)]
    assert script.parse_arguments([*command, *(["--settings", *words] if words else [])]).settings == names


def test_many_names_are_written_compactly():
    assert compact(select("detection")) == "detection (all 21)"
    assert compact([*select("upernet"), "nat_mini"]) == "nat_mini, upernet (all 15)"
    assert compact(["coco-instance", "nat_tiny"]) == "nat_tiny, coco-instance"
    assert compact(set(SETTINGS) - {"coco-panoptic"}) == "mask2former (all but coco-panoptic)"


# Models with every kind of result.
EVERY_KIND = (
    "nat_mini",
    "dinat_s_large_21k",
    "nat_tiny_maskrcnn",
    "nat_mini_upernet",
    "upernet_dinat_large",
    "mask2former",
)


@pytest.mark.parametrize("evaluated", ["chart"], indirect=True)
def test_every_kind_is_evaluated_reported_and_kept(tmp_path, weights, data, evaluated, monkeypatch, capsys):
    # Drawn at the end only: the charts before look alike.
    draw = reproduction_report.draw_chart
    monkeypatch.setattr(
        reproduction_report, "draw_chart", lambda records, file: len(evaluated) == 14 and draw(records, file)
    )
    assert run(tmp_path, weights, "--num-gpus", "2", "--settings", *EVERY_KIND) == 0
    names = [name for word in EVERY_KIND for name in select(word)]
    assert len(evaluated) == len(names) == 14
    for command, (name, evaluation) in zip(evaluated, ((name, EVALUATIONS[name]) for name in names), strict=True):
        assert command[1:4] == [str(ROOT / "train_net.py"), "--eval-only", "--resume"]
        assert command[command.index("--config-file") + 1] == str(ROOT / evaluation.model.config_file)
        assert command[command.index("--num-gpus") + 1] == "2"
        published_augmented = evaluation.model.group == "upernet" or name in ("ade20k-semantic", "cityscapes-semantic")
        assert ("TEST.AUG.ENABLED" in command) == published_augmented
        assert ("2560" in command) == name.endswith("@640")
        assert Path(command[command.index("MODEL.WEIGHTS") + 1]).stem == Path(evaluation.model.checkpoint).stem
        assert output_of(command) == tmp_path / "out" / name
    found = entries(tmp_path)
    assert found["coco-panoptic"]["comparison"] == {
        "PQ": {"paper": 58.5, "ours": 58.0, "difference": -0.5},
        "AP": {"paper": 49.2, "ours": 50.0, "difference": pytest.approx(0.8)},
        "mIoU": {"paper": 68.3, "ours": None, "difference": None},
    }
    semantic = found["cityscapes-semantic"]
    assert semantic["ours"] == {"mIoU": 57.0} and semantic["speed"] == {"images_per_second": 0.25}
    assert semantic["multi_scale"] and semantic["versions"]["torch"] and semantic["finished"].endswith("+00:00")
    assert len(semantic["checkpoint_sha256"]) == len(semantic["config_sha256"]) == 64
    assert len({found[name]["checkpoint_sha256"] for name in names}) == 13
    assert len({found[name]["config_sha256"] for name in names}) == 14
    unpublished = {"top1": {"paper": None, "ours": 81.0, "difference": None}}
    assert found["dinat_s_large_21k"]["comparison"] == unpublished and len(found) == 69

    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert cells(text, "cityscapes-semantic")[:7] == ["mIoU", "84.5", "57.00", "-27.50", "multi", "7", "0.25"]
    assert cells(text, "nat_mini")[:5] == ["81.8", "81.00", "-0.80", "7", "2.5"]
    assert cells(text, "dinat_s_large_21k")[:3] == ["none", "81.00", ""]
    assert cells(text, "nat_tiny_maskrcnn")[:6] == ["47.7", "46.00", "-1.70", "42.6", "50.00", "+7.40"]
    both = ["54.0", "nothing to measure", "", "54.9", "57.00", "+2.10", "7", "2.5 / 0.25"]
    assert cells(text, "upernet_dinat_large@512")[:8] == cells(text, "upernet_dinat_large@640")[:8] == both
    doubt = next(line for line in text.splitlines() if "the published mIoU probably belongs to 2560 x 640" in line)
    assert doubt.startswith("| upernet_dinat_large@512, upernet_dinat_large@640 ")
    assert "INPUT.MIN_SIZE_TEST 640" in text and "not among --settings" in text
    assert cells(text, "upernet") == ["3 of 15", "+10.60 (nat_mini_upernet, mIoU multi-scale)"]
    assert Image.open(tmp_path / "out" / "reproduction.png").size[0] > 500

    capsys.readouterr()
    assert run(tmp_path, weights, "--num-gpus", "1", "--settings", *EVERY_KIND) == 0
    assert len(evaluated) == 14 and capsys.readouterr().out.count("finished: kept") == 14


def test_all_evaluations_fit_into_a_chart():
    file = io.BytesIO()
    draw_chart([Record(name, "done", ours={"top1": 80.0, "mIoU": 45.0}) for name in EVALUATIONS], file)
    width, height = Image.open(file).size
    assert 1500 < width < 2500 and 1500 < height < 3000


def test_a_changed_checkpoint_or_config_is_evaluated_again(tmp_path, weights, data, evaluated):
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance")
    before = entries(tmp_path)
    (weights / SETTINGS["coco-panoptic"].checkpoint).write_text("trained longer")
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance")
    assert [Path(command[-1]).name for command in evaluated] == ["coco-panoptic", "coco-instance", "coco-panoptic"]
    run(tmp_path, weights, "--settings", "coco-panoptic", "coco-instance", "INPUT.MIN_SIZE_TEST", "640")
    assert len(evaluated) == 5 and evaluated[-1][evaluated[-1].index("INPUT.MIN_SIZE_TEST") + 1] == "640"
    after = entries(tmp_path)
    for key in ("config_sha256", "checkpoint_sha256"):
        assert before["coco-panoptic"][key] != after["coco-panoptic"][key]
    # Models that were not asked for are listed, and earlier results of others stay.
    assert after["ade20k-semantic"]["reason"] == "not among --settings"
    run(tmp_path, weights, "--settings", "ade20k-semantic")
    assert entries(tmp_path)["coco-instance"]["status"] == "done"


def test_files_are_hashed_only_if_that_can_change_the_plan(tmp_path, weights, data, evaluated, monkeypatch):
    hashed = []
    real = script.sha256_of
    monkeypatch.setattr(script, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    run(tmp_path, weights, "--settings", "nat_mini", "nat_tiny", "--dry-run")
    assert hashed == []
    run(tmp_path, weights, "--settings", "nat_mini")
    run(tmp_path, weights, "--settings", "nat_mini", "nat_tiny", "--dry-run")
    assert hashed == ["nat_mini.pth"]
    # A copy has another time, and the same content.
    content = (weights / "nat_mini.pth").read_bytes()
    (weights / "nat_mini.pth").unlink()
    (weights / "nat_mini.pth").write_bytes(content)
    run(tmp_path, weights, "--settings", "nat_mini")
    assert hashed == ["nat_mini.pth"] * 2 and len(evaluated) == 1


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
    data["coco_2017_val_panoptic_with_sem_seg"].add(MISSING, "panoptic_val2017")
    data["ade20k_panoptic_val"].add(OTHER_COUNT, "7 instead of 2000")
    (weights / "mask2former_dinat_large_coco_instance.pth").unlink()
    assert run(tmp_path, weights, "--settings", "mask2former") == 0
    found = {name: entries(tmp_path)[name] for name in SETTINGS}
    assert [name for name, entry in found.items() if entry["status"] == "missing"] == ["coco-panoptic", "coco-instance"]
    assert found["coco-panoptic"]["reason"] == "data: missing: panoptic_val2017"
    reason = found["coco-instance"]["reason"]
    assert reason.startswith(f"weights: no file of the published name (.pth, .safetensors or .pkl) in {weights}; ")
    url = "https://shi-labs.com/projects/dinat/checkpoints/m2f/mask2former_dinat_large_coco_instance.pth"
    assert reason.endswith(f"mask2former_dinat_large_coco_instance.pth is published at {url}")
    assert len(evaluated) == 6
    assert found["ade20k-panoptic"]["remarks"] == ["other count: 7 instead of 2000"]
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert "Without a result" in text and "missing: panoptic_val2017" in text and url in text
    assert cells(text[text.index("## Remarks") :], "ade20k-panoptic") == ["other count: 7 instead of 2000"]
    assert "classification (all 25), detection (all 21), upernet (all 15)" in text
    assert "ade20k-panoptic: other count: 7 instead of 2000" in capsys.readouterr().out


def test_a_dry_run_shows_the_plan_and_does_nothing(tmp_path, weights, data, evaluated, monkeypatch, capsys):
    (weights / SETTINGS["ade20k-panoptic"].checkpoint).write_bytes(b"x" * 3_400_000)
    data["coco_2017_val"].add(MISSING, "val2017")
    for path in weights.glob("nat_*_upernet.*"):
        path.unlink()
    # Both published names of a file count.
    found = next(weights.glob("dinat_s_tiny_in1k_224.*"))
    found.rename(found.with_name(found.name.replace("in1k", "1k")))
    assert run(tmp_path, weights, "--dry-run") == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert [row[0] for row in rows[3:72]] == list(EVALUATIONS)
    checkpoint = SETTINGS["ade20k-panoptic"].checkpoint
    assert ["ade20k-panoptic", "7", "single", checkpoint, "3", "MB", "evaluate"] in rows
    assert [row[2] for row in rows if row[:1] in (["ade20k-semantic"], ["upernet_dinat_s_tiny"])] == ["both", "multi"]
    assert ["dinat_s_tiny", "7", "single", found.name.replace("in1k", "1k"), "0", "MB", "evaluate"] in rows
    assert ["nat_mini_upernet", "7", "both", "nat_mini_upernet.pth", "missing", "missing:", "weights"] in rows
    assert "detection (all 21), coco-instance: data: missing: val2017" in printed and printed.count("val2017") == 1
    urls = "https://shi-labs.com/projects/nat/checkpoints/SEG/{nat_mini_upernet,nat_tiny_upernet,nat_small_upernet,"
    assert f"{urls}nat_base_upernet}}.pth" in printed
    assert "69 evaluations: 0 finished, 43 to do, 26 lack something" in printed
    assert evaluated == [] and not (tmp_path / "out").exists()


def test_a_dry_run_without_any_file_builds_no_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    monkeypatch.setattr(script, "setup_cfg", lambda path, opts: read_config(path, tuple(opts)))
    monkeypatch.setattr(script, "build_empty_state", None)
    assert run(tmp_path, tmp_path, "--dry-run") == 0
    printed = capsys.readouterr().out
    missing = {line.split()[0] for line in printed.splitlines() if line.endswith("missing: data, weights")}
    assert missing == set(EVALUATIONS)
    for group, path in (("detection (all 21), ", "coco/annotations/instances_val2017.json"), ("", "imagenet/val")):
        (line,) = [
            line for line in printed.splitlines() if f"{tmp_path}/{path}" in line and "panoptic" not in line[:20]
        ]
        assert line.startswith(group)
    assert len(printed.splitlines()) < 110


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


def test_augmentation_is_refused_where_there_is_none(tmp_path, weights, data, evaluated, capsys):
    names = ["--settings", "nat_mini", "nat_mini_maskrcnn", "nat_mini_upernet", "coco-instance"]
    assert run(tmp_path, weights, *names, "TEST.AUG.ENABLED", "True") == 0
    assert [output_of(command).name for command in evaluated] == ["nat_mini_upernet", "coco-instance"]
    assert (
        "nat_mini: config: TEST.AUG.ENABLED is True, but ImageClassifier has no test-time augmentation"
        in capsys.readouterr().out
    )
    assert run(tmp_path, weights, *names, "TEST.AUG.ENABLED", "False") == 0
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert cells(text, "nat_mini_upernet")[3:6] == ["46.4", "not evaluated", ""]


@pytest.mark.parametrize(
    ("name", "multi", "ours"),
    [
        ("nat_mini", False, {"top1": 81.0}),
        ("nat_mini_maskrcnn", False, {"box AP": 46.0, "mask AP": 50.0}),
        ("upernet_dinat_large@640", True, {"mIoU": 40.0, "mIoU multi-scale": 41.0}),
        ("upernet_dinat_large@640", False, {"mIoU": 40.0}),
        ("ade20k-semantic", True, {"mIoU": 41.0}),
        ("ade20k-semantic", False, {"mIoU": 40.0}),
        ("coco-panoptic", False, {"PQ": 58.0, "AP": 50.0, "mIoU": 40.0}),
    ],
)
def test_results_of_each_kind(tmp_path, name, multi, ours):
    tasks = {**RESULTS, "sem_seg": {"mIoU": 40.0}, **({"sem_seg_TTA": {"mIoU": 41.0}} if multi else {})}
    write(tmp_path, {"data": tasks}, {"data": {"device": "single"}, "data_TTA": {"device": "multi"}})
    found = read_results(tmp_path, name, multi_scale=multi)
    assert found.ours == ours
    both = name.startswith("upernet") and multi
    assert found.speed == {"device": "multi" if multi and not both else "single"}
    assert found.speed_multi_scale == ({"device": "multi"} if both else {})


def test_results_that_lack_a_metric_are_named(tmp_path):
    write(tmp_path, {"cityscapes": {"sem_seg": {"IoU": 83.0}}})
    assert read_results(tmp_path, "cityscapes-semantic", multi_scale=False).ours == {"mIoU": 83.0}
    with pytest.raises(ValueError, match=r"metrics\.json: expected mIoU, as mIoU or IoU under 'sem_seg_TTA'"):
        read_results(tmp_path, "cityscapes-semantic", multi_scale=True)


def test_records_come_back_and_unreadable_ones_count_as_none(tmp_path):
    assert read_records(tmp_path) == {}
    record = Record("coco-instance", "done", obstacles=[], ours={"AP": 50.0}, speed={"device": "a"}, remarks=["few"])
    write_report([record], tmp_path)
    assert read_records(tmp_path) == {"coco-instance": record}
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "reproduction.json").write_text("{")
    assert read_records(tmp_path) == {}
    (tmp_path / "reproduction.json").write_text('{"version": 0}')
    assert read_records(tmp_path) == {}


def test_records_of_the_first_eight_settings_are_still_read(tmp_path):
    entry = {
        "setting": "ade20k-semantic", "status": "done", "reason": "", "multi_scale": True, "ours": {"mIoU": 58.0},
        "config_sha256": "c", "checkpoint": "m.pth", "checkpoint_sha256": "w", "images": 2000, "remarks": [],
        "speed": {}, "versions": {"torch": "2"}, "finished": "2026-01-01T00:00:00+00:00", "comparison": {},
    }  # fmt: skip
    (tmp_path / "reproduction.json").write_text(json.dumps({"version": 1, "settings": [entry]}))
    (record,) = read_records(tmp_path).values()
    assert (record.ours, record.checkpoint_sha256, record.checkpoint_state) == ({"mIoU": 58.0}, "w", {})
    write_report([record], tmp_path)
    assert "58.00" in (tmp_path / "reproduction.md").read_text()


@pytest.mark.parametrize("ours", [25.4, 50.8, None])
def test_bars_of_the_chart_are_as_long_as_the_numbers(ours):
    file = io.BytesIO()
    draw_chart([Record("coco-instance", "done", ours={"AP": ours}), Record("nat_mini", "missing")], file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[0] < 300, "what is missing is not drawn"
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
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights" / "nat_mini.pkl")
    names = ["coco-panoptic", "coco-instance", "nat_mini"]
    assert run(tmp_path, output.parent, "--dry-run", "--settings", *names, *SMALL) == 0
    printed = capsys.readouterr().out
    assert re.search(r"coco-panoptic: weights: .* is a checkpoint of another model: .* 3 have another shape", printed)
    assert re.search(r"coco-instance: weights: .*mask2former_dinat_large_coco_instance\.pth: .*damaged", printed)
    assert re.search(r"nat_mini: weights: .*nat_mini\.pkl: opening a \.pkl can execute .* --allow-pickle", printed)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--settings", "coco-panoptik"],
            2,
            "--settings coco-panoptik: no such model or group; similar: coco-panoptic",
        ),
        (["--settings", "nat_mini", "dinat_s_tiny_1k_224.pth"], 2, "similar: dinat_s_tiny"),
        (["--settings", "detectors"], 2, "similar: detection"),
        (["--settings", "zzz"], 2, "detection: nat_mini_maskrcnn, nat_tiny_maskrcnn"),
        (["--settings", "coco-panoptic", "MODEL.WEIGHTS", "x"], 2, "MODEL.WEIGHTS is set for each model"),
        (["--weights", "absent"], 2, "--weights absent: no such folder"),
        (["MODEL.NONSENSE", "1"], 1, "unknown config key MODEL.NONSENSE"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, data, capsys, words, status, message):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, tmp_path, *words)
    assert end.value.code == status
    assert message in capsys.readouterr().err


# A model of each kind, with the published name of its file.
END_TO_END = {
    "dinat_s_tiny": "dinat_s_tiny_1k_224.safetensors",  # the name in the papers' tables
    "nat_mini_maskrcnn": "nat_mini_maskrcnn.pth",
    "nat_mini_upernet": "nat_mini_upernet.pth",
    "coco-panoptic": "mask2former_dinat_large_coco_panoptic.safetensors",
}
# Where train_net.py writes the numbers of the report.
WRITTEN = {
    "top1": ("classification", "top1"),
    "box AP": ("bbox", "AP"),
    "mask AP": ("segm", "AP"),
    "PQ": ("panoptic_seg", "PQ"),
    "AP": ("segm", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
    "mIoU multi-scale": ("sem_seg_TTA", "mIoU"),
}
# All kinds in a moment: the keys of tests/kinds.py, which every config has.
SHRUNK = [word for kind in KINDS.values() for word in kind.opts] + (
    "DATALOADER.NUM_WORKERS 0 INPUT.CLASSIFICATION.SIZE 32 MODEL.SEM_SEG_HEAD.CONVS_DIM 32 TEST.AUG.MIN_SIZES [32,64]"
).split()


def draw_class_folders(root, classes):
    """An `imagenet/val` with an image of 40 x 50 pixels for each of so many classes."""
    rng = np.random.default_rng(0)
    for index in range(classes):
        folder = root / "imagenet" / "val" / f"n{index:08d}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / "image.JPEG")


def make_weights(folder, deterministic, names, opts):
    """Rule-made weights of models under their published names; a `.pth` as OpenMMLab's libraries wrote them."""
    for name in names:
        path = folder / Path(END_TO_END[name]).with_suffix(".safetensors")
        config = str(ROOT / MODELS[name].config_file)
        deterministic.main(["--config-file", config, "--output", str(path), "MODEL.WEIGHTS", "", *opts])
        if END_TO_END[name].endswith(".pth"):
            published = {"meta": {"epoch": 1}, "state_dict": to_openmmlab(load_file(path))}
            torch.save(published, path.with_suffix(".pth"))
            path.unlink()


@pytest.fixture
def three_classes(tmp_path, trees, monkeypatch):
    """A root with the miniature trees, and an ImageNet of three classes."""
    root = tmp_path / "data"
    root.mkdir()
    for tree in trees.iterdir():
        (root / tree.name).symlink_to(tree)
    draw_class_folders(root, 3)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    imagenet.register_class_folders("imagenet_val", "imagenet/val", imagenet.CLASSES[:3], source="")
    yield root
    imagenet.register()


def check_numbers(found, name, output):
    """The report has the numbers that an evaluation by train_net.py has written."""
    (tasks,) = json.loads((output / "inference" / "metrics.json").read_text()).values()
    labels = [quantity.label for quantity in EVALUATIONS[name].quantities]
    assert found[name]["ours"] == {label: tasks[WRITTEN[label][0]][WRITTEN[label][1]] for label in labels}
    assert None not in found[name]["ours"].values() and found[name]["status"] == "done"
    assert found[name]["speed"]["images_per_second"] > 0 and found[name]["speed"]["peak_memory_bytes"] > 1e8
    assert found[name]["checkpoint"] == END_TO_END[name]


def test_one_of_each_kind_end_to_end_in_this_process(
    tmp_path, three_classes, deterministic, monkeypatch, loggers_restored, capsys
):
    opts = [*SHRUNK, "MODEL.CLASSIFIER.NUM_CLASSES", "3"]
    make_weights(tmp_path / "weights", deterministic, END_TO_END, opts)
    evaluated = []

    def run_process(command):
        evaluated.append(command)
        train_net.run(command[2:])
        return 0, ""

    train_net = load_script("train_net.py")
    monkeypatch.setattr(script, "run_process", run_process)
    words = ["--datasets", str(three_classes), "--weights", str(tmp_path / "weights"), "--num-gpus", "1"]
    words += ["--output", str(tmp_path / "out"), "--settings", *END_TO_END]
    assert script.main([*words, *opts]) == 0
    found = entries(tmp_path)
    for name in END_TO_END:
        check_numbers(found, name, tmp_path / "out" / name)
    assert found["nat_mini_upernet"]["speed_multi_scale"]["images_per_second"] > 0
    assert [found[name]["images"] for name in END_TO_END] == [3, 4, 4, 4]
    assert script.main([*words, *opts]) == 0
    assert len(evaluated) == 4 and capsys.readouterr().out.count("finished: kept") == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "opts"),
    [
        # The smallest published networks at full size, on small images.
        (
            ["dinat_s_tiny", "nat_mini_maskrcnn", "nat_mini_upernet"],
            "MODEL.DEVICE cpu DATALOADER.NUM_WORKERS 0 INPUT.CLASSIFICATION.SIZE 32 INPUT.MIN_SIZE_TEST 64 "
            "INPUT.MAX_SIZE_TEST 128 TEST.AUG.MIN_SIZES [32,64] TEST.AUG.MAX_SIZE 128",
        ),
        (["coco-panoptic"], " ".join(SHRUNK)),
    ],
    ids=["published", "mask2former"],
)
def test_the_real_command_measures_what_train_net_does(tmp_path, trees, deterministic, monkeypatch, capfd, names, opts):
    """All that is found is evaluated, in processes of its own; the same evaluations by hand give the same numbers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root, opts = tmp_path / "data", opts.split()
    root.mkdir()
    for tree in trees.iterdir():
        (root / tree.name).symlink_to(tree)
    draw_class_folders(root, 1000)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    make_weights(tmp_path / "weights", deterministic, names, opts)
    words = ["--datasets", str(root), "--weights", str(tmp_path / "weights"), "--output", str(tmp_path / "out"), *opts]
    assert script.main(words) == 0, capfd.readouterr().err
    found = entries(tmp_path)
    assert [name for name, entry in found.items() if entry["status"] == "done"] == names
    for name in names:
        command = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--config-file"]
        command += [str(ROOT / MODELS[name].config_file), *opts, "OUTPUT_DIR", str(tmp_path / name)]
        command += ["MODEL.WEIGHTS", str(tmp_path / "weights" / END_TO_END[name])]
        command += ["TEST.AUG.ENABLED", "True"] if name == "nat_mini_upernet" else []
        subprocess.run(command, check=True)
        check_numbers(found, name, tmp_path / name)
    capfd.readouterr()
    assert script.main([*words, "--dry-run"]) == 0
    assert capfd.readouterr().out.count("finished: kept") == len(names)
