import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

from mask2former import Predictor
from mask2former.data.classes import ClassTable
from mask2former.prediction import files
from mask2former.prediction.files import find_images, output_stems
from mask2former.prediction.results import PanopticPrediction
from mask2former.video import VideoError, VideoReader, VideoSummary
from tests.conftest import config_path, load_script
from tests.tiny import TINY
from tests.video.conftest import SIZE, write_frames

demo = load_script("demo/demo.py")
CONFIG = config_path("coco-panoptic")


def run(*arguments, opts=()):
    """Exit status of the command."""
    try:
        return demo.main(["--config-file", str(CONFIG), *map(str, arguments), *TINY, *opts])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Options for a model that is the same in every call."""
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(Predictor.from_config(CONFIG, "", TINY).model.state_dict(), file)
    return ("MODEL.WEIGHTS", str(file))


class Stub:
    """Stands for a predictor: finds nothing."""

    task = "panoptic"
    value_range = None
    batch_size = 1

    def fingerprint(self):
        return {}

    def classes(self):
        return ClassTable()

    def __call__(self, images, batch_size=None):
        nothing = np.zeros(images[0].shape[:2], np.int32)
        return [
            PanopticPrediction(classes=ClassTable(), image=image, ids=nothing, segments_info=[]) for image in images
        ]


def photo(height=48, width=80):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x // width, 255 * y // height, (x * y) % 256], axis=2).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    """A folder of photographs of every kind, one of them damaged, and a text file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.fromarray(photo())
    image.save(folder / "plain.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(folder / "turned.jpg", exif=exif)
    (folder / "damaged.jpg").write_bytes((folder / "grey.jpg").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_every_kind_is_done_and_the_damaged_file_is_reported(photos, tmp_path, capsys):
    out = tmp_path / "out"
    status = run("--input", photos, "--output", out, "--json", "--confidence-threshold", "0")
    printed = capsys.readouterr()
    assert status == 1
    assert "damaged.jpg" in printed.err and "Traceback" not in printed.err
    assert "6 of 7 images done" in printed.out and "ETA" in printed.out and "peak memory" in printed.out
    done = ["alpha", "cmyk", "deep", "grey", "plain", "turned"]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f"{n}_panoptic.{e}" for n in done for e in ("json", "png")
    )
    result = json.loads((out / "turned_panoptic.json").read_text())
    assert (result["height"], result["width"], result["task"]) == (80, 48, "panoptic")
    assert Image.open(out / "turned_panoptic.png").size == (48 * 8, 80 * 8)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_json_holds_masks_that_agree_with_areas_and_boxes(task, photos, tmp_path):
    threshold = () if task == "semantic" else ("--confidence-threshold", "0")
    status = run("--input", photos / "plain.png", "--output", tmp_path / "out", "--json", "--task", task, *threshold)
    assert status == 0
    result = json.loads((tmp_path / "out" / f"plain_{task}.json").read_text())
    assert result["file_name"] == str(photos / "plain.png")
    segments = result["segments_info"]
    assert segments and len({segment["id"] for segment in segments}) == len(segments)
    for segment in segments:
        mask = mask_util.decode(segment["segmentation"]).astype(bool)
        assert mask.shape == (48, 80) and mask.sum() == segment["area"]
        x, y, width, height = segment["bbox"]
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert (x, y) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert segment["category_name"] and ("score" in segment) == (task != "semantic")
    if task == "semantic":
        assert sum(segment["area"] for segment in segments) == 48 * 80
    if task == "instance":
        assert all(segment["isthing"] and segment["category_id"] < 80 for segment in segments), "stuff is no instance"


def areas(file):
    return [segment["area"] for segment in json.loads(file.read_text())["segments_info"]]


def test_thresholds_and_batches_of_instances(photos, weights, tmp_path):
    # Two of one size, which share a batch, and one of another.
    files = [photos / name for name in ("plain.png", "grey.jpg", "turned.jpg")]
    task = ("--input", *files, "--task", "instance", "--json")
    everything = ("--confidence-threshold", "0")
    weights = (*weights, "TEST.DETECTIONS_PER_IMAGE", "12")
    assert run(*task, "--output", tmp_path / "one", *everything, opts=weights) == 0
    assert run(*task, "--output", tmp_path / "batches", "--batch-size", "3", *everything, opts=weights) == 0
    for file in (tmp_path / "one").glob("*.json"):
        assert areas(tmp_path / "batches" / file.name) == pytest.approx(areas(file), rel=0.02, abs=20)
    scores = [s["score"] for s in json.loads((tmp_path / "one" / "plain_instance.json").read_text())["segments_info"]]
    middle = scores[len(scores) // 2]
    selection = ("--confidence-threshold", middle, "--min-area", "1", "--nms", "0.9")
    assert run(*task, "--output", tmp_path / "some", *selection, opts=weights) == 0
    found = json.loads((tmp_path / "some" / "plain_instance.json").read_text())["segments_info"]
    assert found and all(segment["score"] >= middle and segment["area"] for segment in found)
    assert len(found) < len(scores)


def test_videos_are_done_one_after_the_other_and_the_damaged_one_is_reported(tmp_path, capsys):
    out = tmp_path / "out"
    video = write_frames(tmp_path / "clip.mkv", 3, rate=12.5)
    (tmp_path / "damaged.mp4").write_bytes(video.read_bytes()[:300])
    inputs = ("--video-input", tmp_path / "damaged.mp4", video)
    options = ("--confidence-threshold", "0", "--batch-size", "2", "--json", "--codec", "MJPG")
    assert run(*inputs, "--output", out, *options) == 1
    printed = capsys.readouterr()
    assert "skipped:" in printed.err and "damaged.mp4: not a video" in printed.err
    assert f"{video} -> {out / 'clip_panoptic.avi'}: 3 frames (3 frames in" in printed.out
    made = VideoReader(out / "clip_panoptic.avi")
    assert (made.size, made.rate, made.count) == (SIZE, 12.5, 3)
    lines = [json.loads(line) for line in (out / "clip_panoptic.jsonl").read_text().splitlines()]
    assert all(segment["category_name"] for line in lines for segment in line["segments_info"])
    assert sorted(file.name for file in out.iterdir()) == ["clip_panoptic.avi", "clip_panoptic.jsonl"]


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), KeyError("odd"), AssertionError("odd"), MemoryError(), OSError("odd")]
)
@pytest.mark.parametrize("place", ["read", "predict", "refine", "draw", "write"])
def test_one_bad_picture_never_ends_the_work_on_others(place, error, tmp_path, monkeypatch, capsys):
    """Whatever fails, and whatever the error, the others are done and the status says so."""
    for number in range(3):
        Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")

    def failing(function, bad):
        def call(*arguments, **options):
            if bad(*arguments):
                raise error
            return function(*arguments, **options)

        return call

    def is_second(image):
        return image is not None and int(np.mean(image)) == 40

    predictor = Stub()
    if place == "read":
        bad_read = failing(files.read_image, lambda path: path.name == "1.png")
        monkeypatch.setattr(files, "read_image", bad_read)
    elif place == "predict":
        monkeypatch.setattr(Stub, "__call__", failing(Stub.__call__, lambda self, images: any(map(is_second, images))))
    elif place == "write":
        monkeypatch.setattr(files, "write_png", failing(files.write_png, lambda path, picture: path.stem[0] == "1"))
    elif place == "draw":
        bad_draw = failing(PanopticPrediction.draw, lambda self: is_second(self.image))
        monkeypatch.setattr(PanopticPrediction, "draw", bad_draw)
    refine = failing(lambda p: p, lambda p: is_second(p.image)) if place == "refine" else lambda p: p
    inputs = ["--config-file", "F", "--output", str(tmp_path / "out"), "--input", str(tmp_path), "--batch-size", "2"]
    assert demo.run_images(predictor, refine, demo.parse_arguments(inputs)) == 1
    printed = capsys.readouterr()
    assert "2 of 3 images done" in printed.out and "1.png" in printed.err
    assert sorted(file.name[0] for file in (tmp_path / "out").glob("*.png")) == ["0", "2"]


