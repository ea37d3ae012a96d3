"""Which weights of a file a model takes: by exact name, and every name of either side accounted for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch.nn import functional as F

from mask2former.checkpoint.reading import StateDict

Shape = tuple[int, ...]

# Made from the config, so that a file may lack them or have them without any effect on what the model computes.
_FROM_CONFIG = frozenset({"criterion.empty_weight", "pixel_mean", "pixel_std"})
# What has a row per class, and one for "no object".
_CLASS_HEAD = "sem_seg_head.predictor.class_embed.weight"
_PER_CLASS = frozenset({_CLASS_HEAD, "sem_seg_head.predictor.class_embed.bias", "criterion.empty_weight"})
_BACKBONE = "backbone."
# What a DiNAT classifier has after its levels: one norm for the pooled features, and the classes. A backbone has a norm
# for each of its outputs instead.
_CLASSIFIER_ONLY = frozenset({"norm.weight", "norm.bias", "head.weight", "head.bias"})
_OUTPUT_NORMS = tuple(f"{_BACKBONE}norm{level}." for level in range(4))
_BIAS_TABLE = ".attn.rpb"
_ROWS_SHOWN = 30


@dataclass(frozen=True)
class LoadReport:
    """What became of every name of a file and of a model.

    Attributes:
        loaded: names that the model takes from the file, resized ones included.
        resized: of these, name -> shapes in the file and in the model.
        reinitialised: name -> shapes in the file and in the model, of the class head where the file has other classes:
            the model keeps what it was initialised with.
        dropped: names (and shapes) of the file that such a model never takes: a classifier's head, what the config
            says.
        initial: names (and shapes) that such a file never has, and that keep what the model was initialised with.
        differing: name -> shapes in the file and in the model, neither equal nor to be resized.
        missing: names (and shapes) of the model that the file should have.
        unexpected: names (and shapes) of the file that the model should have.
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
        """Whether everything is as it should be."""
        return not (self.differing or self.missing or self.unexpected)

    @property
    def classes(self) -> tuple[int, int] | None:
        """Numbers of classes in the file and in the model; None where they are equal or unknown."""
        shapes = {**self.differing, **self.reinitialised}.get(_CLASS_HEAD)
        return None if shapes is None else (shapes[0][0] - 1, shapes[1][0] - 1)

    def summary(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.loaded)} names fit, {len(self.differing)} have another shape, {len(self.missing)} are not in "
            f"the file, {len(self.unexpected)} are not in the model"
        )

    def mismatches(self) -> str:
        """What does not fit, a row per name; the first rows of each kind where there are many."""
        kinds = [
            [(name, _text(in_file), _text(in_model)) for name, (in_file, in_model) in self.differing.items()],
            [(name, "missing", _text(shape)) for name, shape in self.missing.items()],
            [(name, _text(shape), "unknown") for name, shape in self.unexpected.items()],
        ]
        return _table(kinds, ("name", "file", "model"))

    def text(self) -> str:
        """The whole account, a row per name; what is merely loaded or left as it was, a row per part of the model."""
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
    """Whether a file holds weights of the model's backbone and nothing else of the model."""
    of_model = {name: name.startswith(_BACKBONE) for name in model_state}
    named = _under_backbone(state)
    return any(of_model.get(name, False) for name in named) and not any(of_model.get(name) is False for name in named)


