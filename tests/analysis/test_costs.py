"""Parameters and multiply-adds: those of the papers for all 67 models, and those of fvcore."""

import json

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from dinat_backbone import create_classifier
from mask2former.analysis import Costs, Network, build_network, count_costs, printed
from mask2former.config import ConfigError, setup_cfg
from mask2former.model_zoo import MODELS

from ..conftest import ROOT

FACTS = json.loads((ROOT / "tests" / "published" / "family.json").read_text())
EXACT = {
    name: facts["exact_params"]
    for group in ("classification", "detection", "segmentation")
    for name, facts in FACTS[group].items()
}
# One model of each kind; the others take minutes together.
QUICK = (
    *("dinat_mini", "dinat_s_tiny", "dinat_isotropic_small", "vitrpb_small"),
    *("maskrcnn_dinat_mini", "cascadedmaskrcnn_dinat_s_tiny", "upernet_dinat_mini"),
)
ROWS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]


def costs_of(name: str) -> Costs:
    model = MODELS[name]
    if model.group == "classification":
        with torch.device("meta"):
            network = Network(create_classifier(name)).eval()
    else:
        network = build_network(setup_cfg(ROOT / model.config_file))
    return count_costs(network, model.flops_size)


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_the_printed_ones_or_the_table_says_why_not(name):
    model, costs = MODELS[name], costs_of(name)
    assert costs.parameters == EXACT.get(name, costs.parameters)
    if not model.flops:
        return
    found = printed(costs.parameters, model.parameters), printed(costs.multiply_adds, model.flops)
    assert (found == (model.parameters, model.flops)) == (not model.counts_doubt), found


def test_costs_of_a_table_add_up():
    costs = costs_of("dinat_mini")
    assert costs.parts[0].part == "tokenizer" and costs.parts[-1].part == "class head"
    assert sum(costs.operations.values()) == costs.multiply_adds
    content = costs.as_dict()
    assert content["parameters"] == sum(part["parameters"] for part in content["parts"]) == 19984174
    assert "neighborhood attention" in costs.table() and "19,984,174" in costs.table()


class EveryOperation(nn.Module):
    """All operations that fvcore counts, in a network without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2, 2))
        self.group_norm = nn.GroupNorm(2, 8)
        self.linear = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 8, bias=False))

    def forward(self, x):
        x = self.group_norm(self.convolutions(x))
        x = x + self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        up = nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), nn.functional.interpolate(x, scale_factor=2)
        grid = torch.zeros(1, 5, 5, 2, device=x.device)
        products = torch.einsum("bchw,bdhw->bcd", x, x), x.flatten(2) @ x.flatten(2).transpose(1, 2)
        return (
            up,
            nn.functional.adaptive_avg_pool2d(x, 3),
            nn.functional.grid_sample(x, grid, align_corners=False),
            products,
        )


def test_operations_are_counted_as_by_fvcore():
    model = EveryOperation().eval()
    expected = FlopCountAnalysis(model, torch.zeros(1, 3, 16, 24)).unsupported_ops_warnings(False).total()
    # fvcore's count of an einsum is a floating-point number.
    assert count_costs(Network(model.to("meta")), (16, 24)).multiply_adds == pytest.approx(expected, rel=1e-5)


def test_padding_of_small_maps_costs():
    """Attention sees a map of at least kernel_size * dilation: so do its projections to query, key and value."""
    counts = {}
    for dilation in (1, 8):
        with torch.device("meta"):
            settings = {"depths": [1, 1, 1, 1], "dilations": [[dilation], [1], [1], [1]]}
            counts[dilation] = count_costs(Network(create_classifier("nat_mini", **settings)), (128, 128))
    # 32 x 32 positions of 64 channels, or 56 x 56 ones; 2 heads.
    added = (56**2 - 32**2) * (64 * 3 * 64 + 2 * 49 * 64 + 2 * 49)
    assert counts[8].multiply_adds - counts[1].multiply_adds == added


def test_other_architectures_are_refused():
    cfg = setup_cfg(ROOT / "configs" / "_base_" / "dinat_mini.yaml", ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"])
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3"]
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    with pytest.raises(ConfigError, match="META_ARCHITECTURE SemanticSegmentor can't be analysed, expected one of"):
        build_network(cfg)
