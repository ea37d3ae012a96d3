"""The backend for export computes the same numbers, also in a graph with a symbolic map size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from dinat_backbone import NeighborhoodAttention2D, neighborhood_attention_2d


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kernel_size=st.sampled_from([1, 3, 5, 7, 11, 13]),
    dilation=st.integers(1, 5),
    extra=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    with_bias=st.booleans(),
)
def test_equals_reference_for_any_size(kernel_size, dilation, extra, with_bias):
    height, width = (kernel_size * dilation + more for more in extra)
    query, key, value = (torch.randn(2, height, width, 2, 3, dtype=torch.float64) for _ in range(3))
    rpb = torch.randn(2, 2 * kernel_size - 1, 2 * kernel_size - 1) if with_bias else None
    expected, got = (
        neighborhood_attention_2d(query, key, value, rpb, kernel_size, dilation, backend=backend)
        for backend in ("reference", "exportable")
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def exported():
    """A module, and its graph for maps of any size, traced with a map that needs no padding."""
    module = NeighborhoodAttention2D(8, 2, 3, 2, backend="exportable").eval().requires_grad_(False)
    torch.nn.init.normal_(module.rpb)
    torch.nn.init.normal_(module.qkv.bias)
    sides = {0: Dim("batch", min=1, max=9), 1: Dim("height", min=2, max=99), 2: Dim("width", min=2, max=99)}
    program = torch.export.export(
        module,
        (torch.rand(2, 20, 24, 8),),
        dynamic_shapes={"x": sides},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    expected = NeighborhoodAttention2D(8, 2, 3, 2, backend="reference").eval()
    expected.load_state_dict(module.state_dict())
    return expected, program.module()


@pytest.mark.parametrize("shape", [(2, 20, 24), (1, 41, 8), (3, 7, 30), (1, 2, 19), (1, 3, 3), (2, 12, 11)])
def test_graph_of_unknown_size_pads_and_tiles_any_map(exported, shape):
    module, program = exported
    x = torch.randn(*shape, 8)
    torch.testing.assert_close(program(x), module(x), rtol=0, atol=1e-5)


def test_graph_needs_no_operator_of_ours():
    module = NeighborhoodAttention2D(8, 2, 3, backend="exportable").eval()
    program = torch.export.export(module, (torch.rand(1, 9, 9, 8),))
    operators = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {"aten", "wrap_with_autocast", "<built-in function getitem>"}