def build_empty_state(cfg: CfgNode) -> dict[str, torch.Tensor]:
    """The state dict of a config's model, with names, shapes and dtypes but no values; `cfg` stays as it is."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).state_dict()


def match(
    state: StateDict, model_state: Mapping[str, torch.Tensor], *, other_classes: bool = False
) -> tuple[StateDict, LoadReport]:
    """Compare a file with a model, name by name and shape by shape.

    Args:
        state: of the file.
        model_state: of the model.
        other_classes: the file may be of another number of classes: then the model does without its class head.

    Returns:
        What the model takes, and the account of all names.
    """
    in_file, in_model = _shapes(state), _shapes(model_state)
    common = [name for name in in_model if name in in_file]
    loaded = tuple(name for name in common if in_file[name] == in_model[name])
    differing = {n: (in_file[n], in_model[n]) for n in common if in_file[n] != in_model[n]}
    reinitialised = {n: pair for n, pair in differing.items() if other_classes and _differ_in_classes(n, *pair)}
    report = LoadReport(
        loaded=loaded,
        reinitialised=reinitialised,
        dropped={n: shape for n, shape in in_file.items() if n not in in_model and n in _FROM_CONFIG},
        initial={n: shape for n, shape in in_model.items() if n not in in_file and n in _FROM_CONFIG},
        differing={n: pair for n, pair in differing.items() if n not in reinitialised},
        missing={n: shape for n, shape in in_model.items() if n not in in_file and n not in _FROM_CONFIG},
        unexpected={n: shape for n, shape in in_file.items() if n not in in_model and n not in _FROM_CONFIG},
    )
    return {name: state[name] for name in loaded}, report


def match_backbone(state: StateDict, model_state: Mapping[str, torch.Tensor]) -> tuple[StateDict, LoadReport]:
    """Compare a file of a backbone, such as an ImageNet classifier, with a model that has this backbone.

    Names of the file are those of the model, or all without `backbone.`, as DiNAT's classification checkpoints have
    them. Of a classifier, the head and the norm before it are dropped. Tables of relative position bias of another
    kernel size are resized.

    Args:
        state: of the file.
        model_state: of the whole model; what is not the backbone's stays as it is, and so do the norms of the
            backbone's outputs where the file has none.

    Returns:
        What the model takes, under the model's names, and the account of all names.
    """
    dropped = {name: value for name, value in state.items() if name in _CLASSIFIER_ONLY and name not in model_state}
    named = _under_backbone({name: value for name, value in state.items() if name not in dropped})
    resized: dict[str, tuple[Shape, Shape]] = {}
    for name, value in named.items():
        if name in model_state and _resizable(name, value, model_state[name]):
            named[name] = resize_bias_table(value, model_state[name].shape[-1])
            resized[name] = (tuple(value.shape), tuple(model_state[name].shape))
    initial = {
        name: value
        for name, value in model_state.items()
        if name not in named and (not name.startswith(_BACKBONE) or name.startswith(_OUTPUT_NORMS))
    }
    taken, report = match(named, {name: value for name, value in model_state.items() if name not in initial})
    return taken, LoadReport(
        loaded=report.loaded,
        resized=resized,
        dropped=_shapes(dropped) | report.dropped,
        initial=_shapes(initial),
        differing=report.differing,
        missing=report.missing,
        unexpected=report.unexpected,
    )


def resize_bias_table(table: torch.Tensor, size: int) -> torch.Tensor:
    """Resize tables of relative position bias to another kernel size.

    Bicubic, the cells' edges aligned and not the centres of the corner cells: how the published
    `dinat_large_in22k_224_11x11interp` came from the 7x7 checkpoint (its authors name Swin's rule for other windows,
    which is PyTorch's default).

    Args:
        table: [heads, 2k - 1, 2k - 1].
        size: the new 2k - 1.

    Returns:
        [heads, size, size], in the dtype of `table`.
    """
    resized = F.interpolate(table.float().unsqueeze(0), size=(size, size), mode="bicubic", align_corners=False)
    return resized.squeeze(0).to(table.dtype)


def _differ_in_classes(name: str, in_file: Shape, in_model: Shape) -> bool:
    """Whether two shapes of the class head are equal but for the number of classes."""
    return name in _PER_CLASS and len(in_file) == len(in_model) > 0 and in_file[1:] == in_model[1:]


def _resizable(name: str, value: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether both are square tables of one number of heads, of different odd sides."""
    if not name.endswith(_BIAS_TABLE) or value.shape == target.shape or value.ndim != 3 or target.ndim != 3:
        return False
    odd_squares = all(table.shape[1] == table.shape[2] and table.shape[1] % 2 for table in (value, target))
    return odd_squares and value.shape[0] == target.shape[0]


def _under_backbone(state: Mapping[str, torch.Tensor]) -> StateDict:
    """The same weights with names that start with `backbone.`, where none of them does."""
    if any(name.startswith(_BACKBONE) for name in state):
        return dict(state)
    return {_BACKBONE + name: value for name, value in state.items()}


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def _parts(names: Iterable[str]) -> list[tuple[str, str]]:
    """The modules of the first two levels that have these names, with how many there are of each."""
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
            position = headers.index("name")
            more = f"... and {len(kind) - _ROWS_SHOWN} more"
            rows.append(tuple(more if column == position else "" for column in range(len(headers))))
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
