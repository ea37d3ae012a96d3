"""Whether the files of a setting are there and sound, before hours are spent on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Finding:
    """Something about a split's files that is not as published.

    Attributes:
        split: "train" or "val".
        message: names the files.
        blocks: whether training (of "train") or evaluation (of "val") can't run with it.
    """

    split: str
    message: str
    blocks: bool


@dataclass(frozen=True)
class SettingReport:
    """What a check found for one of the settings of `mask2former.settings`.

    Attributes:
        setting: its name, such as coco-panoptic.
        images: split -> number of images found.
        findings: what is missing, damaged or of another number than published.
    """

    setting: str
    images: dict[str, int]
    findings: Sequence[Finding] = field(default_factory=tuple)

    @property
    def can_train(self) -> bool:
        """Whether nothing is in the way of training."""
        return not self.blocking("train")

    @property
    def can_evaluate(self) -> bool:
        """Whether nothing is in the way of evaluation."""
        return not self.blocking("val")

    def blocking(self, split: str) -> list[str]:
        """Messages of what is in the way with this split."""
        return [finding.message for finding in self.findings if finding.blocks and finding.split == split]


def check_setting(setting: str, *, full: bool = False, workers: int = 1) -> SettingReport:
    """Check the files of one setting under DETECTRON2_DATASETS.

    Args:
        setting: a name in `mask2former.settings.SETTINGS`.
        full: also open every file, and compare labels with each other and with the table of classes.
        workers: number of processes with `full`.

    Raises:
        ValueError: there is no such setting.
    """
    raise NotImplementedError
