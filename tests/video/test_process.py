import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from mask2former.prediction.results import PanopticPrediction
from mask2former.video import VideoError, VideoReader, predict_video

from ..conftest import ROOT
from .conftest import CLASSES, OBJECTS, SIZE, ByNumber, Capture, masks_of_frame, write_frames, write_varying


class Blind(ByNumber):
    """Finds nothing, in frames of any size."""

    def result(self, number, image):
        ids = np.zeros(image.shape[:2], np.int32)
        return PanopticPrediction(classes=CLASSES, image=image, ids=ids, segments_info=[])


def frames_of(path):
    return list(VideoReader(path))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_object_has_one_colour_in_all_frames(video, tmp_path):
    predictor = ByNumber()
    summary = predict_video(predictor, video, tmp_path / "out" / "clip_panoptic", codec="FFV1", with_json=True)
    assert summary.output == tmp_path / "out" / "clip_panoptic.mkv"
    assert (summary.frames, summary.failed, summary.kept) == (20, [], 0)
    assert sorted(file.name for file in summary.output.parent.iterdir()) == [
        "clip_panoptic.jsonl",
        "clip_panoptic.mkv",
    ]
    pictures = frames_of(summary.output)
    lines = lines_of(tmp_path / "out" / "clip_panoptic.jsonl")
    assert [line["frame"] for line in lines] == list(range(20)) and lines[10]["time"] == 0.4
    tints = [set(), set(), set()]
    for number, (picture, line) in enumerate(zip(pictures, lines, strict=True)):
        assert len(line["segments_info"]) == 3
        for index, mask in enumerate(masks_of_frame(number)):
            covers = [mask_util.decode(segment["segmentation"]).astype(bool) for segment in line["segments_info"]]
            segment = line["segments_info"][np.argmax([(cover & mask).sum() for cover in covers])]
            color = CLASSES.instance_color(OBJECTS[index][0], segment["track_id"])
            tints[index].add(color)
            # Half of an object's area is its colour over the frame's grey; the rest are outline and text.
            painted = np.abs(picture[mask].astype(int) - (np.array(color) + 4 * number) / 2).max(axis=1) < 4
            assert painted.mean() > 0.15
    assert [len(colors) for colors in tints] == [1, 1, 1]
    assert len(set.union(*tints)) == 3


@pytest.mark.parametrize(("ending", "rate"), [(".mp4", 30000 / 1001), (".avi", 25.0), (".mkv", 12.5)])
def test_rate_size_and_number_of_frames_are_those_of_the_input(ending, rate, tmp_path):
    source = write_frames(tmp_path / f"clip{ending}", 6, rate)
    output = predict_video(ByNumber(), source, tmp_path / "out").output
    assert output.suffix == ".mp4"
    made = VideoReader(output)
    assert (made.size, made.count, len(list(made))) == (SIZE, 6, 6)
    assert made.rate == pytest.approx(rate, rel=1e-4)


def test_frames_go_through_the_model_in_batches(video, tmp_path):
    predictor = ByNumber()
    predict_video(predictor, video, tmp_path / "out", batch_size=8)
    assert predictor.seen == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


def test_a_frame_that_fails_is_reported_and_stays_as_it_is(video, tmp_path, caplog):
    predictor = ByNumber(failing=[7])
    summary = predict_video(predictor, video, tmp_path / "out", codec="FFV1", batch_size=4, with_json=True)
    assert summary.failed == [(7, "RuntimeError: frame [7] fails")] and summary.frames == 20
    assert predictor.seen[1:4] == [[4], [5], [6]], "the others of its batch are predicted alone"
    assert "clip.mkv: frame 7 skipped" in caplog.text
    pictures = frames_of(summary.output)
    assert (pictures[7] == 4 * 7).all() and not (pictures[8] == 4 * 8).all()
    lines = lines_of(tmp_path / "out.jsonl")
    assert lines[7] == {"frame": 7, "time": 0.28, "error": "RuntimeError: frame [7] fails"}
    numbers = [{s["track_id"] for s in line["segments_info"]} for line in (lines[6], lines[8])]
    assert numbers[0] == numbers[1] == {1, 2, 3}


def test_a_frame_that_cannot_be_drawn_is_reported_too(video, tmp_path):
    def refine(prediction):
        if round(prediction.image.mean() / 4) in (0, 7):
            raise KeyError("no such class")
        return prediction

    summary = predict_video(ByNumber(), video, tmp_path / "out", codec="FFV1", refine=refine)
    assert summary.failed == [(0, "KeyError: 'no such class'"), (7, "KeyError: 'no such class'")]
    pictures = frames_of(summary.output)
    assert len(pictures) == 20 and (pictures[7] == 4 * 7).all()


def test_a_model_that_always_fails_is_no_fault_of_the_frames(tmp_path):
    source = write_frames(tmp_path / "long.avi", 60)
    with pytest.raises(VideoError, match=r"no result for 50 frames in a row; the last error: RuntimeError"):
        predict_video(ByNumber(failing=range(100)), source, tmp_path / "out")
    assert not (tmp_path / "out.mp4").exists()


def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_picture_before(video, tmp_path, monkeypatch):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture({5, 6}) if path == str(video) else real(path))
    summary = predict_video(ByNumber(), video, tmp_path / "out", codec="FFV1")
    assert summary.failed == [(5, "it can't be decoded"), (6, "it can't be decoded")] and summary.frames == 20
    monkeypatch.undo()
    pictures = frames_of(summary.output)
    assert (pictures[5] == pictures[4]).all() and (pictures[6] == pictures[4]).all()
    assert (pictures[7] != pictures[4]).any()


