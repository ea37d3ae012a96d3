import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from mask2former.video import VideoError, VideoReader, predict_video

from ..conftest import ROOT
from .conftest import CLASSES, OBJECTS, SIZE, ByNumber, Capture, masks_of_frame, write_frames


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


def test_a_model_that_always_fails_is_no_fault_of_the_frames(tmp_path):
    source = write_frames(tmp_path / "long.avi", 60)
    with pytest.raises(VideoError, match=r"no result for 50 frames in a row; the last error: RuntimeError"):
        predict_video(ByNumber(failing=range(100)), source, tmp_path / "out")
    assert not (tmp_path / "out.mp4").exists()


def test_a_frame_that_cannot_be_decoded_is_replaced_by_the_picture_before(video, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", lambda path: Capture({5, 6}))
        reader = VideoReader(video)
    monkeypatch.setattr("mask2former.video.process.VideoReader", lambda path: reader)
    summary = predict_video(ByNumber(), video, tmp_path / "out", codec="FFV1")
    assert summary.failed == [(5, "it can't be decoded"), (6, "it can't be decoded")] and summary.frames == 20
    monkeypatch.undo()
    pictures = frames_of(summary.output)
    assert (pictures[5] == pictures[4]).all() and (pictures[6] == pictures[4]).all()
    assert (pictures[7] != pictures[4]).any()


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
