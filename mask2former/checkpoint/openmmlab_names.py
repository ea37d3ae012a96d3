"""Names of weights in the published files of OpenMMLab's libraries, and in our models.

The files hold `{"meta": ..., "state_dict": ...}`. Their backbones have our names, so that only modules of heads differ.
"""

from collections.abc import Iterable, Mapping

from dinat_common.weights import StateDict

_LEVELS = range(4)
_CONVOLUTIONS = range(4)
_STAGES = range(3)
# Names that only files of detectors have.
_DETECTOR = ("neck.", "rpn_head.", "roi_head.")
# A name that only a cascade of ours has.
_SECOND_STAGE = "roi_heads.box_predictor.1."


def from_openmmlab(state: StateDict) -> StateDict:
    """Give the weights of a published file the names of our models; others keep their names."""
    if not any(name.startswith(_DETECTOR) for name in state):
        return dict(state)
    cascade = any(name.startswith("roi_head.bbox_head.0.") for name in state)
    return _renamed(state, _detector_modules(cascade))


def to_openmmlab(state: StateDict) -> StateDict:
    """Give the weights of one of our models the names of a published file; see `from_openmmlab`."""
    if not any(name.startswith("roi_heads.") for name in state):
        return dict(state)
    cascade = any(name.startswith(_SECOND_STAGE) for name in state)
    return _renamed(state, {ours: theirs for theirs, ours in _detector_modules(cascade).items()})


def _renamed(state: StateDict, modules: Mapping[str, str]) -> StateDict:
    return {_renamed_one(name, modules): value for name, value in state.items()}


def _renamed_one(name: str, modules: Mapping[str, str]) -> str:
    parts = name.split(".")
    # The longest module counts: `backbone.fpn_lateral2` is none of the backbone's own.
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return ".".join([modules[module], *parts[length:]])
    return name


def _detector_modules(cascade: bool) -> dict[str, str]:
    """Modules of mmdet's detectors, and ours."""
    modules = {
        "backbone": "backbone.bottom_up",
        "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
        "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
        "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    }
    for level in _LEVELS:
        modules[f"neck.lateral_convs.{level}.conv"] = f"backbone.fpn_lateral{level + 2}"
        modules[f"neck.fpn_convs.{level}.conv"] = f"backbone.fpn_output{level + 2}"
    for stage in _STAGES if cascade else (0,):
        place = f".{stage}" if cascade else ""
        modules |= dict(_stage_modules(f"roi_head.bbox_head{place}", f"roi_head.mask_head{place}", stage))
    return modules


def _stage_modules(box: str, mask: str, stage: int) -> Iterable[tuple[str, str]]:
    yield f"{box}.fc_cls", f"roi_heads.box_predictor.{stage}.cls_score"
    yield f"{box}.fc_reg", f"roi_heads.box_predictor.{stage}.bbox_pred"
    for index in range(2):
        yield f"{box}.shared_fcs.{index}", f"roi_heads.box_head.{stage}.fc{index + 1}"
    for index in _CONVOLUTIONS:
        yield f"{box}.shared_convs.{index}.conv", f"roi_heads.box_head.{stage}.conv{index + 1}"
        yield f"{box}.shared_convs.{index}.bn", f"roi_heads.box_head.{stage}.conv{index + 1}.norm"
        yield f"{mask}.convs.{index}.conv", f"roi_heads.mask_head.{stage}.mask_fcn{index + 1}"
    yield f"{mask}.upsample", f"roi_heads.mask_head.{stage}.deconv"
    yield f"{mask}.conv_logits", f"roi_heads.mask_head.{stage}.predictor"
