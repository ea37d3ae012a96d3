"""demo.py with a model of every kind."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.prediction.drawing import MIN_LONGER_SIDE
from mask2former.tasks import ARCHITECTURES, TASKS
from mask2former.video import VideoReader
from tests.conftest import load_script
from tests.kinds import KINDS
from tests.video.conftest import write_frames

demo = load_script("demo/demo.py")
SIZES = {"plain.png": (48, 80), "grey.jpg": (48, 80), "alpha.png": (48, 80), "deep.png": (48, 80)}
SIZES |= {"turned.jpg": (80, 48), "dot.png": (1, 1), "wide.png": (3, 300)}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def run(kind, weights_of, tmp_path):
    """Exit status of the command, which writes into a folder `out`."""

    def run(*arguments, everything=True, out="out", opts=()):
        everything = everything and kind.task in ("panoptic", "instance")
        lowest = ["--confidence-threshold", "0"] if everything else []
        words = [
            *map(str, arguments),
            "--output",
            str(tmp_path / out),
            "--json",
            *lowest,
            *weights_of(kind.name),
            *opts,
        ]
        try:
            return demo.main(["--config-file", str(kind.config), *words])
        except SystemExit as end:
            return end.code

    return run


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    y, x = np.mgrid[0:48, 0:80]
    pixels = np.stack([255 * x // 80, 255 * y // 48, (x * y) % 256], axis=2).astype(np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(folder / "plain.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    image.save(folder / "turned.jpg", exif=exif)
    image.resize((1, 1)).save(folder / "dot.png")
    image.resize((300, 3)).save(folder / "wide.png")
    (folder / "damaged.jpg").write_bytes((folder / "grey.jpg").read_bytes()[:100])
    return folder


def check_content(kind, result, size):
    """What a JSON file holds for each kind."""
    assert (result["height"], result["width"], result["task"]) == (*size, kind.task)
    if kind.task == "classification":
        probabilities = [entry["probability"] for entry in result["classes"]]
        assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
        assert not result["classes"][0]["category_name"].startswith("class ")
        return
    entries = result["segments_info"]
    masks = [mask_util.decode(entry["segmentation"]).astype(bool) for entry in entries]
    assert all(mask.shape == size and mask.sum() == e["area"] for mask, e in zip(masks, entries, strict=True))
    assert all(("score" in entry) == (not TASKS[kind.task].no_threshold) for entry in entries)
    if kind.task == "semantic":
        assert np.all(sum(mask.astype(int) for mask in masks) == 1)
    if ARCHITECTURES[kind.architecture].boxes:
        assert entries and all(isinstance(side, float) for entry in entries for side in entry["bbox"])
        for x, y, width, height in (entry["bbox"] for entry in entries):
            assert -1e-3 <= x <= x + width <= size[1] + 1e-3 and -1e-3 <= y <= y + height <= size[0] + 1e-3


def test_a_folder_of_photographs_of_every_kind(run, kind, photos, tmp_path, capsys):
    assert run("--input", photos) == 1
    printed = capsys.readouterr()
    assert "damaged.jpg" in printed.err and "Traceback" not in printed.err and "7 of 8 images done" in printed.out
    for file, size in SIZES.items():
        stem = tmp_path / "out" / f"{file.partition('.')[0]}_{kind.task}"
        check_content(kind, json.loads(stem.with_suffix(".json").read_text()), size)
        picture = Image.open(stem.with_suffix(".png"))
        assert picture.width / picture.height == pytest.approx(size[1] / size[0])
        assert max(picture.size) >= MIN_LONGER_SIDE
    # Sums of a batch may differ in the last bits.
    assert run("--input", photos / "*.png", "--batch-size", "3", out="batches") == 0
    for file in ("plain", "alpha", "deep"):
        one, of_batch = (
            np.asarray(Image.open(tmp_path / place / f"{file}_{kind.task}.png")).astype(int)
            for place in ("out", "batches")
        )
        assert (abs(one - of_batch).max(axis=2) > 8).mean() < 0.02


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if not TASKS[kind.task].no_threshold], ids=lambda kind: kind.name
)
def test_nothing_found_is_a_picture_and_an_empty_list(run, kind, photos, tmp_path):
    assert run("--input", photos / "plain.png", "--confidence-threshold", "1", everything=False) == 0
    result = json.loads((tmp_path / "out" / f"plain_{kind.task}.json").read_text())
    assert result["segments_info"] == []
    assert Image.open(tmp_path / "out" / f"plain_{kind.task}.png").size == (640, 384)


def test_a_video(run, kind, tmp_path, capsys):
    video = write_frames(tmp_path / "clip.mkv", 3, rate=12.5)
    assert run("--video-input", video, "--batch-size", "2") == 0
    assert "3 frames (3 frames in" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / f"clip_{kind.task}.jsonl").read_text().splitlines()]
    made = VideoReader(tmp_path / "out" / f"clip_{kind.task}.mp4")
    assert [line["frame"] for line in lines] == [0, 1, 2] and (made.count, made.rate) == (3, 12.5)
    for line in lines:
        check_content(kind, {**line, "height": made.size[0], "width": made.size[1], "task": kind.task}, made.size)
        things = [entry for entry in line.get("segments_info", []) if entry["isthing"]]
        tracked = kind.task in ("panoptic", "instance")
        assert all(("track_id" in entry) == tracked for entry in things)
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == [f"clip_{kind.task}.jsonl", f"clip_{kind.task}.mp4"]


def test_class_names_of_a_file(run, kind, photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    assert run("--input", photos, "--class-names", tmp_path / "names.txt") == 2
    assert f"2 class names, but {ARCHITECTURES[kind.architecture].classes} is " in capsys.readouterr().err


def test_what_a_kind_does_not_have_is_one_line_and_status_2(run, kind, photos, capsys):
    others = {"panoptic", "instance", "semantic", "classification"} - {kind.task}
    refused = [(["--task", task], ()) for task in others if kind.architecture != "MaskFormer"]
    if TASKS[kind.task].no_threshold:
        refused.append((["--confidence-threshold", "0.5"], ()))
    if kind.task != "instance":
        refused.append((["--nms", "0.5"], ()))
    if not kind.augmented:
        refused.append(([], ("TEST.AUG.ENABLED", "True")))
    refused += [(["--class", "unicorn"], ()), (["--class-names", "nowhere.txt"], ())]
    for arguments, opts in refused:
        assert run("--input", photos / "plain.png", *arguments, everything=False, opts=opts) == 2, arguments
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and len(lines[0]) < 5000


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.augmented], ids=lambda kind: kind.name)
def test_augmented_pictures(run, kind, photos, tmp_path):
    assert run("--input", photos / "wide.png", photos / "turned.jpg", opts=("TEST.AUG.ENABLED", "True")) == 0
    for file in ("wide.png", "turned.jpg"):
        found = json.loads((tmp_path / "out" / f"{file.partition('.')[0]}_{kind.task}.json").read_text())
        check_content(kind, found, SIZES[file])
