"""The benchmark of deformable attention compares all programs and saves its results."""

import json

import pytest
import torch

pytestmark = pytest.mark.slow


def test_a_run_saves_table_numbers_and_chart(load_benchmark, monkeypatch, tmp_path):
    script = load_benchmark("deformable_attention")
    options = ["--size", "32", "64", "--repeats", "1", "--no-compile", "--output", str(tmp_path / "a")]
    options += ["--threads", str(torch.get_num_threads())]
    # Measuring the machine takes seconds.
    monkeypatch.setattr(script, "copy_rate", lambda device: 1e10)
    monkeypatch.setattr(script, "gemm_rate", lambda dtype, device: 1e11)
    monkeypatch.setattr("sys.argv", ["deformable_attention.py", *options])
    script.main()
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    gather, reference = rows[:2]
    assert (gather["program"], reference["program"]) == ("gather", "reference")
    assert reference["times ours"] == pytest.approx(reference["ms"] / gather["ms"])
    assert all(row["difference"] < 1e-2 for row in rows if "difference" in row)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
