"""Videos and cameras: predicts each frame and draws the same object in the same colour throughout."""

from mask2former.video.camera import CameraSummary, run_camera
from mask2former.video.files import CODECS, write_video
from mask2former.video.process import VideoSummary, predict_video
from mask2former.video.reader import VideoError, VideoReader
from mask2former.video.tracking import Tracker

__all__ = [
    "CODECS",
    "CameraSummary",
    "Tracker",
    "VideoError",
    "VideoReader",
    "VideoSummary",
    "predict_video",
    "run_camera",
    "write_video",
]
