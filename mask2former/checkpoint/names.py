"""Which weights of a file a model takes: by exact name, with an account of every name on either side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch.nn import functional as F

from dinat_common.weights import OUTER_WRAPPERS, WRAPPERS, StateDict

Shape = tuple[int, ...]

# Buffers made from the config. A file may lack or have them without any effect on the model's output.
_FROM_CONFIG = frozenset({"criterion.empty_weight", "pixel_mean", "pixel_std"})
# Likewise for counters: of batch norms, which inference does not use, and of an average of the weights.
_COUNTERS = ("num_batches_tracked", "n_averaged")
# Weights with one row per class: their rows that stand for no class, and the key of the number of classes.
_CLASS_HEADS = {
    "sem_seg_head.predictor.class_embed.weight": (1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
    "sem_seg_head.conv_seg.weight": (0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
    "auxiliary_head.conv_seg.weight": (0, "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
    "head.weight": (0, "MODEL.CLASSIFIER.NUM_CLASSES"),
    "roi_heads.box_predictor.0.cls_score.weight": (1, "MODEL.ROI_HEADS.NUM_CLASSES"),
}
# Further weights whose rows belong to classes: those of the stages of a detector.
_STAGE_HEADS = tuple(
    f"roi_heads.{layer}.weight"
    for stage in range(3)
    for layer in (
        f"box_predictor.{stage}.cls_score",
        f"box_predictor.{stage}.bbox_pred",
        f"mask_head.{stage}.predictor",
    )
)
_PER_CLASS = frozenset(
    {
        *(name.replace(".weight", kind) for name in (*_CLASS_HEADS, *_STAGE_HEADS) for kind in (".weight", ".bias")),
        "criterion.empty_weight",
    }
)
_BACKBONE = "backbone."
# The backbone under a feature pyramid.
_BOTTOM_UP = "backbone.bottom_up."
# A DiNAT classifier ends in one norm for the pooled features and the classes. A backbone has a norm for each output.
_CLASSIFIER_ONLY = frozenset({"norm.weight", "norm.bias", "head.weight", "head.bias"})
_OUTPUT_NORMS = tuple(f"{prefix}norm{level}." for prefix in (_BACKBONE, _BOTTOM_UP) for level in range(4))
# Norms of the last output of a backbone: isotropic, or of four levels or fewer.
_CLASSIFIER_NORMS = (f"{_BACKBONE}norm.", *(f"{_BACKBONE}norm{level}." for level in (3, 2, 1, 0)))
_ROWS_SHOWN = 30


@dataclass(frozen=True)
class LoadReport:
    """Account of every name of a file and of a model.

    Attributes:
        loaded: Names that the model takes from the file, including resized ones.
        resized: Shapes in the file and in the model, by name, of the loaded weights that were resized.
        reinitialised: Shapes in the file and in the model, by name, of the class head if the file has other classes;
            the model keeps its initial values.
        dropped: Shapes, by name, of weights in the file that such a model never takes: a classifier's head, and what
            follows from the config.
        initial: Shapes, by name, of weights that such a file never has and that keep their initial values.
        differing: Shapes in the file and in the model, by name, that are neither equal nor resizable.
        missing: Shapes, by name, of weights of the model that the file should have.
        unexpected: Shapes, by name, of weights in the file that the model does not have.
    """

    loaded: tuple[str, ...]
    resized: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    reinitialised: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    dropped: dict[str, Shape] = field(default_factory=dict)
    initial: dict[str, Shape] = field(default_factory=dict)
    differing: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether nothing differs, is missing or is unexpected."""
        return not (self.differing or self.missing or self.unexpected)

    @property
    def classes(self) -> tuple[int, int] | None:
        """Numbers of classes in the file and in the model; None if they are equal or unknown."""
        head = self._class_head
        if head is None:
            return None
        (in_file, *_), (in_model, *_) = {**self.differing, **self.reinitialised}[head]
        return in_file - _CLASS_HEADS[head][0], in_model - _CLASS_HEADS[head][0]

    @property
    def classes_key(self) -> str:
        """Config key of the model's number of classes; empty if `classes` is None."""
        return "" if self._class_head is None else _CLASS_HEADS[self._class_head][1]

    @property
    def _class_head(self) -> str | None:
        """The weight of the class head if file and model have another number of classes."""
        shapes = {**self.differing, **self.reinitialised}
        return next((name for name, (a, b) in shapes.items() if name in _CLASS_HEADS and a[0] != b[0]), None)

    def summary(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.loaded)} names fit, {len(self.differing)} have another shape, {len(self.missing)} are not in "
            f"the file, {len(self.unexpected)} are not in the model"
        )

    def backbone_summary(self) -> str:
        """One line about the file of a backbone: what is loaded, dropped, and left at its initial values."""
        norms = [name for name in self.initial if name.startswith(_OUTPUT_NORMS)]
        parts = [f"{len(self.loaded)} weights are loaded"]
        if self.resized:
            parts.append(f"{len(self.resized)} of them resized")
        if self.dropped:
            parts.append(f"dropped are {', '.join(self.dropped)}")
        if norms:
            levels = sorted({name.split(".")[-2] for name in norms})
            parts.append(f"{', '.join(levels)} start at 1 and 0 ({len(norms)} weights)")
        count = len(self.initial) - len(norms)
        return f"{', '.join(parts)}; the rest of the model starts from random weights ({count})"

    def mismatches(self) -> str:
        """Table of the names that do not fit; of many, only the first rows of each kind."""
        kinds = [
            [(name, _text(in_file), _text(in_model)) for name, (in_file, in_model) in self.differing.items()],
            [(name, "missing", _text(shape)) for name, shape in self.missing.items()],
            [(name, _text(shape), "unknown") for name, shape in self.unexpected.items()],
        ]
        return _table(kinds, ("name", "file", "model"))

    def text(self) -> str:
        """Table of all names; weights that are simply loaded or kept are summarized per part of the model."""
        kinds = [
            [("loaded", name, count, count) for name, count in _parts(self.loaded)],
            [("resized", name, _text(a), _text(b)) for name, (a, b) in self.resized.items()],
            [("re-initialised", name, _text(a), _text(b)) for name, (a, b) in self.reinitialised.items()],
            [("dropped", name, _text(shape), "") for name, shape in self.dropped.items()],
            [("missing", name, "", f"{count}, as initialised") for name, count in _parts(self.initial)],
            [("not loaded", name, _text(a), _text(b)) for name, (a, b) in self.differing.items()],
            [("missing", name, "", _text(shape)) for name, shape in self.missing.items()],
            [("unexpected", name, _text(shape), "") for name, shape in self.unexpected.items()],
        ]
        return _table(kinds, ("", "name", "file", "model"))


