"""train_net.py from the outside: training, output, files and errors."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, config_path, load_script

CONFIG = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
DATASET = "shapes_train_panoptic"  # five images, so that two processes get three and two
# A model that learns these five images in seconds.
SMALL = {
    "DATASETS.TEST": f"('{DATASET}',)",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.MAX_SCALE": 1.0,
    "INPUT.MIN_SCALE": 1.0,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.RANDOM_FLIP": "none",
    "MODEL.DEVICE": "cpu",
    "MODEL.DINAT.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.DINAT.DILATIONS": "[[1], [1], [1], [1]]",
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.1,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.1,
    "SEED": 1,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 50,
    "SOLVER.STEPS": "()",
    "SOLVER.WARMUP_ITERS": 2,
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def options(output, flags=(), **changes):
    values = {**SMALL, "OUTPUT_DIR": output, **{key.replace("__", "."): value for key, value in changes.items()}}
    return ["--config-file", str(CONFIG), *flags, *(str(word) for pair in values.items() for word in pair)]


def start(*words):
    command = [sys.executable, "-W", "ignore", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return printed


def metrics(output):
    return json.loads((output / "inference" / "metrics.json").read_text())[DATASET]


def iterations(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line["iteration"] for line in lines if "total_loss" in line]


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    load_script("datasets/prepare_shapes.py").prepare(root, train=5, val=1, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder and output of a run in a process of its own."""
    output = tmp_path_factory.mktemp("trained")
    printed = finish(start("train_net.py", *options(output, SOLVER__CHECKPOINT_PERIOD=20)))
    return output, printed


@pytest.fixture
def run(loggers_restored):
    """The command line in this process."""
    return load_script("train_net.py").run


def test_a_training_learns_logs_and_evaluates(trained):
    output, printed = trained
    found = metrics(output)
    assert found["panoptic_seg"]["PQ"] > 1
    assert found["segm"]["AP"] > 1
    assert found["sem_seg"]["mIoU"] > 20
    for task, metric in (("panoptic_seg", "PQ_th"), ("segm", "AP50"), ("sem_seg", "mIoU")):
        assert f"| {task:<12} | {metric:<8} | {found[task][metric]:8.4f} |" in printed
    assert "eta: " in printed
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert lines[-1]["panoptic_seg/PQ"] == found["panoptic_seg"]["PQ"]
    names = {path.name.split(".")[0] for path in output.iterdir()}
    assert {"model_0000019", "model_0000039", "model_final", "last_checkpoint", "events", "log", "config"} <= names


def test_evaluating_again_gives_the_same_numbers_to_the_last_digit(trained, run, tmp_path):
    run(options(tmp_path, ["--eval-only"], MODEL__WEIGHTS=trained[0] / "model_final.pth"))
    assert metrics(tmp_path) == metrics(trained[0])


