import numpy as np

from examples.moving_shapes import moving_shapes, write_moving_shapes
from mask2former.video import VideoReader


def test_the_things_move_and_the_video_can_be_read(tmp_path):
    drawn = list(moving_shapes(6, 64))
    assert np.abs(drawn[0].astype(int) - drawn[5]).max() > 50
    assert all(np.array_equal(a, b) for a, b in zip(drawn, moving_shapes(6, 64), strict=True)), "always the same"
    write_moving_shapes(tmp_path / "clip.mp4", 6, 64)
    read = list(VideoReader(tmp_path / "clip.mp4"))
    assert len(read) == 6
    assert np.abs(read[5].astype(int) - drawn[5]).mean() < 8
