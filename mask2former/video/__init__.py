"""Videos and cameras: frames in, pictures with the same colours for the same objects out."""

from mask2former.video.camera import CameraSummary, run_camera
from mask2former.video.process import VideoSummary, predict_video
from mask2former.video.reading import VideoError, VideoReader
from mask2former.video.tracking import Tracker
from mask2former.video.writing import CODECS, write_video

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
