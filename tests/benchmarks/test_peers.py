"""The benchmark of peers measures all that can run, names the others, and saves its results."""

import json

import pytest
import torch

pytestmark = pytest.mark.slow
SWIN, EOMT = "transformers' Mask2Former, Swin-L", "transformers' EoMT, ViT-L"


@pytest.fixture
def script(load_benchmark, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is optional and not installed")
    script = load_benchmark("peers")
    # Processes of their own take seconds to import everything.
    monkeypatch.setattr(script, "in_a_process", lambda name, kind, args: script.measure(name, kind, script.parse(args)))
    return script


def run(script, tmp_path, size, *more):
    arguments = ["--tiny", "--targets", "3", "--repeats", "1", "--seconds", "0.01", "--device", "cpu", "--size", *size]
    arguments += ["--threads", str(torch.get_num_threads() + 1), "--output", str(tmp_path / "a"), *more]
    threads = torch.get_num_threads()
    try:
        assert script.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
    content = json.loads((tmp_path / "a.json").read_text())
    return {row["model"]: row for row in content["rows"]}, content["summary"]


def test_ratios_and_reasons(script, tmp_path):
    rows, reasons = run(script, tmp_path, ("64", "64"), "--models", script.OURS, SWIN, EOMT)
    assert list(rows) == [script.OURS, SWIN, EOMT] and not reasons
    for row in rows.values():
        assert row["inference s"] == pytest.approx(row["network s"] + row["panoptic s"])
        for time, ratio in (("inference s", "inference / ours"), ("training step s", "training / ours")):
            assert row[ratio] == pytest.approx(row[time] / rows[script.OURS][time])
        assert min(row["parameters M"], row["inference peak MB"], row["training peak MB"]) > 0


def test_absent_models_are_named(script, tmp_path):
    rows, reasons = run(script, tmp_path, ("64", "96"), "--passes", "inference", "--models", script.OURS, EOMT)
    assert "inference s" in rows[script.OURS] and rows[EOMT] == {"model": EOMT}
    assert reasons == {f"absent: {EOMT} inference": "ValueError: it takes square images, got 64 x 96"}


def test_a_process_that_dies_is_named(load_benchmark, monkeypatch, tmp_path):
    script = load_benchmark("peers")
    (tmp_path / "dying.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(script, "__file__", str(tmp_path / "dying.py"))
    assert script.in_a_process(SWIN, "inference", []) == {"absent": "its process ended with 3"}


@pytest.mark.parametrize(("name", "millions"), [(SWIN, 216), (EOMT, 317)])
def test_sizes_are_the_published_ones(load_benchmark, name, millions):
    pytest.importorskip("transformers", reason="transformers is optional and not installed")
    models = load_benchmark("_peer_models")
    with torch.device("meta"):
        model, _ = models._OF_TRANSFORMERS[name][0]((640, 640), False)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
