"""The benchmark of torch.compile compares both parts and saves its results."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_run_saves_table_numbers_and_chart(load_benchmark, monkeypatch, tmp_path):
    script = load_benchmark("compile")
    small = {"EMBED_DIM": "16", "DEPTHS": "[1,1,1,1]", "NUM_HEADS": "[1,2,4,8]", "KERNEL_SIZE": "3"}
    keys = {f"MODEL.DINAT.{key}": value for key, value in small.items()}
    keys |= {"MODEL.DINAT.DILATIONS": "[[1],[1],[1],[1]]", "MODEL.MASK_FORMER.DEC_LAYERS": "2"}
    keys |= {"MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1"}
    # This backend builds graphs without generating code.
    options = ["--size", "32", "32", "--device", "cpu", "--backend", "aot_eager", "--precisions", "float32"]
    options += ["--repeats", "1", "--output", str(tmp_path / "a")]
    monkeypatch.setattr("sys.argv", ["compile.py", *options, *(part for pair in keys.items() for part in pair)])
    script.main()
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["part"] for row in rows] == ["backbone", "head"]
    for row in rows:
        assert row["plain / compiled"] == pytest.approx(row["plain s"] / row["compiled s"])
        assert row["difference"] < 1e-4
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
