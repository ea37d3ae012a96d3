import cv2
import numpy as np
import pytest

from mask2former.video import VideoError, VideoReader, camera, run_camera

from .conftest import SIZE, ByNumber, frame


class Camera:
    """Gives pictures of `conftest`; a clock that ticks with each."""

    opened = True
    fps = 10.0

    def __init__(self, pictures=6, seconds=0.3):
        self.left, self.pictures, self.seconds, self.time, self.released = pictures, pictures, seconds, 0.0, False

    def __call__(self, number):
        self.number = number
        return self

    def clock(self):
        return self.time

    def isOpened(self):
        return self.opened

    def read(self):
        self.time += self.seconds
        if self.left == 0:
            return False, None
        self.left -= 1
        return True, cv2.cvtColor(frame(self.pictures - self.left - 1), cv2.COLOR_RGB2BGR)

    def get(self, key):
        return self.fps

    def set(self, key, value):
        return True

    def release(self):
        self.released = True


@pytest.fixture
def window(monkeypatch):
    """Stands for OpenCV's windows."""

    class Window:
        keys = []
        shown = []
        visible = 1

    Window.shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: Window.shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: Window.keys[len(Window.shown) - 1] if Window.keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *args: Window.visible)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    return Window


@pytest.fixture
def no_window(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def run(source, stem=None, predictor=None, **options):
    return run_camera(predictor or ByNumber(), 2, stem, open_camera=source, clock=source.clock, **options)


def test_pictures_are_shown_until_a_key(window):
    window.keys = [-1, -1, ord("q"), -1]
    source = Camera()
    summary = run(source)
    assert source.number == 2 and source.released
    assert (summary.frames, len(window.shown), summary.output) == (3, 3, None)
    assert window.shown[0].shape == (*SIZE, 3) and (window.shown[0] != 0).any(), "segments are drawn"


def test_a_closed_window_ends_it(window):
    window.visible = 0
    assert run(Camera()).frames == 1


def test_a_video_runs_as_fast_as_the_clock(no_window, tmp_path):
    """Pictures 0.3 seconds apart at 10 frames per second: each is there three times."""
    summary = run(Camera(), tmp_path / "out" / "webcam", codec="FFV1")
    assert (summary.frames, summary.failed) == (6, 0)
    reader = VideoReader(summary.output)
    assert reader.rate == 10 and summary.output == tmp_path / "out" / "webcam.mkv"
    pictures = list(reader)
    assert len(pictures) == 3 * 6 + 1
    changes = [n for n in range(1, len(pictures)) if not np.array_equal(pictures[n], pictures[n - 1])]
    assert changes == [4, 7, 10, 13, 16]


def test_an_interruption_finishes_the_video(no_window, tmp_path):
    class Interrupted(Camera):
        def read(self):
            if self.left == 3:
                raise KeyboardInterrupt
            return super().read()

    summary = run(Interrupted(), tmp_path / "webcam")
    assert summary.frames == 3
    assert len(list(VideoReader(summary.output))) == 10


def test_a_picture_that_fails_is_reported_and_shown_as_it_is(window, caplog):
    summary = run(Camera(), predictor=ByNumber(failing=[1]))
    assert (summary.frames, summary.failed) == (6, 1)
    assert (window.shown[1] == 4).all() and "picture 2 skipped" in caplog.text


def test_what_is_missing_is_named(no_window, tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="no window can be shown here"):
        run(Camera())
    with pytest.raises(VideoError, match="camera 2 returns no picture"):
        run(Camera(pictures=0), tmp_path / "webcam")
    closed = Camera()
    closed.opened = False
    with pytest.raises(VideoError, match="camera 2 can't be opened"):
        run(closed, tmp_path / "webcam")
    assert closed.released and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("DISPLAY", ":0")

    def refuse(*args):
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    assert not camera.has_windows(), "opencv-python-headless has none"
