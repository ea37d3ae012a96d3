import cv2
import numpy as np
import pytest

from mask2former.video import CODECS, VideoError, VideoReader, write_video
from mask2former.video.files import default_codec, frame_rate

from .conftest import SIZE, Capture

GREY = np.full((48, 64, 3), 128, np.uint8)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "avc1"])
def test_codecs_of_the_wheel(codec, tmp_path):
    path = tmp_path / f"video{CODECS[codec]}"
    with write_video(path, codec, 24.0, (48, 64)) as write:
        for red in (0, 120, 240):
            picture = GREY.copy()
            picture[:, :, 0] = red
            write(picture)
    frames = list(VideoReader(path))
    assert len(frames) == 3 and VideoReader(path).rate == pytest.approx(24)
    assert [abs(int(frame[24, 32, 0]) - red) < 12 for frame, red in zip(frames, (0, 120, 240), strict=True)] == [
        True
    ] * 3


def test_an_odd_size_stays_what_it_is(tmp_path, caplog):
    assert default_codec((49, 64)) == default_codec((48, 65)) == "MJPG" and default_codec((48, 64)) == "mp4v"
    with write_video(tmp_path / "odd.avi", "MJPG", 25.0, (49, 65)) as write:
        write(np.full((49, 65, 3), (250, 20, 20), np.uint8))
    (frame,) = VideoReader(tmp_path / "odd.avi")
    assert frame.shape == (49, 65, 3)
    # The encoder takes black for what lies beyond the last row and column, whose colours fade.
    assert np.abs(frame[:48, :64].astype(int) - (250, 20, 20)).mean() < 2
    with (
        pytest.raises(VideoError, match=r"mp4v supports only even sizes, not 65x49; MJPG"),
        write_video(tmp_path / "odd.mp4", "mp4v", 25.0, (49, 65)),
    ):
        pass
    with write_video(tmp_path / "rate.avi", "MJPG", 29.97, (49, 65)) as write:
        write(np.zeros((49, 65, 3), np.uint8))
    assert "30 frames per second instead of 29.970" in caplog.text


def test_a_codec_that_is_not_there_is_named(tmp_path):
    with (
        pytest.raises(VideoError, match=r"can't write MJPG into \.txt, 64x48 at 25 frames.*another codec: mp4v"),
        write_video(tmp_path / "video.txt", "MJPG", 25.0, (48, 64)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_what_is_not_finished(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), write_video(path, "mp4v", 25.0, (48, 64)) as write:
        write(GREY)
        raise KeyboardInterrupt
    with pytest.raises(VideoError, match="no frame to write"), write_video(path, "mp4v", 25.0, (48, 64)):
        pass
    with (
        pytest.raises(ValueError, match=r"shape \(10, 10, 3\) for a video of 64x48"),
        write_video(path, "mp4v", 25.0, (48, 64)) as write,
    ):
        write(GREY[:10, :10])
    assert list(tmp_path.iterdir()) == []


class FullDisk:
    """A writer whose file is cut off; OpenCV reports no error."""

    fourcc = cv2.VideoWriter.fourcc

    def __init__(self, path, *arguments):
        self.path, self.writer = path, cv2_writer(path, *arguments)

    def isOpened(self):
        return self.writer.isOpened()

    def write(self, frame):
        self.writer.write(frame)

    def release(self):
        self.writer.release()
        with open(self.path, "rb+") as file:
            file.truncate(500)


cv2_writer = cv2.VideoWriter


def test_a_file_that_was_cut_off_never_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoWriter", FullDisk)
    path = tmp_path / "video.avi"
    with pytest.raises(VideoError, match="is the disk full"), write_video(path, "MJPG", 25.0, (48, 64)) as write:
        write(GREY)
        write(GREY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("reported", "rate"), [(12.5, 12.5), (0.0, 25.0), (float("nan"), 25.0), (float("inf"), 25.0)])
def test_a_source_without_a_rate_gets_the_usual_one(reported, rate, caplog):
    assert frame_rate(Capture(rate=reported), "camera 3") == rate
    assert ("camera 3 does not report its frame rate" in caplog.text) == (reported != rate)


def test_a_video_shorter_than_its_container_says_ends_with_a_warning(video, monkeypatch, caplog):
    monkeypatch.setattr(cv2, "VideoCapture", lambda path: Capture(count=24))
    assert len(list(VideoReader(video))) == 20
    assert "ends after 20 frames; its container promises 24" in caplog.text


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
