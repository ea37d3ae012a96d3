"""The benchmark of deformable attention: that a run compares all programs and saves what it found."""

import json

import pytest
import torch

from ..conftest import ROOT, load_script


def test_a_run_saves_table_numbers_and_chart(monkeypatch, tmp_path):
    # As Python does it for a script that is run.
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = load_script("benchmarks/deformable_attention.py")
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
