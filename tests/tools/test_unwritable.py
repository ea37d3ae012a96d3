"""Every command whose results can't be written says so in one line that names the path and the reason, and fails."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, load_script
from tests.tiny import TINY
from tests.unwritable import FULL, OBSTACLES, blocked, content, full_disk

CONFIG = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
CUSTOM = "--images {data}/images --labels {data}/labels --classes {data}/classes.txt --workers 1"

# Script -> its arguments. {out} can't be written; {data} has the inputs.
COMMANDS = {
    "train_net.py": "--config-file {config} OUTPUT_DIR {out} MODEL.DEVICE cpu",
    "train_net.py --eval-only": "--config-file {config} OUTPUT_DIR {out} MODEL.WEIGHTS {data}/w.pth MODEL.DEVICE cpu",
    "train_net.py --num-gpus 2": "--config-file {config} OUTPUT_DIR {out} MODEL.DEVICE cpu",
    "tools/dataset.py preview": f"{CUSTOM} --output {{out}}",
    "tools/dataset.py split": f"{CUSTOM} --output {{out}}",
    "tools/dataset.py config": f"{CUSTOM} --gpu-memory 8 --output {{out}}",
    "tools/convert_weights.py": "{data}/w.pth {out}/w.safetensors",
    "tools/convert_weights.py back": "{data}/w.safetensors {out}/w.pth",
    "tools/deterministic_weights.py": "--config-file {config} --output {out}/w.safetensors",
    "tools/export.py onnx": "--config-file {config} --format onnx --output {out}/m.onnx MODEL.WEIGHTS {data}/w.pth",
    "tools/export.py pt2": "--config-file {config} --format torch-export --output {out}/m.pt2 MODEL.WEIGHTS {data}/w",
    "tools/reproduce.py": "--datasets {data} --weights {data} --output {out}",
    "demo/demo.py": "--config-file {config} --input {data}/images --output {out} MODEL.WEIGHTS {data}/w.pth",
    "demo/demo.py --json": "--config-file {config} --input {data}/images --output {out} MODEL.WEIGHTS {data}/w.pth",
    "demo/demo.py video": "--config-file {config} --video-input {data}/v.mp4 --output {out} MODEL.WEIGHTS {data}/w.pth",
    "demo/shapes_demo.py": "--output {out}",
    "datasets/prepare_shapes.py": "--root {out} --train 1 --val 1 --size 64",
}
# What the part after the script's name adds to the arguments.
OPTIONS = {"--eval-only": "--eval-only", "--num-gpus 2": "--num-gpus 2", "--json": "--json"}
FIRST = {"preview", "split", "config"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number in range(6):
        pixels = np.random.RandomState(number).randint(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(folder / "labels" / f"{number}.png")
    (folder / "classes.txt").write_text("dark\nlight\n")
    torch.save({"model": {"w": torch.zeros(5000)}}, folder / "w.pth")
    convert = load_script("tools/convert_weights.py")
    convert.main([str(folder / "w.pth"), str(folder / "w.safetensors")])
    return folder


@pytest.fixture
def run(data, capsys, monkeypatch, loggers_restored):
    """Run a command in this process; returns its exit status and what it has printed on stderr."""
    monkeypatch.chdir(data)

    real = subprocess.run

    def start(words, **options):
        assert words[0] != sys.executable, f"the work has begun: {words}"
        return real(words, **options)

    # Nothing is started before the output is checked.
    monkeypatch.setattr("subprocess.run", start)

    def run(command, out):
        script, _, rest = command.partition(" ")
        words = shlex.split(COMMANDS[command].format(config=CONFIG, data=data, out=shlex.quote(str(out))))
        words = [rest] * (rest in FIRST) + shlex.split(OPTIONS.get(rest, "")) + words
        module = load_script(script)
        try:
            status = getattr(module, "main" if script != "train_net.py" else "run")(words)
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_in_the_way_of_the_output_is_one_line(run, tmp_path, command, obstacle):
    out, reason = blocked(obstacle, tmp_path)
    before = content(tmp_path)
    status, printed = run(command, out)
    assert status not in (0, None)
    last = printed.splitlines()[-1]
    assert "error: " in last and str(out) in last and reason in last
    assert "Traceback" not in printed and len(printed.splitlines()) <= 1 + 12 * ("usage:" in printed)
    assert content(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_known_before_the_work(run, tmp_path, monkeypatch, command):
    with full_disk(monkeypatch):
        status, printed = run(command, tmp_path / "new" / "out")
    assert status not in (0, None)
    (line,) = printed.splitlines()
    assert line.startswith(f"error: {tmp_path}/new/out") and line.endswith(f": can't be written: {FULL}")
    assert content(tmp_path) == {}


LATER = {
    "tools/dataset.py preview": 5000,
    "tools/dataset.py split": 5,
    "tools/dataset.py config": 300,
    "tools/convert_weights.py": 9000,
    "tools/convert_weights.py back": 9000,
    "datasets/prepare_shapes.py": 6000,
}


@pytest.mark.parametrize(("command", "free"), LATER.items())
def test_a_disk_that_fills_up_is_one_line_and_leaves_only_complete_files(run, tmp_path, monkeypatch, command, free):
    with full_disk(monkeypatch, free):
        status, printed = run(command, tmp_path / "out")
    assert status == 1 and "Traceback" not in printed
    error = printed.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/out/") and error.endswith(f": can't be written: {FULL}")
    assert not list(tmp_path.rglob("*.tmp"))
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())
    status, printed = run(command, tmp_path / "out")
    assert status in (0, None), "the same command succeeds when there is space again"


def test_random_weights_that_do_not_fit_leave_no_file(tmp_path, monkeypatch, capsys):
    script = load_script("tools/deterministic_weights.py")
    words = ["--config-file", str(CONFIG), "--output", str(tmp_path / "w.safetensors"), *TINY]
    with full_disk(monkeypatch, 10_000), pytest.raises(SystemExit) as end:
        script.main(words)
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/w.safetensors: can't be written: {FULL}\n"
    assert content(tmp_path) == {}
