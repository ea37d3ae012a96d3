"""Names of weights in the published UPerNets and detectors, which OpenMMLab's libraries wrote, and their names here.

A table per kind of model serves both directions. A row has the name in a file and the name in a model; `{leaf}` stands
for the last part of a name, other parts in braces for anything. The first row that fits a name counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from dinat_common.weights import CheckpointError, StateDict

Row = tuple[str, str]


@dataclass(frozen=True)
class NameTable:
    """The names of one kind of model.

    Attributes:
        kind: Name of the kind, for messages.
        published: Beginning of a name that only files of this kind have.
        own: Beginning of a name that only models of this kind have here.
        rows: Pairs of a published name and the name here.
    """

    kind: str
    published: str
    own: str
    rows: tuple[Row, ...]

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(published), _template(own)) for published, own in self.rows]

    @cached_property
    def _reverse_patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(own), _template(published)) for published, own in self.rows]

    def rename(self, name: str, *, to_published: bool = False) -> str | None:
        """Return the other name of a weight; None if no row fits."""
        for pattern, template in self._reverse_patterns if to_published else self._patterns:
            if found := pattern.fullmatch(name):
                return found.expand(template)
        return None


def _pattern(row: str) -> re.Pattern[str]:
    """Regular expression of one side of a row."""
    parts = re.split(r"\{(\w+)\}", row)
    texts = [re.escape(part) for part in parts]
    for index in range(1, len(parts), 2):
        texts[index] = f"(?P<{parts[index]}>{'[^.]+' if parts[index] == 'leaf' else '.+'})"
    return re.compile("".join(texts))


def _template(row: str) -> str:
    return re.sub(r"\{(\w+)\}", r"\\g<\1>", row)


def convolution_rows(published: str, own: str) -> tuple[Row, ...]:
    """Rows of a convolution with an optional norm: OpenMMLab has `conv` and `bn` inside a module, Detectron2 `norm`."""
    return ((f"{published}.bn.{{leaf}}", f"{own}.norm.{{leaf}}"), (f"{published}.conv.{{leaf}}", f"{own}.{{leaf}}"))


UPERNET = NameTable(
    kind="UPerNet",
    published="decode_head.",
    own="sem_seg_head.conv_seg.",
    rows=(
        ("backbone.{name}", "backbone.{name}"),
        ("decode_head.conv_seg.{leaf}", "sem_seg_head.conv_seg.{leaf}"),
        ("auxiliary_head.conv_seg.{leaf}", "auxiliary_head.conv_seg.{leaf}"),
        *convolution_rows("decode_head.{module}", "sem_seg_head.{module}"),
        *convolution_rows("auxiliary_head.{module}", "auxiliary_head.{module}"),
    ),
)


def _detector_rows(published: str, own: str) -> tuple[Row, ...]:
    """Rows of a detector; heads of a stage have its number after `published` and `own`, or none."""
    box, mask = f"roi_head.bbox_head{published}", f"roi_head.mask_head{published}"
    own_box, own_mask = f"roi_heads.box_head{own}", f"roi_heads.mask_head{own}"
    rows = [
        ("backbone.{name}", "backbone.bottom_up.{name}"),
        ("rpn_head.rpn_conv.{leaf}", "proposal_generator.rpn_head.conv.{leaf}"),
        ("rpn_head.rpn_cls.{leaf}", "proposal_generator.rpn_head.objectness_logits.{leaf}"),
        ("rpn_head.rpn_reg.{leaf}", "proposal_generator.rpn_head.anchor_deltas.{leaf}"),
        (f"{box}.fc_cls.{{leaf}}", f"roi_heads.box_predictor{own}.cls_score.{{leaf}}"),
        (f"{box}.fc_reg.{{leaf}}", f"roi_heads.box_predictor{own}.bbox_pred.{{leaf}}"),
        (f"{mask}.upsample.{{leaf}}", f"{own_mask}.deconv.{{leaf}}"),
        (f"{mask}.conv_logits.{{leaf}}", f"{own_mask}.predictor.{{leaf}}"),
    ]
    # Numbers begin at 0 there; here at 1, or with the level of the pyramid.
    for index in range(4):
        rows += convolution_rows(f"neck.lateral_convs.{index}", f"backbone.fpn_lateral{index + 2}")
        rows += convolution_rows(f"neck.fpn_convs.{index}", f"backbone.fpn_output{index + 2}")
        rows += convolution_rows(f"{box}.shared_convs.{index}", f"{own_box}.conv{index + 1}")
        rows += convolution_rows(f"{mask}.convs.{index}", f"{own_mask}.mask_fcn{index + 1}")
        rows.append((f"{box}.shared_fcs.{index}.{{leaf}}", f"{own_box}.fc{index + 1}.{{leaf}}"))
    return tuple(rows)


CASCADE = NameTable(
    kind="Cascade Mask R-CNN",
    published="roi_head.bbox_head.0.",
    own="roi_heads.box_predictor.1.",
    rows=_detector_rows(".{stage}", ".{stage}"),
)
MASK_RCNN = NameTable(
    kind="Mask R-CNN",
    published="roi_head.bbox_head.",
    own="roi_heads.box_predictor.0.",
    rows=_detector_rows("", ".0"),
)
# A cascade has the beginnings of both detectors.
TABLES: tuple[NameTable, ...] = (UPERNET, CASCADE, MASK_RCNN)


def published_table(names: Iterable[str]) -> NameTable | None:
    """Table of a file with these names; None if OpenMMLab's libraries did not write it."""
    names = list(names)
    return next((table for table in TABLES if any(name.startswith(table.published) for name in names)), None)


def own_table(names: Iterable[str]) -> NameTable | None:
    """Table of a model with these names here; None if OpenMMLab's libraries have no such model."""
    names = list(names)
    return next((table for table in TABLES if any(name.startswith(table.own) for name in names)), None)


def from_openmmlab(state: StateDict) -> StateDict:
    """Rename the weights of a published UPerNet or detector; other state dicts stay as they are.

    Raises:
        CheckpointError: Two weights would get the same name.
    """
    table = published_table(state)
    return dict(state) if table is None else _renamed(state, table, to_published=False)


def to_openmmlab(state: StateDict) -> StateDict:
    """Rename the weights of a UPerNet or a detector to their published names.

    Raises:
        CheckpointError: The weights are not those of such a model, or a name has no published counterpart.
    """
    table = own_table(state)
    if table is None:
        raise CheckpointError("OpenMMLab's names exist for UPerNets and detectors only; these weights are of neither")
    unknown = [name for name in state if table.rename(name, to_published=True) is None]
    if unknown:
        raise CheckpointError(f"{unknown[0]}: no weight of a {table.kind} in OpenMMLab's libraries")
    return _renamed(state, table, to_published=True)


def _renamed(state: StateDict, table: NameTable, *, to_published: bool) -> StateDict:
    renamed: StateDict = {}
    for name, value in state.items():
        other = table.rename(name, to_published=to_published) or name
        if other in renamed:
            raise CheckpointError(f"{name}: a second weight that is called {other} in a {table.kind}")
        renamed[other] = value
    return renamed
