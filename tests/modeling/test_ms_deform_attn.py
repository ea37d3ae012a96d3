"""Deformable attention agrees with bilinear sampling point by point, and its backends agree with each other."""

import math
import os
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model

from mask2former import ConfigError
from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttn
from mask2former.modeling.pixel_decoder.ops import ms_deform_attn, triton_backend

from ..conftest import ROOT
from .deformable import CASES, Case, check, draw, run

PLAIN = ("reference", "gather")
SHAPES = [(3, 4), (5, 7)]


def bilinear(level: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Value of a map [H, W, C] at (x, y) in units of its sides, cell centres at half integers, zero outside."""
    height, width, channels = level.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = level.new_zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + level[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@pytest.mark.parametrize("backend", PLAIN)
def test_equals_the_definition(backend):
    batch, heads, channels, queries, points = 2, 3, 4, 5, 2
    total = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, total, heads, channels, dtype=torch.float64)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=torch.float64)
    got = ms_deform_attn(value, SHAPES, locations, weights, backend)
    levels = [
        part.view(batch, height, width, heads, channels)
        for part, (height, width) in zip(value.split([h * w for h, w in SHAPES], dim=1), SHAPES, strict=True)
    ]
    expected = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for n in range(heads):
                for level, maps in enumerate(levels):
                    for p in range(points):
                        x, y = locations[b, q, n, level, p].tolist()
                        expected[b, q, n] += weights[b, q, n, level, p] * bilinear(maps[b, :, :, n], x, y)
    torch.testing.assert_close(got, expected.flatten(2))


@pytest.mark.parametrize("backend", PLAIN)
def test_gradcheck(backend):
    value = torch.randn(1, sum(h * w for h, w in SHAPES), 2, 3, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(1, 3, 2, 2, 2, 2, dtype=torch.float64) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    inputs = (value, locations, weights)
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn(x[0], SHAPES, *x[1:], backend), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gather_agrees_with_the_reference(name, dtype):
    check(CASES[name], "gather", dtype)


def test_gather_sums_in_chunks_and_in_the_same_order_every_time(monkeypatch):
    monkeypatch.setattr("mask2former.modeling.pixel_decoder.ops.gather.SAMPLES_AT_ONCE", 32)
    case = Case(batch=2, queries=20)
    check(case, "gather", torch.float32)
    tensors = draw(case, torch.float32)
    first, second = run(case, tensors, "gather"), run(case, tensors, "gather")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_a_sample_that_is_not_a_number_stays_with_its_query():
    value, locations, weights, _ = draw(CASES["around"], torch.float32)
    expected = ms_deform_attn(value, CASES["around"].shapes, locations, weights, "gather")
    locations[0, 2, 1, 0, 0, 0] = math.nan
    got = ms_deform_attn(value, CASES["around"].shapes, locations, weights, "gather")
    torch.testing.assert_close(got[:, [0, 1, 3, 4]], expected[:, [0, 1, 3, 4]])
    assert got[0, 2].isnan().any()


def test_operators_are_well_formed():
    value, locations, weights, _ = draw(Case(), torch.float32)
    sides = [side for shape in Case().shapes for side in shape]
    inputs = (value.requires_grad_(), sides, locations, weights)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mask2former.ms_deform_attn_gather.default, inputs, test_utils=tests)


class Function(torch.nn.Module):
    def forward(self, value, locations, weights):
        return ms_deform_attn(value, Case().shapes, locations, weights)


def test_compiles_in_one_graph():
    tensors = [x.requires_grad_() for x in draw(Case(), torch.float32)[:3]]
    compiled = torch.compile(Function(), fullgraph=True, backend="aot_eager")
    expected, got = Function()(*tensors), compiled(*tensors)
    assert torch.equal(got, expected)
    gradients = (torch.autograd.grad(output.sum(), tensors) for output in (expected, got))
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@pytest.mark.parametrize("strict", [True, False])
def test_auto_exports_what_other_programs_know(strict):
    tensors = tuple(draw(Case(), torch.float32)[:3])
    exported = torch.export.export(Function(), tensors, strict=strict)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert "aten.grid_sampler.default" in operators
    assert not any(name.startswith("mask2former") for name in operators)
    torch.testing.assert_close(exported.module()(*tensors), Function()(*tensors))


def test_config_chooses_the_backend(train_cfg):
    train_cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND = "reference"
    layers = build_model(train_cfg).sem_seg_head.pixel_decoder.transformer.encoder.layers
    assert {layer.self_attn.backend for layer in layers} == {"reference"}
    train_cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND = "fast"
    with pytest.raises(ConfigError, match="unknown deformable attention backend 'fast'; expected one of auto, gather"):
        build_model(train_cfg)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, p, w: (v[:, 1:], p, w), "value has 48 positions, the levels .* have 49"),
        (lambda v, p, w: (v, p[:, :, :1], w), r"sampling_locations must be .*\(1, 5, 2, 3, 2, 2\), got \(1, 5, 1"),
        (lambda v, p, w: (v, p, w[..., :1]), r"attention_weights must be \(1, 5, 2, 3, 2\), got"),
        (lambda v, p, w: (v[0], p, w), "expected value"),
        (lambda v, p, w: (v.int(), p, w), "floating-point type, got torch.int32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    value, locations, weights = change(*draw(Case(), torch.float32)[:3])
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(value, Case().shapes, locations, weights)


def test_backends_refuse_what_they_cannot_serve(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = draw(Case(), torch.float32)
    with pytest.raises(ConfigError, match=r"'triton' can't serve this call: (.*on cpu|Triton is not installed)"):
        run(Case(), tensors, "triton")
    with pytest.raises(ConfigError, match="'gather' can't serve this call: it is for the CPU, and value is on meta"):
        run(Case(), [x.to("meta") for x in tensors], "gather")
    assert run(Case(), [x.to("meta") for x in tensors], "auto")[0].is_meta
    monkeypatch.setattr(triton_backend.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="Triton is not installed"):
        run(Case(), tensors, "triton")


@pytest.mark.slow
def test_triton_kernels_agree_with_the_reference_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, "-W", "ignore", "-m", "tests.modeling.deformable", "triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("agrees") > len(CASES)


@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_triton_kernels_compile_without_a_gpu(name, tmp_path, monkeypatch):
    pytest.importorskip("triton", minversion="3.3", reason="Triton is not installed, or has another interface")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from mask2former.modeling.pixel_decoder.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, name)
    sizes = {"HEADS": 8, "CHANNELS": 32, "LEVELS": 3, "POINTS": 4, "BLOCK_ROWS": 32, "BLOCK_CHANNELS": 32}
    constants = sizes | {"ADD_TO_VALUE": True}
    types = {"levels": "*i32", "rows": "i32", "queries": "i32", "positions": "i32"}
    types |= dict.fromkeys(("of_value", "of_locations", "of_weights"), "*fp32") | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "*bf16") for argument in kernel.arg_names}
    values = {(i,): constants[argument] for i, argument in enumerate(kernel.arg_names) if argument in constants}
    compiled = compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_triton_on_a_gpu(name, dtype, deterministic):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = CASES[name]
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    try:
        got = run(case, draw(case, dtype, "cuda"), "auto")
        again = run(case, draw(case, dtype, "cuda"), "triton")
    finally:
        torch.use_deterministic_algorithms(False)
    if deterministic:
        assert all(torch.equal(x, y) for x, y in zip(got, again, strict=True))
    check(case, "triton", dtype, "cuda")


def test_offsets_start_on_a_ring():
    bias = MSDeformAttn(32, num_levels=2, num_heads=8, num_points=4).sampling_offsets.bias.detach().view(8, 2, 4, 2)
    # One direction per head, 45 degrees apart; point number i is i cells away in the larger coordinate.
    assert torch.allclose(bias.abs().amax(-1), torch.arange(1.0, 5.0).expand(8, 2, 4))
    angles = torch.atan2(bias[..., 1], bias[..., 0])[:, 0, 0] % (2 * math.pi)
    torch.testing.assert_close(angles, torch.arange(8) * math.pi / 4, atol=1e-5, rtol=0)
