"""The shrunk detectors that the published code was run with."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from mask2former import setup_cfg
from mask2former.checkpoint import from_openmmlab
from mask2former.data.resizing import build_test_resize

from ...conftest import ROOT

PARITY = ROOT / "tests" / "parity"


@pytest.fixture(scope="session")
def recipes() -> dict[str, Any]:
    """The models of the fixture."""
    return json.loads((PARITY / "detection.json").read_text())["models"]


@pytest.fixture(scope="session")
def published() -> dict[str, np.ndarray]:
    """Numbers that the published code gave."""
    return dict(np.load(PARITY / "detection.npz"))


def shrunk_config(name: str, recipe: dict[str, Any], folder) -> CfgNode:
    """Config of a model of the fixture."""
    heads = "cascade" if "cascade" in name else "maskrcnn"
    path = folder / f"{name}.yaml"
    path.write_text(f"_BASE_: ['{ROOT}/configs/_base_/{heads}.yaml', '{ROOT}/configs/_base_/dinat_mini.yaml']")
    backbone, test = recipe["backbone"], recipe["test_cfg"]
    longest, shortest = recipe["img_scale"]
    opts: dict[str, Any] = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "D2DiNATs" if backbone["type"] == "DiNAT_s" else "D2DiNAT",
        **{
            f"MODEL.DINAT.{key.upper()}": backbone[key]
            for key in ("embed_dim", "depths", "num_heads", "kernel_size", "dilations", "mlp_ratio")
        },
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "TEST.DETECTIONS_PER_IMAGE": test["rcnn"]["max_per_img"],
        "INPUT.MIN_SIZE_TEST": shortest,
        "INPUT.MAX_SIZE_TEST": longest,
    }
    return setup_cfg(path, [str(part) for pair in opts.items() for part in pair])


@dataclass
class Case:
    """One model of the fixture with its weights, its image, and what the published code computed."""

    name: str
    recipe: dict[str, Any]
    model: Any
    cfg: CfgNode
    image: torch.Tensor
    numbers: dict[str, np.ndarray]

    def expected(self, name: str) -> torch.Tensor:
        """A number of the published code."""
        return torch.from_numpy(self.numbers[f"{self.name}.{name}"])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return tuple(self.recipe["image"][1:])

    @cached_property
    def inputs(self) -> list[dict[str, Any]]:
        """The input of the model."""
        resized = T.AugInput(self.image.permute(1, 2, 0).numpy())
        build_test_resize(self.cfg)(resized)
        height, width = self.size
        image = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return [{"image": image, "height": height, "width": width}]

    @cached_property
    def features(self) -> dict[str, torch.Tensor]:
        """The maps of the pyramid."""
        with torch.no_grad():
            return self.model.backbone(self.model.preprocess_image(self.inputs).tensor)


def values_of(recipe: dict[str, Any], deterministic) -> dict[str, torch.Tensor]:
    """The weights of a model under the published names."""
    state = {}
    for name, shape in recipe["state"].items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
            continue
        value = torch.from_numpy(deterministic.weight(name, shape))
        for kind, number in recipe["overrides"].get(name, {}).items():
            value = value * number if kind == "times" else torch.tensor(number, dtype=torch.float32)
        state[name] = value
    return state


@pytest.fixture(scope="session", params=["mask_rcnn", "cascade_mask_rcnn", "mask_rcnn_dinat_s"])
def case(request, recipes, published, deterministic, tmp_path_factory) -> Case:
    """A model of the fixture."""
    recipe = recipes[request.param]
    cfg = shrunk_config(request.param, recipe, tmp_path_factory.mktemp("config"))
    model = build_model(cfg).eval()
    model.load_state_dict(from_openmmlab(values_of(recipe, deterministic)), strict=True)
    image = torch.from_numpy(deterministic.image(*recipe["image"]))
    return Case(request.param, recipe, model, cfg, image, published)
