"""All Triton kernels compile for a GPU as a model launches them, within what its multiprocessors have."""

import os

import pytest
import torch

pytestmark = pytest.mark.slow
# Shared memory of a program on small devices. Spilled registers cost memory accesses, but do no harm to results: models
# have 32 channels a head, and float32 vectors of 128 need more registers than there are, whatever the tiles.
SHARED, SPILLED, SPILLED_BY_LONG_VECTORS = 99 * 1024, 256, 512


@pytest.fixture
def script(load_benchmark, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton", minversion="3.3", reason="Triton is not installed, or has another interface")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton makes no code for CUDA devices")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter is on")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return load_benchmark("triton_kernels")


def check(rows, names, spilled=SPILLED):
    assert {row["kernel"] for row in rows} == set(names)
    for row in rows:
        assert row["shared bytes"] <= SHARED, row
        assert row["spilled bytes"] <= spilled, row
        assert row["programs"] >= 1, row


ATTENTION = ("forward", "query_gradient", "key_gradient", "bias_gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("heads", "channels", "kernel_size", "dilation"),
    # Triton makes special code for numbers that are 1 or multiples of 16. Models have 32 channels a head.
    [(6, 32, 11, 1), (48, 32, 11, 2), (3, 32, 7, 4), (1, 32, 3, 1), (4, 128, 7, 1), (2, 20, 5, 3)],
)
def test_attention(script, dtype, heads, channels, kernel_size, dilation):
    compiler = script.Compiler(90)
    case = script.Case(
        "any", (0, 0), 0, 8 * kernel_size * dilation, 7 * kernel_size * dilation + 1, heads, kernel_size, dilation, 1
    )
    script.compile_attention(compiler, case, dtype, channels)
    limit = SPILLED_BY_LONG_VECTORS if channels > 64 else SPILLED
    check(script.measure(compiler, {}), ("expand", *ATTENTION), limit)


def test_large_maps_and_no_bias(script):
    """Maps of 2 ** 31 elements or more are addressed with 64 bits."""
    compiler = script.Compiler(90)
    case = script.Case("any", (0, 0), 0, 8192, 8192, 16, 7, 2, 1)
    script.compile_attention(compiler, case, torch.bfloat16, with_bias=False)
    check(script.measure(compiler, {}), ATTENTION[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_deformable_attention(script, dtype):
    compiler = script.Compiler(90)
    script.compile_deformable(compiler, (800, 1333), dtype)
    rows = script.measure(compiler, {})
    check(rows, ("forward", "backward"))
    assert len(rows) == 3


def test_too_much_shared_memory_is_an_error(script, monkeypatch):
    compiler = script.Compiler(90)
    script.compile_deformable(compiler, (64, 64), torch.bfloat16)
    monkeypatch.setitem(script.SHARED, 90, (100, 200))
    with pytest.raises(ValueError, match="backward_kernel needs 4096 bytes of shared memory, a program can have 100"):
        script.measure(compiler, {})


def test_a_run_saves_table_numbers_and_chart(script, tmp_path):
    arguments = [
        "--models",
        "mini",
        "--image",
        "64",
        "64",
        "--dtypes",
        "bfloat16",
        "--output",
        str(tmp_path / "a" / "a"),
    ]
    assert script.main(arguments) == 0
    assert {path.suffix for path in (tmp_path / "a").iterdir()} == {".json", ".md", ".png"}
