"""What a check found, as data and as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Finding:
    """Something about a split's files that is not as published.

    Attributes:
        split: "train" or "val".
        message: names the files.
        blocks: whether training (of "train") or evaluation (of "val") can't run with it, or would give wrong numbers.
    """

    split: str
    message: str
    blocks: bool


@dataclass(frozen=True)
class SettingReport:
    """What a check found for one of the settings of `mask2former.model_zoo`.

    Attributes:
        setting: its name, such as coco-panoptic.
        images: split -> number of images found, for the splits that were checked.
        findings: what is missing, damaged or of another number than published.
    """

    setting: str
    images: Mapping[str, int]
    findings: Sequence[Finding] = ()

    @property
    def can_train(self) -> bool:
        """Whether nothing is in the way of training."""
        return "train" in self.images and not self.blocking("train")

    @property
    def can_evaluate(self) -> bool:
        """Whether nothing is in the way of evaluation."""
        return "val" in self.images and not self.blocking("val")

    def blocking(self, split: str) -> list[str]:
        """Messages of what is in the way with this split."""
        return [finding.message for finding in self.findings if finding.blocks and finding.split == split]


def render(reports: Sequence[SettingReport]) -> str:
    """A table of all settings, and below it all findings, those that several settings share once."""
    rows = [
        [
            report.setting,
            _answer("train" in report.images, report.can_train),
            report.images.get("train", ""),
            _answer("val" in report.images, report.can_evaluate),
            report.images.get("val", ""),
        ]
        for report in reports
    ]
    table = tabulate(rows, ["setting", "can train", "images", "can evaluate", "images"])
    settings: dict[tuple[str, str, bool], list[str]] = {}
    for report in reports:
        for finding in report.findings:
            settings.setdefault((finding.split, finding.message, finding.blocks), []).append(report.setting)
    lines = [
        f"{'in the way' if blocks else 'note'} ({', '.join(names)}, {split}): {message}"
        for (split, message, blocks), names in sorted(settings.items(), key=lambda item: not item[0][2])
    ]
    return "\n".join([table, *([""] if lines else []), *lines])


def _answer(checked: bool, can: bool) -> str:
    if not checked:
        return ""
    return "yes" if can else "NO"
