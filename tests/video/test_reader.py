import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from mask2former.video import VideoError, VideoReader, write_video
from mask2former.video.reader import frame_rate

from .conftest import SIZE, Capture, write_frames, write_varying


@pytest.mark.parametrize(("reported", "rate"), [(12.5, 12.5), (0.0, 25.0), (float("nan"), 25.0), (float("inf"), 25.0)])
def test_a_source_without_a_rate_gets_the_usual_one(reported, rate, caplog):
    assert frame_rate(Capture(rate=reported), "camera 3") == rate
    assert ("camera 3 does not report its frame rate" in caplog.text) == (reported != rate)


def test_a_video_shorter_than_its_container_says_ends_with_a_warning(video, monkeypatch, caplog):
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(count=24))
    assert len(list(VideoReader(video))) == 20
    assert "ends after 20 frames, at 0.80 s; its container promises 0.96 s" in caplog.text


def test_frames_that_cannot_be_decoded_are_none_and_frames_of_another_size_are_resized(video, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture({5, 6}, shapes={8: (96, 160)}))
    frames = list(VideoReader(video))
    assert [n for n, frame in enumerate(frames) if frame is None] == [5, 6] and len(frames) == 20
    assert frames[8].shape == (*SIZE, 3)


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"nowhere\.mp4: no such file"):
        VideoReader(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match=r"text\.mp4: not a video that this OpenCV"):
        VideoReader(tmp_path / "text.mp4")


PAUSES = (33, 33, 34, 100, 33, 267, 33, 34, 433, 17, 16, 467, 250)  # of a phone in changing light, in milliseconds
SHADES = tuple(range(20, 20 + 16 * len(PAUSES), 16))


def test_times_of_a_variable_rate_are_those_of_the_container(tmp_path):
    reader = VideoReader(write_varying(tmp_path / "phone.mp4", SHADES, PAUSES))
    assert reader.times == pytest.approx(np.cumsum((0, *PAUSES[:-1])) / 1000, abs=1e-3)
    assert reader.end == pytest.approx(sum(PAUSES) / 1000, abs=1e-3)
    assert reader.count == len(PAUSES) and reader.rate == 60, "two frames are a sixtieth of a second apart"
    places, length = reader.places(reader.rate)
    assert np.abs(np.array(places) / 60 - reader.times).max() <= 0.5 / 60 and length == round(60 * reader.end)


@pytest.mark.parametrize(
    ("pauses", "reported", "rate"),
    [
        ([0.04] * 20, 25.0, 25.0),
        ([0.04] * 20, 90000.0, 25.0),  # a unit of time stamps in place of the rate
        ([0.04] * 20, 0.0, 25.0),
        ([0.04] * 20, float("nan"), 25.0),
        ([0.033, 0.033, 0.034] * 7, 30.0, 30.0),  # rounded to milliseconds
        ([0.033, 0.033, 0.034] * 7, 1000.0, 30.0),
        ([1 / 480] * 20, 480.0, 480.0),  # slow motion
        ([10.0] * 20, 0.1, 0.1),
        ([0.04, 0.04, 0.12, 0.04, 0.2] * 4, 25.0, 25.0),  # frames left out
        ([0.1, 0.1, 0.05, 0.05, 0.2] * 4, 10.0, 20.0),
    ],
)
def test_the_rate_fits_the_times(pauses, reported, rate, video, monkeypatch, caplog):
    times = np.cumsum([0, *pauses])[:20]
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(rate=reported, times=times))
    reader = VideoReader(video)
    assert reader.rate == pytest.approx(rate, rel=1e-3) and reader.times == pytest.approx(times)
    places = reader.places(reader.rate)[0]
    assert np.diff(places).min() == 1, "every frame has a place"
    assert np.abs(np.array(places) / rate - times).max() <= 0.5 / rate + 1e-3
    assert "frame rate" not in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_every_frame_of_an_erratic_rate_has_a_place_near_its_time(seed, video, monkeypatch):
    times = np.cumsum(np.random.default_rng(seed).uniform(0.01, 0.5, 20))
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(rate=4.0, times=times))
    reader = VideoReader(video)
    places, length = reader.places(reader.rate)
    assert np.diff(places).min() >= 1 and length > places[-1]
    assert np.abs(np.array(places) / reader.rate - times).max() <= 0.5 / reader.rate + 1e-9


