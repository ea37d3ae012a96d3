"""The exported part of a model: traced by torch.export, described for other programs, and written to one file."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dinat_common.errors import UserError
from dinat_common.files import atomic_write
from mask2former.data.classes import ClassTable
from mask2former.data.classification import build_evaluation_transform
from mask2former.data.image_io import configured_range
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.meta_arch.image_classifier import ImageClassifier
from mask2former.modeling.meta_arch.pixel_classifier import PixelClassifier
from mask2former.tasks import Task, thing_ids

from .numpy_postprocessing import image_sizes

# What may differ from call to call: nothing, the number of images, or also their height and width.
Freedom = Literal["none", "batch", "size"]
# Name of the input.
INPUT = "image"
# The stride of the coarsest feature map: the sides of an input are multiples of it whatever the backbone requires.
_STRIDE = 32
# The longest side of an input of any size.
_LARGEST = 8192
# Height and width of a photograph: the input's default size is what the config makes of it.
_PHOTOGRAPH = (480, 640)
# The first with GridSample "linear" and Gelu; onnxruntime supports it since 1.17.
_OPSET = 20
# Name of the description among the extra files of a .pt2.
DESCRIPTION_FILE = "description.json"


class ExportError(UserError):
    """An export that is not possible here, or not with these options; the message says why."""


class ExportedNetwork(nn.Module):
    """A MaskFormer from raw pixels (normalisation included) to the input of post-processing."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images, float32 [B, 3, H, W] in 0..255, to class logits [B, Q, K + 1] and mask logits [B, Q, H/4, W/4].

        Channels have the order of `INPUT.FORMAT`. Sides are multiples of `side_step`.
        """
        outputs = self.model.sem_seg_head(self.model.backbone(self.model.normalise(image)))
        return outputs["pred_logits"].float(), outputs["pred_masks"].float()


class ExportedPixelClassifier(nn.Module):
    """A PixelClassifier from raw pixels (normalisation included) to class logits of pixels.

    It has only the parts that predict: a program of torch.export would also store the auxiliary head.
    """

    def __init__(self, model: PixelClassifier) -> None:
        super().__init__()
        model.eval().requires_grad_(False)
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head
        self._normalise = model.normalise

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Map images, float32 [B, 3, H, W] in 0..255, to class logits [B, K, H/4, W/4], rounded up.

        Channels have the order of `INPUT.FORMAT`.
        """
        return (self.sem_seg_head(self.backbone(self._normalise(image))).float(),)


class ExportedClassifier(nn.Module):
    """An ImageClassifier from raw pixels (normalisation included) to class logits."""

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Map crops of images, float32 [B, 3, H, W] in 0..255, to class logits [B, K].

        Channels have the order of `INPUT.FORMAT`.
        """
        return (self.model.logits(self.model.normalise(image)).float(),)


def side_step(model: MaskFormer) -> int:
    """Number of pixels that the sides of a Mask2Former's input are multiples of."""
    return max(_STRIDE, model.size_divisibility)


def _any_side(model: nn.Module) -> int:
    return 1


