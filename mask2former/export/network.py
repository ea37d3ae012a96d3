"""The part of a model that is exported, traced by torch.export, and what a program has to know to use it."""

import hashlib
from typing import Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mask2former.data.classes import ClassTable
from mask2former.maskformer_model import MaskFormer
from mask2former.utils.errors import UserError

# What stays open in an exported program: nothing, the number of images, or also their height and width.
Freedom = Literal["none", "batch", "size"]
INPUT, OUTPUTS = "image", ("pred_logits", "pred_masks")
# Sides of images are such multiples, whatever the model wants: its coarsest map has this stride.
_STRIDE = 32
_LARGEST_BATCH = 256
_LARGEST_SIDE = 8192


class ExportError(UserError):
    """An export that can't be done here, or not as asked; the message says why."""


class ExportedNetwork(nn.Module):
    """A MaskFormer between the raw image and post-processing; normalisation is part of it."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images, float32 [B, 3, H, W] in 0..255, to class logits [B, Q, K + 1] and mask logits [B, Q, H/4, W/4].

        Channels have the order of `INPUT.FORMAT`. Sides are multiples of `side_step`.
        """
        normalised = (image - self.model.pixel_mean) / self.model.pixel_std
        outputs = self.model.sem_seg_head(self.model.backbone(normalised))
        return outputs["pred_logits"].float(), outputs["pred_masks"].float()


def side_step(model: MaskFormer) -> int:
    """What the sides of a model's input are multiples of."""
    return max(_STRIDE, model.size_divisibility)


def export_network(model: MaskFormer, size: tuple[int, int], freedom: Freedom = "none") -> ExportedProgram:
    """Trace a model on the CPU with torch.export.

    Args:
        model: whose attention uses backends that can be exported: MODEL.DINAT.ATTENTION_BACKEND exportable and
            MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND reference.
        size: height and width of the input; with freedom "size", of the images that it is traced with.
        freedom: what may differ from call to call. A program for any size computes some more, and tracing it takes
            several times as long.

    Raises:
        ExportError: the size is not a multiple of what the model needs.
    """
    step = side_step(model)
    if any(side < step or side % step for side in size):
        raise ExportError(f"size {size[0]} x {size[1]}: expected multiples of {step}")
    shapes: dict[int, Any] = {}
    if freedom != "none":
        shapes[0] = Dim("batch", min=1, max=_LARGEST_BATCH)
    if freedom == "size":
        # A side of one step could be one cell in the coarsest map, which traces to another program.
        largest = _LARGEST_SIDE // step
        shapes[2] = step * Dim("rows", min=2, max=largest)
        shapes[3] = step * Dim("columns", min=2, max=largest)
    # A batch of one would be traced as a constant.
    example = torch.zeros(1 if freedom == "none" else 2, 3, *_distinct(size, step) if freedom == "size" else size)
    with torch.no_grad():
        return torch.export.export(
            ExportedNetwork(model),
            (example,),
            dynamic_shapes={INPUT: shapes} if shapes else None,
            strict=False,
            # What can only be known of a size when it comes is then checked when it comes.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def describe(cfg: CfgNode, model: MaskFormer, metadata: Metadata, freedom: Freedom) -> dict[str, Any]:
    """What a program needs to prepare images for an exported model and to make results of its outputs; JSON-ready.

    Args:
        cfg: the config that the model was built with.
        model: the model.
        metadata: of the data set whose classes it predicts.
        freedom: see `export_network`.
    """
    settings = model.inference_settings
    switched_on = list(settings.tasks)
    # An instance data set numbers its things alone; all others number them among the stuff.
    table = ClassTable.from_metadata(metadata, "instance" if switched_on == ["instance"] else "semantic")
    things = range(len(table.names)) if switched_on == ["instance"] else table.thing_ids
    return {
        "tasks": switched_on,
        "classes": [
            {"name": table.name(i), "color": list(table.color(i)), "isthing": i in things}
            for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        ],
        "image_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "divisibility": side_step(model),
        "freedom": freedom,
        "object_mask_threshold": settings.object_mask_threshold,
        "overlap_threshold": settings.overlap_threshold,
        "detections_per_image": settings.detections_per_image,
        "resize_masks_first": settings.resize_masks_first,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
    }


def _distinct(size: tuple[int, int], step: int) -> tuple[int, int]:
    """Sides that tracing can't take for the same unknown."""
    return size if size[0] != size[1] else (size[0], size[1] + step)
