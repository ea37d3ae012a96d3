"""Theoretical receptive fields are the support of gradients and grow as the papers say; measures of effective ones."""

import pytest
import torch

from dinat_backbone import create_classifier
from mask2former.analysis import (
    Network,
    area_above,
    effective_fields,
    side_around,
    swin_neighbors,
    theoretical_fields,
)
from mask2former.config import ConfigError

SMALL = {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 1, 2, 2], "kernel_size": 3}


def networks(name: str, **settings) -> tuple[Network, Network]:
    """A network with random values in float64, and the same without values."""
    with torch.device("meta"):
        empty = Network(create_classifier(name, **settings)).eval()
    network = Network(create_classifier(name, **settings)).eval().double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network, empty


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("nat_mini", {}, (64, 96)),
        ("dinat_mini", {"dilations": [[1, 4], [3], [1, 2], [1]]}, (96, 75)),
        # Maps of 14 x 9 and less positions are padded for a dilation of 7.
        ("dinat_mini", {"dilations": [[7, 1], [2], [5, 1], [2]]}, (56, 36)),
        ("dinat_s_tiny", {"dilations": [[1, 3], [2], [1, 2], [1]]}, (70, 65)),
        ("dinat_isotropic_small", {"depths": [2], "num_heads": [1], "dilations": [[1, 2]]}, (160, 100)),
        ("vitrpb_small", {"depths": [1], "num_heads": [1], "image_size": 64}, (64, 64)),
    ],
)
def test_theory_is_the_support_of_gradients(name, settings, size):
    given = {**SMALL, **settings}
    if name == "vitrpb_small":
        del given["kernel_size"]
    network, empty = networks(name, **given)
    fields = theoretical_fields(empty, size)
    effective = effective_fields(network, torch.randn(1, 3, *size, dtype=torch.float64))
    # The last attention of each level is the last layer before its output.
    last = {}
    for field in fields:
        if field.kernel_size or "attn" in field.layer:
            last[field.layer.partition(".blocks.")[0].partition(".")[2] if "blocks" in field.layer else ""] = field
    assert len(last) == len(effective)
    for field, gradient in zip(last.values(), effective, strict=True):
        expected = torch.zeros(size, dtype=torch.bool)
        expected[torch.tensor(field.rows)[:, None], torch.tensor(field.columns)] = True
        assert torch.equal(gradient > 0, expected)
        assert field.extent[0] >= len(field.rows)


def growth(dilations, rule=None) -> list[int]:
    """Positions that the centre of a large map of tokens sees after each block."""
    with torch.device("meta"):
        settings = {"depths": [len(dilations)], "num_heads": [1], "embed_dim": 8, "patch_size": 1}
        network = Network(create_classifier("dinat_isotropic_small", dilations=[dilations], kernel_size=7, **settings))
    fields = theoretical_fields(network, (401, 401), *([rule] if rule else []))
    return [len(field.rows) for field in fields[1:]]


def test_growth_is_that_of_the_paper():
    """Section 3.4: l (k - 1) + 1 for NA, up to k ** l for DiNA, and l k for shifted windows."""
    assert growth([1, 1, 1, 1]) == [7, 13, 19, 25]
    assert growth([1, 7, 49]) == [7, 49, 343]
    windows = growth([1, 1, 1, 1], swin_neighbors)
    assert windows == [7, 14, 21, 28]


def test_swin_windows_at_borders_and_on_small_maps():
    class Attention:
        kernel_size = 3

    assert swin_neighbors(Attention(), 0, 5)[:, 0].tolist() == [0, 0, 0, 3, 3]
    assert swin_neighbors(Attention(), 1, 5)[:, 0].tolist() == [-2, 1, 1, 1, 4]
    assert swin_neighbors(Attention(), 1, 3)[:, 0].tolist() == [0, 0, 0]


def test_measures_of_an_effective_field():
    field = torch.zeros(9, 9)
    field[4, 4], field[4, 6], field[0, 0] = 8.0, 1.0, 1.0
    assert area_above(field, 0.5) == pytest.approx(1 / 81)
    assert area_above(field, 0.1) == pytest.approx(3 / 81)
    assert [side_around(field, share) for share in (0.5, 0.9, 1.0)] == [1, 5, 9]


def test_other_backbones_are_refused():
    with pytest.raises(ConfigError, match="no backbone of neighborhood attention"):
        theoretical_fields(Network(torch.nn.Conv2d(3, 3, 1, device="meta")), (8, 8))