def smallest_side(step: int) -> int:
    """Shortest side of an input of any size: a multiple of `step` that gives the coarsest map more than one cell.

    A map of one row or column traces to another program.
    """
    return (_STRIDE // step + 1) * step


def _size_of_photograph(cfg: CfgNode, model: nn.Module) -> tuple[int, int]:
    limits = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, export_form(model).side_step(model)
    return image_sizes(_PHOTOGRAPH, *limits, resize_with=cfg.INPUT.RESIZE_WITH).padded


def export_network(model: nn.Module, size: tuple[int, int], freedom: Freedom = "none") -> ExportedProgram:
    """Trace a model on the CPU with torch.export.

    Args:
        model: Model whose attention backends can be exported: MODEL.DINAT.ATTENTION_BACKEND exportable and
            MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND reference.
        size: Height and width of the input; with freedom "size", of the images used for tracing.
        freedom: Dimensions that may differ from call to call. A program for any size is slower, and tracing it takes
            several times as long.

    Raises:
        ExportError: Models of this meta-architecture can't be exported, or not with this size or freedom.
    """
    form = export_form(model)
    step = form.side_step(model)
    if any(side < step or side % step for side in size):
        raise ExportError(f"size {size[0]} x {size[1]}: expected multiples of {step}")
    if freedom == "size" and form.one_size:
        raise ExportError("--free size: image classifiers see images of one size; --free batch is possible")
    shapes: dict[int, Any] = {}
    if freedom != "none":
        shapes[0] = Dim("batch", min=1, max=256)
    if freedom == "size":
        least = smallest_side(step)
        shapes[2], shapes[3] = (_sides(name, step, least) for name in ("rows", "columns"))
        size = (max(size[0], least), max(size[1], least))
        if size[0] == size[1]:
            # Tracing could take equal sides for the same unknown.
            size = (size[0], size[1] + max(step, _STRIDE))
    # Tracing would turn a batch of one into a constant.
    example = torch.zeros(1 if freedom == "none" else 2, 3, *size)
    with torch.no_grad():
        return torch.export.export(
            form.network(model),
            (example,),
            dynamic_shapes={INPUT: shapes} if shapes else None,
            strict=False,
            # Conditions on a size that tracing can't decide are checked at run time.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _sides(name: str, step: int, least: int) -> Any:
    """Sides from `least` to `_LARGEST` that are multiples of `step`."""
    dim = Dim(name, min=least // step, max=_LARGEST // step)
    return dim if step == 1 else step * dim


def class_table(metadata: Metadata, tasks: Sequence[Task]) -> ClassTable:
    """Classes by the ids that a model of some tasks predicts, from the metadata of its data set."""
    # An instance data set numbers only its things; all others number things and stuff together.
    only_instances = list(tasks) == ["instance"]
    numbered_by_things = metadata.get("thing_classes") and (only_instances or not metadata.get("stuff_classes"))
    return ClassTable.from_metadata(metadata, "instance" if numbered_by_things else "semantic")


def describe(cfg: CfgNode, model: nn.Module, metadata: Metadata, freedom: Freedom) -> dict[str, Any]:
    """Collect what a program needs to prepare images for an exported model and to turn its outputs into results.

    Args:
        cfg: Config that the model was built with.
        model: The model.
        metadata: Metadata of the data set whose classes it predicts.
        freedom: Dimensions that may differ from call to call; see `export_network`.

    Returns:
        A dict of values that JSON can hold.

    Raises:
        ExportError: Models of this meta-architecture can't be exported.
    """
    form = export_form(model)
    return {
        "kind": form.kind,
        "outputs": list(form.outputs),
        "image_format": cfg.INPUT.FORMAT,
        "value_range": list(configured_range(cfg) or ()),
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "freedom": freedom,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        **form.describe(cfg, model, metadata),
    }


def _describe_images(cfg: CfgNode, model: nn.Module, metadata: Metadata, tasks: Sequence[Task]) -> dict[str, Any]:
    """Classes of a model of whole images, and the sizes of its input."""
    table, things = class_table(metadata, tasks), thing_ids(metadata)
    step = export_form(model).side_step(model)
    return {
        "tasks": list(tasks),
        "classes": [
            {"name": table.name(i), "color": list(table.color(i)), "isthing": things is None or i in things}
            for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        ],
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "divisibility": step,
        "smallest_side": smallest_side(step),
        "resize_with": cfg.INPUT.RESIZE_WITH,
    }


def _describe_queries(cfg: CfgNode, model: MaskFormer, metadata: Metadata) -> dict[str, Any]:
    settings = model.inference_settings
    return {
        **_describe_images(cfg, model, metadata, settings.tasks),
        "object_mask_threshold": settings.object_mask_threshold,
        "overlap_threshold": settings.overlap_threshold,
        "detections_per_image": settings.detections_per_image,
        "resize_masks_first": settings.resize_masks_first,
    }


def _describe_pixels(cfg: CfgNode, model: PixelClassifier, metadata: Metadata) -> dict[str, Any]:
    return _describe_images(cfg, model, metadata, model.inference_settings.tasks)


def _describe_classifier(cfg: CfgNode, model: ImageClassifier, metadata: Metadata) -> dict[str, Any]:
    table, transform = ClassTable.from_metadata(metadata, "classification"), build_evaluation_transform(cfg)
    return {
        "tasks": ["classification"],
        "classes": [{"name": table.name(i), "color": list(table.color(i))} for i in range(model.head.out_features)],
        "shorter_side": transform.shorter_side,
        "crop": transform.size,
    }


def _size_of_crop(cfg: CfgNode, model: ImageClassifier) -> tuple[int, int]:
    side = build_evaluation_transform(cfg).size
    return side, side


@dataclass(frozen=True)
class ExportForm:
    """How models of a meta-architecture are exported.

    Attributes:
        kind: Name of the kind of output, which decides how results are made of it: "queries", "pixels" or "crop".
        network: Class of the exported module, made of a model.
        outputs: Names of its outputs.
        side_step: Function that returns the number of pixels that the sides of a model's input are multiples of.
        default_size: Function that returns height and width of the input, given the config and the model.
        describe: Function that returns what depends on the meta-architecture in `describe`.
        one_size: Whether models see images of one size alone.
    """

    kind: str
    network: Callable[[Any], nn.Module]
    outputs: tuple[str, ...]
    side_step: Callable[[Any], int]
    default_size: Callable[[CfgNode, Any], tuple[int, int]]
    describe: Callable[[CfgNode, Any, Metadata], dict[str, Any]]
    one_size: bool = False


# By the name of the meta-architecture; a text is the reason why its models can't be exported.
FORMS: Mapping[str, ExportForm | str] = {
    "MaskFormer": ExportForm(
        "queries",
        ExportedNetwork,
        ("pred_logits", "pred_masks"),
        side_step,
        _size_of_photograph,
        _describe_queries,
    ),
    "PixelClassifier": ExportForm(
        "pixels", ExportedPixelClassifier, ("logits",), _any_side, _size_of_photograph, _describe_pixels
    ),
    "ImageClassifier": ExportForm(
        "crop", ExportedClassifier, ("logits",), _any_side, _size_of_crop, _describe_classifier, one_size=True
    ),
    "MaskRCNN": "detectors can't be exported, because they choose boxes in the middle of the network and their number "
    "differs from image to image, while a file holds one fixed graph; use demo/demo.py or mask2former.Predictor, or "
    "export a Mask2Former for instances",
}


def export_form(model: nn.Module) -> ExportForm:
    """The entry of `FORMS` for a model, or for a class that it is derived from.

    Raises:
        ExportError: There is none, or such models can't be exported.
    """
    form = next((FORMS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in FORMS), None)
    if form is None:
        possible = " and ".join(name for name, form in FORMS.items() if isinstance(form, ExportForm))
        raise ExportError(f"{type(model).__name__}: such models can't be exported; {possible} can")
    if isinstance(form, str):
        raise ExportError(f"{type(model).__name__}: {form}")
    return form


def check_exportable(cfg: CfgNode) -> None:
    """Check before a model is built that it can be exported, and that its results need the network only once.

    Raises:
        ExportError: It can't be exported as the config describes it.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    form = FORMS.get(name)
    if isinstance(form, str):
        raise ExportError(f"MODEL.META_ARCHITECTURE is {name}: {form}")
    if cfg.TEST.AUG.ENABLED:
        raise ExportError(
            "TEST.AUG.ENABLED is True, but an exported file sees an image once, at one scale: set TEST.AUG.ENABLED "
            "False; train_net.py --eval-only averages over scales and flips"
        )
    if name == "PixelClassifier" and (window := list(cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE)):
        raise ExportError(
            f"MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE is {window}, but an exported file predicts an image as a whole: set "
            "WINDOW_SIZE [], and with --free size images of any size stay as they are"
        )


def save_onnx(program: ExportedProgram, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a program as one ONNX file that is either complete or absent.

    The entries of `description`, see `describe`, become `metadata_props` of the model, each as JSON.

    Raises:
        ExportError: The packages of the extra `export` are missing, or the weights are too large for one file.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx exports with it
    except ImportError as error:
        raise ExportError(f"exporting to ONNX needs {error.name}: pip install -e '.[export]'") from error
    # Its notes on each step would hide the tool's own output.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=list(description["outputs"]), opset_version=_OPSET
        )
    if exported is None:
        raise ExportError("torch.onnx.export returned no program")
    model = exported.model_proto
    for key, value in description.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    try:
        content = model.SerializeToString()
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{path}: an ONNX file holds at most 2 GB, this model is larger ({error})") from error
    with atomic_write(path, "wb") as file:
        file.write(content)
    del content
    onnx.checker.check_model(os.fspath(path))


def save_torch_export(program: ExportedProgram, path: str | Path, description: Mapping[str, Any]) -> None:
    """Write a program for `torch.export.load`, complete or not at all; `description` is an extra file, as JSON."""
    with atomic_write(path, "wb") as file:
        torch.export.save(program, file, extra_files={DESCRIPTION_FILE: json.dumps(description)})