def holds_backbone_only(state: Mapping[str, torch.Tensor], model_state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a file holds weights of the model's backbone and no other weights of the model."""
    state = _between_classifiers(state, model_state)
    prefix = _backbone_of(model_state)
    known = [name for name in _with_names_of(model_state, _under_backbone(state, prefix)) if name in model_state]
    return bool(known) and all(name.startswith(prefix) for name in known)


def build_empty_state(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """State dict of a config's model on the meta device: names, shapes and dtypes without values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).state_dict()


def is_mmcv_average(name: str) -> bool:
    """Whether a name is that of a moving average in a file of OpenMMLab's libraries, which predict without it.

    Their hook keeps the average of `a.b.weight` as `ema_a_b_weight`, and swaps both before it saves.
    """
    return name.startswith("ema_") and "." not in name


def _follows_from_config(name: str) -> bool:
    """Whether a file may lack a weight, or have one more, without any effect on the model's output."""
    return name in _FROM_CONFIG or name.rsplit(".", 1)[-1] in _COUNTERS or is_mmcv_average(name)


def compare(
    state: StateDict, model_state: Mapping[str, torch.Tensor], *, other_classes: bool = False
) -> tuple[StateDict, LoadReport]:
    """Compare a file with a model, name by name and shape by shape.

    Names of modules that wrap others, on either side, make no difference, and a published classifier has the names of
    an `ImageClassifier`.

    Args:
        state: State dict of the file.
        model_state: State dict of the model.
        other_classes: Whether the file may have another number of classes; its class head is then not taken.

    Returns:
        The weights that the model takes, and the account of all names.
    """
    state = _with_names_of(model_state, _between_classifiers(state, model_state))
    in_file, in_model = _shapes(state), _shapes(model_state)
    common = [name for name in in_model if name in in_file]
    different = {name: (in_file[name], in_model[name]) for name in common if in_file[name] != in_model[name]}
    reinitialised = {
        name: (a, b)
        for name, (a, b) in different.items()
        if other_classes and name in _PER_CLASS and len(a) == len(b) > 0 and a[1:] == b[1:]
    }
    only_in_file = {name: shape for name, shape in in_file.items() if name not in in_model}
    only_in_model = {name: shape for name, shape in in_model.items() if name not in in_file}
    report = LoadReport(
        loaded=tuple(name for name in common if name not in different),
        reinitialised=reinitialised,
        dropped={name: shape for name, shape in only_in_file.items() if _follows_from_config(name)},
        initial={name: shape for name, shape in only_in_model.items() if _follows_from_config(name)},
        differing={name: pair for name, pair in different.items() if name not in reinitialised},
        missing={name: shape for name, shape in only_in_model.items() if not _follows_from_config(name)},
        unexpected={name: shape for name, shape in only_in_file.items() if not _follows_from_config(name)},
    )
    return {name: state[name] for name in report.loaded}, report


def compare_backbone(state: StateDict, model_state: Mapping[str, torch.Tensor]) -> tuple[StateDict, LoadReport]:
    """Compare the file of a backbone, such as an ImageNet classifier, with a model that has this backbone.

    Names in the file are those of the model, or all without `backbone.`, as in DiNAT's classification checkpoints; or
    those of an `ImageClassifier`. The head of a classifier and the norm before it are dropped. Tables of relative
    position bias of another kernel size are resized.

    Args:
        state: State dict of the file.
        model_state: State dict of the whole model. All weights outside the backbone keep their values, and so do the
            norms of the backbone's outputs if the file has none.

    Returns:
        The weights that the model takes, under the model's names, and the account of all names.
    """
    state, prefix = _between_classifiers(state, model_state), _backbone_of(model_state)
    dropped = {
        name: value
        for name, value in state.items()
        # The only norm of an isotropic backbone is that of its output.
        if name in _CLASSIFIER_ONLY and name not in model_state and prefix + name not in model_state
    }
    named = _under_backbone({name: value for name, value in state.items() if name not in dropped}, prefix)
    named = _with_names_of(model_state, named)
    resized: dict[str, tuple[Shape, Shape]] = {}
    for name, value in named.items():
        if name in model_state and _resizable(name, value, model_state[name]):
            named[name] = resize_bias_table(value, model_state[name].shape[-1])
            resized[name] = (tuple(value.shape), tuple(model_state[name].shape))
    initial = {
        name: value
        for name, value in model_state.items()
        if name not in named and (not name.startswith(prefix) or name.startswith(_OUTPUT_NORMS))
    }
    taken, report = compare(named, {name: value for name, value in model_state.items() if name not in initial})
    dropped_shapes = _shapes(dropped) | report.dropped
    return taken, replace(report, resized=resized, dropped=dropped_shapes, initial=_shapes(initial) | report.initial)


def _between_classifiers(state: Mapping[str, torch.Tensor], model_state: Mapping[str, torch.Tensor]) -> StateDict:
    """Rename the weights of a classifier if file and model have different forms of its names; others stay as they are.

    A published file has `norm` and `head` beside the parts of the backbone. In an `ImageClassifier` this norm is that
    of the backbone's output, as in every model of Detectron2. A model that is no classifier takes the published form,
    because it drops a classifier's norm.
    """
    if "head.weight" not in state:
        return dict(state)
    bare = not any(name.startswith(_BACKBONE) for name in state)
    if bare and "head.weight" in model_state:
        norm = next((name for name in _CLASSIFIER_NORMS if f"{name}weight" in model_state), _CLASSIFIER_NORMS[0])
        renamed = {f"norm.{kind}": f"{norm}{kind}" for kind in ("weight", "bias")}
        renamed |= {f"head.{kind}": f"head.{kind}" for kind in ("weight", "bias")}
        return {renamed.get(name, _BACKBONE + name): value for name, value in state.items()}
    if not bare and "head.weight" not in model_state:
        norm = next((name for name in _CLASSIFIER_NORMS if f"{name}weight" in state), _CLASSIFIER_NORMS[0])
        renamed = {f"{norm}{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
        return {renamed.get(name, name.removeprefix(_BACKBONE)): value for name, value in state.items()}
    return dict(state)


def resize_bias_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Resize tables of relative position bias to another kernel size.

    The interpolation is bicubic and aligns the edges of the cells instead of the centres of the corner cells. The
    published `dinat_large_in22k_224_11x11interp` was made from the 7x7 checkpoint in this way (its authors refer to
    Swin's rule for other window sizes, which is PyTorch's default).

    Args:
        table: Tables, [heads, 2k - 1, 2k - 1].
        size: New value of 2k - 1.

    Returns:
        Resized tables, [heads, size, size], in the dtype of `table`.
    """
    resized = F.interpolate(table.float().unsqueeze(0), size=(size, size), mode="bicubic", align_corners=False)
    return resized.squeeze(0).to(table.dtype)


def _resizable(name: str, value: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether both are bias tables of the same number of heads and of different kernel sizes."""
    if not name.endswith(".attn.rpb") or value.shape == target.shape or value.ndim != 3 or target.ndim != 3:
        return False
    odd_squares = all(table.shape[1] == table.shape[2] and table.shape[1] % 2 for table in (value, target))
    return odd_squares and value.shape[0] == target.shape[0]


def _backbone_of(model_state: Mapping[str, torch.Tensor]) -> str:
    """Prefix of the weights of a model's backbone, without the feature pyramid of a detector."""
    return _BOTTOM_UP if any(name.startswith(_BOTTOM_UP) for name in model_state) else _BACKBONE


def _under_backbone(state: Mapping[str, torch.Tensor], prefix: str) -> StateDict:
    """Give all names a prefix, unless some have it already; `backbone.` becomes this prefix."""
    if any(name.startswith(prefix) for name in state):
        return dict(state)
    return {prefix + name.removeprefix(_BACKBONE): value for name, value in state.items()}


def _with_names_of(model_state: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> StateDict:
    """Rename the weights whose names differ from a model's only by modules that wrap others."""
    unnamed = {_core(name): name for name in model_state if name not in state}
    renamed = {name: name if name in model_state else unnamed.get(_core(name), name) for name in state}
    if len(set(renamed.values())) < len(renamed):
        return dict(state)
    return {renamed[name]: value for name, value in state.items()}


def _core(name: str) -> str:
    *modules, last = name.split(".")
    return ".".join([*(module for module in modules if module not in WRAPPERS | OUTER_WRAPPERS), last])


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _parts(names: Iterable[str]) -> list[tuple[str, str]]:
    """Modules of the first two levels, and the number of names in each."""
    counts: dict[str, int] = {}
    for name in names:
        part = ".".join(name.split(".")[:-1][:2]) or name
        counts[part] = counts.get(part, 0) + 1
    return [(part, f"{count} weight{'s' if count > 1 else ''}") for part, count in counts.items()]


def _table(kinds: Iterable[Sequence[tuple[str, ...]]], headers: tuple[str, ...]) -> str:
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        rows += kind[:_ROWS_SHOWN]
        if len(kind) > _ROWS_SHOWN:
            more = f"... and {len(kind) - _ROWS_SHOWN} more"
            rows.append(tuple(more if header == "name" else "" for header in headers))
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
