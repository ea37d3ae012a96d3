"""The journal of a video's frames is a plain `Journal` with frame numbers as keys."""

from mask2former.utils.journal import Journal as FrameJournal

__all__ = ["FrameJournal"]