def test_times_that_jump_or_are_missing_are_repaired_with_a_warning(video, monkeypatch, caplog):
    def read(times, rate=25.0):
        caplog.clear()
        monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(rate=rate, times=times))
        return VideoReader(video).times

    even = np.arange(20) * 0.04
    assert read(np.concatenate([even[:10], even[:10]])) == pytest.approx(even)  # two recordings in a file
    assert "jump 1 times" in caplog.text
    assert read(np.concatenate([even[:10], even[10:] + 90000])) == pytest.approx(even)
    assert read(np.where(even == even[3], np.nan, even)) == pytest.approx(even)
    assert read(np.zeros(20)) == pytest.approx(even) and not caplog.text, "the rate alone is known"
    assert read(np.zeros(20), rate=90000.0) == pytest.approx(even)
    assert "does not report its frame rate: assuming 25" in caplog.text


def test_damaged_first_frames_are_skipped(video, monkeypatch):
    """Their time stays: the first sound frame is at its own time."""
    times = np.arange(20) * 0.04
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture({0, 1, 2}, times=times))
    reader = VideoReader(video)
    frames = list(reader)
    assert [frame is None for frame in frames] == [True] * 3 + [False] * 17 and (frames[3] == 12).all()
    assert reader.times[3] == 0.12 and reader.places(reader.rate)[0][3:] == list(range(3, 20))
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(range(20)))
    with pytest.raises(VideoError, match="not a video"):
        VideoReader(video)


def damage(path, first, count):
    """Overwrite JPEG frames of an AVI."""
    content = bytearray(path.read_bytes())
    start = -1
    for number in range(first + count):
        start = content.index(b"\xff\xd8\xff", start + 1)
        if number >= first:
            content[start : start + 200] = bytes(200)
    path.write_bytes(content)


@pytest.mark.parametrize("first", [0, 5])
def test_damaged_frames_of_a_file(first, tmp_path):
    path = write_frames(tmp_path / "clip.avi", 12)
    damage(path, first, 3)
    reader = VideoReader(path)
    frames = list(reader)
    assert [n for n, frame in enumerate(frames) if frame is None] == list(range(first, first + 3))
    assert reader.count == 12 and reader.times[first + 3] == pytest.approx((first + 3) * 0.04)
    assert abs(int(frames[first + 3].mean()) - 4 * (first + 3)) < 3


@pytest.mark.parametrize("ending", [".avi", ".mkv"])
def test_a_file_that_was_cut_off_is_read_up_to_there(ending, tmp_path):
    path = write_frames(tmp_path / f"clip{ending}", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    reader = VideoReader(path)
    assert 8 <= reader.count < 15 and len(list(reader)) == reader.count
    assert reader.end == pytest.approx(reader.count * 0.04, abs=0.005)


@pytest.mark.parametrize(
    ("aspect", "size"), [((4, 3), (192, 426)), ((3, 4), (256, 320)), ((1, 1), SIZE), ((90, 1), SIZE), ((0, 1), SIZE)]
)
def test_pixels_become_square(aspect, size, tmp_path, caplog):
    caplog.set_level("INFO")
    reader = VideoReader(write_varying(tmp_path / "clip.mp4", (50, 90), (40, 40), pixel_aspect=aspect))
    assert reader.size == size and all(frame.shape == (*size, 3) for frame in reader)
    assert ("not square" in caplog.text) == (size != SIZE) and ("can't be meant" in caplog.text) == (aspect == (90, 1))


def test_turned_recordings_are_upright_and_their_pixels_too(tmp_path):
    path = write_varying(tmp_path / "phone.mp4", (50, 90), (40, 40), pixel_aspect=(4, 3))
    content = bytearray(path.read_bytes())
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[0] << 16, 0, 1 << 30)
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = matrix
    path.write_bytes(content)
    assert VideoReader(path).size == (426, 192)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animated_images_have_the_times_of_their_frames(ending, tmp_path):
    pictures = [Image.new("RGB", (64, 48), (shade, shade, shade)) for shade in (0, 80, 160, 240)]
    path = tmp_path / f"animation.{ending}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 50, 200, 500], lossless=True)
    reader = VideoReader(path)
    assert reader.times == pytest.approx([0, 0.1, 0.15, 0.35]) and reader.end == pytest.approx(0.85)
    assert [int(frame.mean()) for frame in reader] == [0, 80, 160, 240] and reader.size == (48, 64)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 2), (50, 51)])
def test_small_and_odd_sizes(size, tmp_path):
    with write_video(tmp_path / "clip.avi", "MJPG", 25.0, size) as write:
        for _ in range(3):
            write(np.full((*size, 3), 100, np.uint8))
    reader = VideoReader(tmp_path / "clip.avi")
    assert reader.size == size and reader.count == 3