def test_one_bad_video_never_ends_the_work_on_others(tmp_path, monkeypatch, capsys):
    errors = {
        "a": RuntimeError("odd"),
        "b": MemoryError(),
        "c": IsADirectoryError(21, "odd", "c"),
        "d": VideoError("odd"),
    }

    def predict(predictor, video, stem, **options):
        if video.stem in errors:
            raise errors[video.stem]
        return VideoSummary(stem.with_suffix(".mp4"), 3, [], 0)

    monkeypatch.setattr(demo, "predict_video", predict)
    videos = [f"{name}.mp4" for name in "abcde"]
    inputs = ["--config-file", "F", "--output", str(tmp_path), "--video-input", *videos]
    assert demo.run_videos(Stub(), lambda p: p, demo.parse_arguments(inputs)) == 4
    printed = capsys.readouterr()
    assert "e.mp4 ->" in printed.out and all(f"{name}.mp4" in printed.err for name in "abd")


def test_an_interrupted_video_is_status_130_and_goes_on(weights, tmp_path, capsys, monkeypatch):
    video = write_frames(tmp_path / "clip.mkv", 4)
    arguments = ("--video-input", video, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:

        def stop(tracker, prediction, seen=[]):  # noqa: B006 - counts the calls
            seen.append(prediction)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return prediction

        patch.setattr("mask2former.video.Tracker.update", stop)
        assert run(*arguments, opts=weights) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert run(*arguments, opts=weights) == 0
    assert "4 frames (1 frames in" in capsys.readouterr().out


def test_a_camera_that_is_not_there_is_status_1(tmp_path, capsys):
    assert run("--webcam", "97", "--output", tmp_path / "out") == 1
    assert "error: camera 97 can't be opened" in capsys.readouterr().err


def test_a_folder_of_inputs_as_output_is_status_2(tmp_path, capsys):
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    inputs = ["--config-file", "F", "--output", str(tmp_path), "--input", f"{tmp_path}/*.png"]
    with pytest.raises(SystemExit) as end:
        demo.run_images(Stub(), lambda p: p, demo.parse_arguments(inputs))
    assert end.value.code == 2 and "a_panoptic.png would be an image of the next run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_nothing_found_is_status_1(tmp_path, capsys):
    assert run("--input", tmp_path / "*.jpg", "--output", tmp_path / "out") == 1
    assert f"no image found: {tmp_path}/*.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "opts", "message"),
    [
        ((), ("MODEL.NONSENSE", "1"), "MODEL.NONSENSE"),
        ((), ("MODEL.WEIGHTS", "nowhere.pth"), "nowhere.pth"),
        (("--confidence-threshold", "1.5"), (), "1.5"),
        (("--task", "semantic", "--confidence-threshold", "0.5"), (), "no confidence threshold"),
        (("--task", "panoptic"), ("DATASETS.TEST", "('shapes_val_instance',)"), "instance"),
        (("--class", "person", "--class", "unicorn"), (), "--class unicorn: the classes are person, bicycle"),
        (("--nms", "0.5"), (), "panoptic segments do not overlap"),
        ((), ("DATASETS.TEST", "('nowhere',)"), "nowhere"),
    ],
)
def test_what_cannot_be_used_is_status_2(arguments, opts, message, photos, tmp_path, capsys):
    assert run("--input", photos / "plain.png", "--output", tmp_path / "out", *arguments, opts=opts) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_command_line_is_status_2(tmp_path, capsys):
    (tmp_path / "file").touch()
    start = ["--config-file", "F", "--output", str(tmp_path)]
    for arguments, message in (
        (["--input", "x"], "--config-file"),
        (["--config-file", "F", "--input", "x", "--output", str(tmp_path / "file")], "expected a folder"),
        (["--config-file", "F", "--input", "x"], "--output is required"),
        (start, "--input --video-input --webcam"),
        ([*start, "--input", "x", "--webcam"], "not allowed with"),
        ([*start, "--input", "x", "--batch-size", "0"], "--batch-size 0"),
        ([*start, "--webcam", "--json"], "--json is for"),
        ([*start, "--input", "x", "--nms", "2"], "--nms 2.0"),
        ([*start, "--video-input", "x", "--codec", "h266"], "h266"),
    ):
        with pytest.raises(SystemExit) as stopped:
            demo.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_options_may_stand_before_and_after_config_keys():
    options = demo.parse_arguments("--config-file F --input a b --output o MODEL.DEVICE cpu --json A -1".split())
    assert options.input == ["a", "b"] and options.json and options.opts == ["MODEL.DEVICE", "cpu", "A", "-1"]
    options = demo.parse_arguments("--config-file F --output o --video-input a.mp4 MODEL.DEVICE cpu --json A 1".split())
    assert options.video_input == ["a.mp4"] and options.opts == ["MODEL.DEVICE", "cpu", "A", "1"]


