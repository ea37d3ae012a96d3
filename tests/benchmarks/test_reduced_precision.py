"""The benchmark of bfloat16 and int8 compares its programs and names libraries that are missing."""

import json
import sys

import pytest

from tests.tiny import TINY


@pytest.fixture
def run(load_benchmark, monkeypatch, tmp_path):
    script = load_benchmark("reduced_precision")

    def run(*options):
        output = ["--size", "64", "64", "--repeats", "1", "--clock", "wall", "--output", str(tmp_path / "a")]
        monkeypatch.setattr("torch.set_num_threads", lambda _: None)  # other tests keep theirs
        monkeypatch.setattr("sys.argv", ["reduced_precision.py", *options, *output, *TINY])
        script.main()
        return json.loads((tmp_path / "a.json").read_text())["rows"]

    return run


def test_programs_are_compared_with_float32_and_bfloat16(run):
    pytest.importorskip("torch.ao.quantization")
    rows = run("--programs", "float32", "bfloat16", "torch.ao", "--parts", "backbone", "all")
    assert [(row["program"], row["int8 layers"]) for row in rows] == [
        ("float32", ""),
        ("bfloat16", ""),
        ("torch.ao", "backbone"),
        ("torch.ao", "all"),
    ]
    for row in rows:
        assert row["float32 / it"] == pytest.approx(rows[0]["s"] / row["s"])
        assert row["bfloat16 / it"] == pytest.approx(rows[1]["s"] / row["s"])
    # Each program computes in its own precision, near that of float32.
    differences = [row["difference"] for row in rows]
    assert differences[0] == 0 < min(differences[1:]) and max(differences) < 0.05
    assert len(set(differences)) == 4


def test_a_missing_library_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setitem(sys.modules, "torchao", None)
    rows = run("--programs", "float32", "torchao")
    assert "torchao" in rows[1]["absent"] and "s" not in rows[1]