def test_a_variable_rate_keeps_pace(tmp_path):
    pauses = (33, 33, 34, 100, 33, 267, 33, 34, 433, 17, 16, 467, 250)
    source = write_varying(tmp_path / "phone.mp4", range(0, 4 * len(pauses), 4), pauses)
    summary = predict_video(ByNumber(), source, tmp_path / "out", codec="FFV1", with_json=True)
    made = VideoReader(summary.output)
    starts = np.cumsum((0, *pauses)) / 1000
    assert made.count / made.rate == pytest.approx(starts[-1], abs=0.5 / made.rate)
    assert [line["time"] for line in lines_of(tmp_path / "out.jsonl")] == pytest.approx(starts[:-1], abs=1e-3)
    pictures = frames_of(summary.output)
    changes = [0] + [n for n in range(1, len(pictures)) if (pictures[n] != pictures[n - 1]).any()]
    assert np.array(changes) / made.rate == pytest.approx(starts[:-1], abs=0.5 / made.rate + 1e-3)


def test_a_file_whose_first_frames_are_damaged_begins_with_the_first_sound_one(video, tmp_path, monkeypatch):
    real = cv2.VideoCapture
    capture = partial(Capture, {0, 1, 2}, times=np.arange(20) * 0.04)
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: capture() if path == str(video) else real(path))
    summary = predict_video(ByNumber(), video, tmp_path / "out", codec="FFV1", with_json=True)
    assert [index for index, _ in summary.failed] == [0, 1, 2] and summary.frames == 20
    pictures = frames_of(summary.output)
    assert len(pictures) == 20 and all((pictures[n] == pictures[3]).all() for n in range(3))
    assert (pictures[4] != pictures[3]).any()
    assert [line["time"] for line in lines_of(tmp_path / "out.jsonl")][3:5] == [0.12, 0.16]


def test_a_rate_that_an_odd_size_cannot_have_keeps_pace(tmp_path):
    source = tmp_path / "odd.gif"
    pictures = [Image.new("RGB", (65, 49), (9 * n, 9 * n, 9 * n)) for n in range(20)]
    pictures[0].save(source, save_all=True, append_images=pictures[1:], duration=80)
    summary = predict_video(Blind(), source, tmp_path / "out")
    made = VideoReader(summary.output)
    assert summary.output.suffix == ".avi" and made.rate == 13 and made.size == (49, 65)
    assert made.count / made.rate == pytest.approx(1.6, abs=0.5 / 13)


@pytest.mark.parametrize("blocked", ["out.mp4", "out.jsonl"])
def test_an_output_that_cannot_be_written_is_known_before_the_first_prediction(blocked, video, tmp_path):
    (tmp_path / blocked).mkdir()
    predictor = ByNumber()
    with pytest.raises(VideoError, match=rf"{blocked}: can't be written, because a folder"):
        predict_video(predictor, video, tmp_path / "out", with_json=True)
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match=r"file/out\.mp4: can't be written"):
        predict_video(predictor, video, tmp_path / "file" / "out")
    assert predictor.seen == []


KILLED = """
import sys
from pathlib import Path
from mask2former.video import predict_video
from tests.video.conftest import ByNumber

class Slow(ByNumber):
    def __call__(self, images, batch_size=None):
        if len(self.seen) == 9:
            print("now", flush=True)
            sys.stdin.read()
        return super().__call__(images, batch_size)

predict_video(Slow(), Path(sys.argv[1]), Path(sys.argv[2]), codec="FFV1", with_json=True)
"""


def test_a_killed_run_goes_on_with_the_same_colours(video, tmp_path):
    whole = predict_video(ByNumber(), video, tmp_path / "whole" / "clip", codec="FFV1", with_json=True)
    stem = tmp_path / "killed" / "clip"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(video), str(stem)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"now\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not stem.with_name("clip.mkv").exists() and not stem.with_name("clip.jsonl").exists()
    journal = stem.with_name(".clip.journal")
    journal.write_bytes(journal.read_bytes()[:-20])  # as a machine that lost power leaves it
    predictor = ByNumber()
    summary = predict_video(predictor, video, stem, codec="FFV1", with_json=True)
    assert (summary.frames, summary.kept) == (20, 8)
    assert predictor.seen == [[number] for number in range(8, 20)]
    for a, b in zip(frames_of(whole.output), frames_of(summary.output), strict=True):
        assert np.array_equal(a, b)
    assert lines_of(stem.with_name("clip.jsonl")) == lines_of(tmp_path / "whole" / "clip.jsonl")
    assert sorted(file.name for file in stem.parent.iterdir()) == ["clip.jsonl", "clip.mkv"]


def test_an_interrupted_run_of_another_model_or_video_is_forgotten(video, tmp_path):
    def interrupted(predictor):
        def stop(prediction):
            if len(predictor.seen) == 3:
                raise KeyboardInterrupt
            return prediction

        with pytest.raises(KeyboardInterrupt):
            predict_video(predictor, video, tmp_path / "out", refine=stop)

    interrupted(ByNumber())
    assert [file.name for file in tmp_path.glob("*out*")] == [".out.journal"], "nothing half written"
    assert predict_video(ByNumber(), video, tmp_path / "out").kept == 3
    interrupted(ByNumber())
    other = ByNumber()
    other.weights = "others"
    assert predict_video(other, video, tmp_path / "out").kept == 0
    interrupted(ByNumber())
    os.utime(video, (time.time() + 10,) * 2)
    assert predict_video(ByNumber(), video, tmp_path / "out").kept == 0