def test_an_evaluation_that_was_killed_goes_on_with_the_same_weights(trained, run, tmp_path):
    weights = {"MODEL__WEIGHTS": trained[0] / "model_final.pth"}
    run(options(tmp_path, ["--eval-only"], **weights))
    records = tmp_path / "inference" / "records" / "rank0.jsonl"
    records.write_bytes(records.read_bytes()[: -len(records.read_bytes()) // 2])
    (tmp_path / "inference" / "metrics.json").unlink()
    # File of a training in this folder, unrelated to the evaluation.
    (tmp_path / "last_checkpoint").write_text("absent.pth")
    run(options(tmp_path, ["--eval-only", "--resume"], **weights))
    assert re.search(r"[1-4] images were predicted before", (tmp_path / "log.txt").read_text())
    assert metrics(tmp_path) == metrics(trained[0])
    left = json.loads((tmp_path / "inference" / "speed.json").read_text())[DATASET]["images"]
    assert 0 < left < 5


@pytest.mark.slow
def test_two_processes_under_torchrun_measure_what_one_does(trained, tmp_path):
    words = options(tmp_path, ["--eval-only"], MODEL__WEIGHTS=trained[0] / "model_final.pth")
    finish(start(*TORCHRUN, "train_net.py", *words))
    assert metrics(tmp_path) == metrics(trained[0])
    for kind in ("coco_instances_results.json", "panoptic_predictions.json"):
        assert (tmp_path / "inference" / kind).read_bytes() == (trained[0] / "inference" / kind).read_bytes()


@pytest.mark.slow
def test_two_processes_train_in_bfloat16_and_one_measures_the_same(run, tmp_path):
    words = options(tmp_path / "two", ["--num-gpus", "2"], SOLVER__AMP__ENABLED=True, SOLVER__MAX_ITER=6)
    printed = finish(start("train_net.py", *words))
    assert printed.count("Results on") == 1
    assert iterations(tmp_path / "two") == [5]
    run(options(tmp_path / "one", ["--eval-only"], MODEL__WEIGHTS=tmp_path / "two" / "model_final.pth"))
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")


def workers(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [child for child, command in commands.items() if "spawn_main" in command]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(run, tmp_path):
    changes = {"SOLVER__MAX_ITER": 100_000, "SOLVER__CHECKPOINT_PERIOD": 2}
    process = start("train_net.py", *options(tmp_path, ["--num-gpus", "2"], **changes))
    wait_for(lambda: (tmp_path / "model_0000003.pth").exists() or process.poll() is not None)
    left = workers(process.pid)
    assert len(left) == 2, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # No process writes to the folder any more.
    wait_for(lambda: not any(Path("/proc", pid).exists() for pid in left), seconds=10)

    last = torch.load(tmp_path / (tmp_path / "last_checkpoint").read_text(), weights_only=True)["iteration"]
    run(options(tmp_path, ["--resume"], SOLVER__MAX_ITER=last + 4))
    log = (tmp_path / "log.txt").read_text()
    assert f"Starting training from iteration {last + 1}" in log
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final["iteration"] == last + 3
    assert final["trainer"]["_trainer"]["optimizer"]["state"][0]["step"] == last + 4
    assert final["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == last + 4
    assert metrics(tmp_path).keys() == {"panoptic_seg", "segm", "sem_seg"}


def test_a_finished_run_is_evaluated_when_resumed(trained, run):
    output, _ = trained
    before = metrics(output)
    (output / "inference" / "metrics.json").unlink()
    run(options(output, ["--resume"]))
    assert metrics(output) == before
    assert iterations(output)[-1] == 49


def test_resuming_nothing_starts_from_the_weights(trained, run, tmp_path):
    changes = {"MODEL__WEIGHTS": trained[0] / "model_final.pth", "SOLVER__MAX_ITER": 1, "SOLVER__BASE_LR": 0.0}
    run(options(tmp_path, ["--resume"], **changes))
    assert "No checkpoint to resume from" in (tmp_path / "log.txt").read_text()
    assert metrics(tmp_path) == metrics(trained[0])


def test_the_backbone_of_a_classifier_starts_a_training_but_is_no_model_to_evaluate(trained, run, tmp_path, capsys):
    weights = torch.load(trained[0] / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    torch.save(backbone, tmp_path / "backbone.pth")
    changes = {"MODEL__WEIGHTS": tmp_path / "backbone.pth", "SOLVER__MAX_ITER": 1, "SOLVER__BASE_LR": 0.0}
    run(options(tmp_path, **changes))
    final = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(final[prefix + name], value) for name, value in backbone.items())
    with pytest.raises(SystemExit):
        run(options(tmp_path, ["--eval-only"], **changes))
    assert "checkpoint of another setting" in capsys.readouterr().err


def test_augmentation_at_test_time_is_reported_beside_the_plain_result(trained, run, tmp_path):
    changes = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": "(64,)", "TEST__AUG__FLIP": False}
    weights = trained[0] / "model_final.pth"
    run(options(tmp_path, ["--eval-only"], MODEL__WEIGHTS=weights, **changes))
    found = metrics(tmp_path)
    # One size, the plain one, without flip: nothing is augmented.
    plain = metrics(trained[0])
    for task in ("panoptic_seg", "segm", "sem_seg"):
        # One view of the test size is no other image.
        assert found.pop(f"{task}_TTA") == found.pop(task) == plain[task]
    assert not found


@pytest.mark.parametrize(("task", "key"), [("instance", "segm"), ("semantic", "sem_seg")])
def test_the_other_tasks_train_and_evaluate(run, tmp_path, task, key):
    config = str(CONFIG).replace("panoptic-segmentation", f"{task}-segmentation")
    words = options(tmp_path, SOLVER__MAX_ITER=1, DATASETS__TEST=f"('shapes_val_{task}', 'shapes_train_{task}')")
    run([config if word == str(CONFIG) else word for word in words])
    found = json.loads((tmp_path / "inference" / "metrics.json").read_text())
    assert {name: set(tasks) for name, tasks in found.items()} == {
        f"shapes_val_{task}": {key},
        f"shapes_train_{task}": {key},
    }


def other_setting(trained):
    return {"MODEL__WEIGHTS": trained[0] / "model_final.pth", "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 7}


def test_a_checkpoint_of_another_setting_needs_to_be_asked_for(trained, run, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(options(tmp_path, ["--eval-only"], **other_setting(trained)))
    assert end.value.code == 1
    errors = capsys.readouterr().err
    row = next(line for line in errors.splitlines() if "query_feat" in line)
    assert row.split() == ["sem_seg_head.predictor.query_feat.weight", "16x64", "7x64"]
    assert "Traceback" not in errors
    run(options(tmp_path, ["--eval-only", "--allow-partial"], **other_setting(trained)))
    assert metrics(tmp_path).keys() == {"panoptic_seg", "segm", "sem_seg"}


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        ([], {"MODEL__WEIGHT": "x"}, r"unknown config key MODEL.WEIGHT .*MODEL.WEIGHTS"),
        ([], {"MODEL__WEIGHTS": "absent.pth"}, "MODEL.WEIGHTS: no file absent.pth"),
        (["--eval-only"], {"MODEL__WEIGHTS": "absent.pth"}, "MODEL.WEIGHTS: no file absent.pth"),
        ([], {"DATASETS__TRAIN": "('nowhere_train',)"}, "unknown data set 'nowhere_train'"),
        ([], {"DATASETS__TRAIN": "('coco_2017_train_panoptic',)"}, "DETECTRON2_DATASETS"),
        ([], {"DATASETS__TEST": "('coco_2017_val_panoptic',)"}, "DETECTRON2_DATASETS"),
        (["--eval-only"], {"DATASETS__TEST": "('coco_2017_val_panoptic',)"}, "DETECTRON2_DATASETS"),
        ([], {"INPUT__DATASET_MAPPER_NAME": "lsj"}, "INPUT.DATASET_MAPPER_NAME is 'lsj'"),
        (["--num-gpus", "0"], {}, "at least one process"),
        (["--num-machines", "2"], {}, "--dist-url"),
    ],
)
def test_errors_of_users_are_one_message(run, tmp_path, capsys, monkeypatch, flags, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(options(tmp_path, flags, **changes))
    assert end.value.code == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


def test_a_missing_config_file_is_named(run, capsys):
    with pytest.raises(SystemExit) as end:
        run(["--config-file", "absent.yaml"])
    assert end.value.code == 1
    assert "absent.yaml" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_logged_once_unless_the_device_was_named(run, tmp_path, capsys):
    words = options(tmp_path, ["--eval-only"])
    position = words.index("MODEL.DEVICE")
    run(words[:position] + words[position + 2 :])
    assert (tmp_path / "log.txt").read_text().count("No GPU found: running on the CPU") == 1
    with pytest.raises(SystemExit):
        run(options(tmp_path, ["--eval-only"], MODEL__DEVICE="cuda"))
    assert "MODEL.DEVICE is cuda" in capsys.readouterr().err


def test_unexpected_errors_keep_their_traceback(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="absent"):
        run(options(tmp_path, ["--debug"], MODEL__WEIGHTS="absent.pth"))
    script = sys.modules["script_train_net"]
    monkeypatch.setattr(script.Trainer, "build_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(options(tmp_path))


def test_get_config_gives_all_keys_and_can_be_changed():
    script = load_script("train_net.py")
    cfg = script.get_config(config_path("coco-panoptic"), ["SOLVER.MAX_ITER", "10"])
    assert cfg.SOLVER.MAX_ITER == 10
    assert cfg.MODEL.DINAT.KERNEL_SIZE == 11
    cfg.SOLVER.MAX_ITER = 20


INSTANCE = str(CONFIG).replace("panoptic-segmentation", "instance-segmentation")
CLASS_HEAD = "sem_seg_head.predictor.class_embed.weight"


def instance_options(output, flags=(), **changes):
    words = options(output, flags, **{"DATASETS__TEST": "('shapes_train_instance',)", **changes})
    return [INSTANCE if word == str(CONFIG) else word for word in words]


@pytest.fixture(scope="module")
def fine_tuned(trained, tmp_path_factory):
    """Folder and options of a run from seven classes to four with all options of fine-tuning."""
    output = tmp_path_factory.mktemp("fine_tuned")
    changes = {
        "MODEL__WEIGHTS": trained[0] / "model_final.pth",
        "MODEL__BACKBONE__FREEZE_AT": 2,
        "MODEL__DINAT__USE_CHECKPOINT": True,
        "SOLVER__IMS_PER_BATCH": 2,
        "SOLVER__ACCUMULATE_STEPS": 2,
        "SOLVER__LR_REFERENCE_BATCH": 8,
        "SOLVER__MAX_ITER": 7,
        "SOLVER__CHECKPOINT_PERIOD": 3,
        "SOLVER__EMA__ENABLED": True,
        "SOLVER__EMA__DECAY": 0.5,
        "TEST__BEST_METRIC": "segm/AP50",
        "TEST__EVAL_PERIOD": 3,
        "TEST__VALIDATION_LOSS": True,
        "TEST__VALIDATION_IMAGES": 3,
    }
    finish(start("train_net.py", *instance_options(output, ["--num-gpus", "2"], **changes)))
    return output, changes


def weights_of(path):
    return torch.load(path, weights_only=True)["model"]


def test_another_number_of_classes_replaces_only_the_class_head(trained, fine_tuned):
    output, _ = fine_tuned
    log = (output / "log.txt").read_text()
    assert re.search(rf"re-initialised +{re.escape(CLASS_HEAD)} +8x64 +5x64\n", log)
    assert log.count("re-initialised") == 3
    assert "has 7 classes, the model has 4: only the class head starts from random weights" in log
    before, after = weights_of(trained[0] / "model_final.pth"), weights_of(output / "model_final.pth")
    assert before.keys() == after.keys()
    assert after[CLASS_HEAD].shape == (5, 64)
    # Frozen: the patch embedding and the first level with its norm, and nothing else.
    kept = {name for name, value in after.items() if value.shape == before[name].shape and value.equal(before[name])}
    frozen = ("backbone.patch_embed.", "backbone.levels.0.", "backbone.norm0.")
    assert kept == {name for name in after if name.startswith(frozen)}
    assert re.search(r"MaskFormer with \d\.\d million parameters, 0\.\d of them frozen", log)


def test_the_learning_rate_follows_the_images_of_a_step(fine_tuned):
    output, _ = fine_tuned
    assert "SOLVER.BASE_LR 0.001 is for 8 images per step; for 4 it is 0.0005" in (output / "log.txt").read_text()
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line][-1] == pytest.approx(0.0005)


def test_validation_losses_and_their_picture(fine_tuned):
    output, _ = fine_tuned
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = {line["iteration"]: line["validation/total_loss"] for line in lines if "validation/total_loss" in line}
    assert list(losses) == [2, 5, 7]
    assert losses[7] < losses[2]
    assert (output / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_weights_are_kept_and_measure_the_same(fine_tuned, run, tmp_path):
    output, _ = fine_tuned
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    values = [line["segm/AP50"] for line in lines if "segm/AP50" in line]
    best = torch.load(output / "model_best.pth", weights_only=True)["best"]
    assert len(values) == 3 and best["metric"] == "segm/AP50" and best["value"] == max(values)
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    run(instance_options(tmp_path, ["--eval-only"], MODEL__WEIGHTS=output / "model_best.pth"))
    found = json.loads((tmp_path / "inference/metrics.json").read_text())["shapes_train_instance"]
    assert found["segm"]["AP50"] == pytest.approx(best["value"])


def test_evaluations_are_of_the_average(fine_tuned, run, tmp_path):
    output, changes = fine_tuned
    average, last = weights_of(output / "model_final_ema.pth"), weights_of(output / "model_final.pth")
    assert not average[CLASS_HEAD].equal(last[CLASS_HEAD])
    measured = (output / "inference/metrics.json").read_text()
    run(instance_options(tmp_path / "a", ["--eval-only"], MODEL__WEIGHTS=output / "model_final_ema.pth"))
    assert (tmp_path / "a/inference/metrics.json").read_text() == measured
    again = {**changes, "MODEL__WEIGHTS": output / "model_final.pth"}
    run(instance_options(tmp_path / "b", ["--eval-only"], **again))
    assert (tmp_path / "b/inference/metrics.json").read_text() == measured
    assert "Loading the average of the weights" in (tmp_path / "b/log.txt").read_text()


def test_average_and_best_go_on_when_resumed(fine_tuned, run, tmp_path):
    output, changes = fine_tuned
    copy = shutil.copytree(output, tmp_path / "copy")
    (copy / "last_checkpoint").write_text("model_0000002.pth")
    # No evaluation surpasses this.
    state = torch.load(copy / "model_best.pth", weights_only=True)
    torch.save({**state, "best": {**state["best"], "value": 101.0}}, copy / "model_best.pth")
    run(instance_options(copy, ["--resume"], **{**changes, "SOLVER__MAX_ITER": 4}))
    final = torch.load(copy / "model_final.pth", weights_only=True)
    assert final["iteration"] == 3 and final["ema"]["n_averaged"] == 4
    assert torch.load(copy / "model_best.pth", weights_only=True)["best"]["value"] == 101.0
    assert "re-initialised" not in (copy / "log.txt").read_text().rsplit("Loading ", 1)[1]


def test_a_checkpoint_with_other_classes_is_neither_evaluated_nor_resumed(trained, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(instance_options(tmp_path / "a", ["--eval-only"], MODEL__WEIGHTS=trained[0] / "model_final.pth"))
    assert "The checkpoint has 7 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4" in capsys.readouterr().err
    shutil.copytree(trained[0], tmp_path / "b")
    with pytest.raises(SystemExit):
        run(instance_options(tmp_path / "b", ["--resume"], SOLVER__MAX_ITER=60))
    assert "The checkpoint has 7 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 4" in capsys.readouterr().err