def test_a_camera_needs_no_number():
    for text, number in (("--webcam MODEL.DEVICE cpu", 0), ("--webcam 2 MODEL.DEVICE cpu", 2), ("A 1 --webcam", 0)):
        options = demo.parse_arguments(["--config-file", "F", *text.split()])
        assert options.webcam == number and len(options.opts) == 2


def test_inputs_are_files_folders_and_globs_each_image_once(tmp_path):
    for name in ("b.JPG", "a.png", "[1].png", "text.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = [tmp_path / "[1].png", tmp_path, tmp_path / "*.png", tmp_path / "**/*.webp", tmp_path / "none*"]
    images, empty = find_images([str(path) for path in inputs])
    assert [image.name for image in images] == ["[1].png", "a.png", "b.JPG", "c.webp"]
    assert empty == [str(tmp_path / "none*")]


def test_links_that_lead_into_themselves_end(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to("..")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to("a.png")
    images, empty = find_images([str(tmp_path / "**/*.png"), str(tmp_path / "sub/up"), str(tmp_path / "loop.png")])
    assert images == [tmp_path / "a.png", tmp_path / "b.png"], "another name is another image"
    assert empty == [str(tmp_path / "loop.png")]


def test_globs_end_where_links_lead_into_themselves(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "a/b/2.jpg", "a/b/.3.jpg", "a/.c/4.jpg", "5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in (("a/loop", tmp_path), ("a/b/self", tmp_path / "a/b"), ("again", tmp_path / "a")):
        (tmp_path / link).symlink_to(target)
    expected = {
        "**/*.jpg": ["a/1.jpg", "a/b/2.jpg"],
        "**": ["5.png", "a/1.jpg", "a/b/2.jpg"],
        "a/**/b/*": ["a/b/2.jpg"],
        "**/.c/*.jpg": ["a/.c/4.jpg"],
        "?/**/*.jpg": ["a/1.jpg", "a/b/2.jpg"],
        "**/b/**/2.*": ["a/b/2.jpg"],
        "**/*.gif": [],
    }
    monkeypatch.chdir(tmp_path)
    for pattern, names in expected.items():
        assert [str(path) for path in find_images([pattern])[0]] == names
        found = find_images([str(tmp_path / pattern)])[0]
        assert [path.relative_to(tmp_path).as_posix() for path in found] == names


def test_results_never_share_a_name_nor_replace_an_input(tmp_path):
    images = [tmp_path / name for name in ("a/x.png", "b/x.png", "x.jpg", "x_panoptic.png")]
    stems = output_stems(images, tmp_path, "panoptic")
    assert [stem.name for stem in stems] == ["x_panoptic_2", "x_panoptic_3", "x_panoptic_4", "x_panoptic_panoptic"]


def test_names_of_results_fit_the_file_system(tmp_path):
    """Also with a suffix, a journal beside them, and several bytes for a letter; a link to itself is no obstacle."""
    long = [tmp_path / f"{start}{160 * letter}.png" for letter in ("a", "猫") for start in "xy"]
    (tmp_path / "loop.png").symlink_to("loop.png")
    inputs = [tmp_path / f"{250 * 'b'}.png", tmp_path / f"{250 * 'b'}c.png", *long, tmp_path / "loop.png"]
    stems = output_stems(inputs, tmp_path, "panoptic")
    assert len(set(stems)) == len(inputs) and stems[2].name == f"x{160 * 'a'}_panoptic"
    assert max(len(stem.name.encode()) for stem in stems) <= 220
    for stem in stems:
        stem.with_name(f".{stem.name}.unfinished.json").touch()
