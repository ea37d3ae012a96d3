"""Semantic segmentation averaged over scales and flips."""

import copy
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn


class SemanticSegmentorWithTTA(nn.Module):
    """Runs a model on every side of `TEST.AUG.MIN_SIZES`, with and without flip, and averages the class maps."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Wrap `model`, which returns `sem_seg`; `TEST.AUG` says how to augment."""
        super().__init__()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model = model
        self.image_format = cfg.INPUT.FORMAT
        self.augment = DatasetMapperTTA(cfg)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Take what the model takes for inference (`image` is read from `file_name` if missing).

        Returns:
            for each image a dict with `sem_seg` [K, height, width].
        """
        return [{"sem_seg": self._average(self._complete(inputs))} for inputs in batched_inputs]

    def _complete(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = copy.copy(inputs)
        if "image" not in inputs:
            image = detection_utils.read_image(inputs["file_name"], self.image_format)
            inputs["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        inputs.setdefault("height", inputs["image"].shape[1])
        inputs.setdefault("width", inputs["image"].shape[2])
        return inputs

    @torch.no_grad()
    def _average(self, inputs: dict[str, Any]) -> Tensor:
        augmented = self.augment(inputs)
        total: Tensor | None = None
        for version in augmented:
            transforms = version.pop("transforms").transforms
            class_map = self.model([version])[0]["sem_seg"]
            if any(isinstance(transform, HFlipTransform) for transform in transforms):
                class_map = class_map.flip(2)
            total = class_map if total is None else total.add_(class_map)
        if total is None:
            raise ValueError("TEST.AUG.MIN_SIZES is empty; expected at least one side length")
        return total / len(augmented)
