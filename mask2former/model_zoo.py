"""The eight published settings: config files, checkpoints and published numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from mask2former.tasks import Task

Dataset = Literal["coco", "ade20k", "cityscapes"]


@dataclass(frozen=True)
class Setting:
    """A setting of Hassani and Shi, "Dilated Neighborhood Attention Transformer" (2022), with Mask2Former.

    Attributes:
        dataset: Data set that it is trained on.
        task: Task of its results.
        schedule: End of the name of its config file.
        published: Published metrics in percent: PQ, AP and mIoU.
        multi_scale: Flag for numbers with test-time augmentation (TEST.AUG.ENABLED).
    """

    dataset: Dataset
    task: Task
    schedule: str
    published: Mapping[str, float]
    multi_scale: bool = False

    @property
    def name(self) -> str:
        """Name such as coco-panoptic."""
        return f"{self.dataset}-{self.task}"

    @property
    def config_file(self) -> PurePosixPath:
        """Path of the config file from the repository root."""
        folder = PurePosixPath("configs", self.dataset, f"{self.task}-segmentation", "dinat")
        return folder / f"maskformer2_dinat_large_IN21k_384_bs16_{self.schedule}.yaml"

    @property
    def checkpoint(self) -> str:
        """File name of the published checkpoint."""
        return f"mask2former_dinat_large_{self.dataset}_{self.task}.pth"

    @property
    def checkpoint_url(self) -> str:
        """Address at which the authors publish the checkpoint."""
        return f"https://shi-labs.com/projects/dinat/checkpoints/m2f/{self.checkpoint}"


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("coco", "panoptic", "100ep", {"PQ": 58.5, "AP": 49.2, "mIoU": 68.3}),
        Setting("coco", "instance", "100ep", {"AP": 50.8}),
        Setting("ade20k", "panoptic", "160k", {"PQ": 49.4, "AP": 35.0, "mIoU": 56.3}),
        Setting("ade20k", "instance", "160k", {"AP": 35.4}),
        Setting("ade20k", "semantic", "160k", {"mIoU": 58.1}, multi_scale=True),
        Setting("cityscapes", "panoptic", "90k", {"PQ": 67.2, "AP": 44.5, "mIoU": 83.4}),
        Setting("cityscapes", "instance", "90k", {"AP": 45.1}),
        Setting("cityscapes", "semantic", "90k", {"mIoU": 84.5}, multi_scale=True),
    )
}
