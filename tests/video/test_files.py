import errno
import os

import cv2
import numpy as np
import pytest

from mask2former.video import CODECS, VideoError, VideoReader, write_video
from mask2former.video.files import default_codec

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


def test_what_cannot_be_written_is_known_at_once(tmp_path):
    def refused(path, reason, codec="mp4v"):
        with pytest.raises(VideoError, match=reason), write_video(path, codec, 25.0, (48, 64)):
            pytest.fail("the file was opened")

    (tmp_path / "file").touch()
    (tmp_path / "video.mp4").mkdir()
    refused(tmp_path / "video.mp4", r"video\.mp4: can't be written, because a folder has this name")
    refused(tmp_path / "file" / "video.mp4", r"file/video\.mp4: can't be written \((Not a directory|File exists)")
    refused(tmp_path / "file" / "more" / "video.mp4", r"more/video\.mp4: can't be written \(Not a directory")
    refused(tmp_path / f"{300 * 'x'}.mp4", r"x\.mp4: can't be written \(File name too long")
    refused(tmp_path / "video.txt", r"can't write MJPG into \.txt", "MJPG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "video.mp4"]


def test_a_full_disk_is_known_at_once(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(VideoError, match=r"video\.mp4: can't be written \(No space left on device\)"),
        write_video(tmp_path / "video.mp4", "mp4v", 25.0, (48, 64)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
