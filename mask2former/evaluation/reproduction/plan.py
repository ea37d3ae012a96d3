"""Which of the published settings can be evaluated here, and what is in the way of the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask2former.data.published import SettingReport, check_settings
from mask2former.model_zoo import Setting

# The published file, or what tools/convert_weights.py makes of it.
_ENDINGS = (".pth", ".safetensors")


@dataclass(frozen=True)
class Plan:
    """What is there for one setting.

    Attributes:
        setting: of `mask2former.model_zoo`.
        images: how many to evaluate.
        checkpoint: the file of weights; None: there is none.
        obstacles: what is missing; empty: it can be evaluated.
        remarks: what differs from the published data without being in the way.
    """

    setting: Setting
    images: int
    checkpoint: Path | None
    obstacles: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it can be evaluated."""
        return not self.obstacles


def plan_settings(settings: Sequence[Setting], weights: Path) -> list[Plan]:
    """Look for the validation data of settings, under DETECTRON2_DATASETS, and for their checkpoints.

    Args:
        settings: of `mask2former.model_zoo`.
        weights: the folder of the checkpoints, under their published names ending in .pth or .safetensors.
    """
    reports = check_settings([setting.name for setting in settings], splits=("val",))
    return [_plan(setting, report, weights) for setting, report in zip(settings, reports, strict=True)]


def _plan(setting: Setting, data: SettingReport, weights: Path) -> Plan:
    names = [Path(setting.checkpoint).with_suffix(ending).name for ending in _ENDINGS]
    checkpoint = next((weights / name for name in names if (weights / name).is_file()), None)
    obstacles = [f"data: {message}" for message in data.blocking("val")]
    if checkpoint is None:
        expected = f"{setting.checkpoint} (or {_ENDINGS[1]})"
        obstacles.append(f"weights: no {expected} in {weights}; published at {setting.checkpoint_url}")
    remarks = [finding.message for finding in data.findings if finding.split == "val" and not finding.blocks]
    return Plan(setting, data.images.get("val", 0), checkpoint, tuple(obstacles), tuple(remarks))
