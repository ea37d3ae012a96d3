import json

import torch

from ..conftest import load_script


def test_benchmark_of_data_loading(trees, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setenv("DETECTRON2_DATASETS", "restored after the test")
    benchmark = load_script("benchmarks/data_loading.py")
    settings = ["coco-panoptic", "cityscapes-semantic"]
    output = tmp_path / "numbers.json"
    try:
        arguments = ["--root", str(trees), "--settings", *settings, "--images", "4", "--workers", "0"]
        assert benchmark.main([*arguments, "--output", str(output)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "coco-panoptic" in capsys.readouterr().out
    numbers = json.loads(output.read_text())
    assert list(numbers) == settings
    for setting in settings:
        steps = numbers[setting]
        assert all(steps[name] > 0 for name in ("pure", "loader", *benchmark.STEPS))
        # The remainder is small: the measured functions still have these names.
        assert steps["rest"] < 0.5 * sum(steps[name] for name in benchmark.STEPS)
