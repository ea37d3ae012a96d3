"""The simulation of many GPUs: what is known in advance."""

import pytest


@pytest.fixture
def script(load_benchmark):
    return load_benchmark("scaling")


def test_sums_within_and_between_machines(script):
    options = script.parse_arguments(["--gpu-bandwidth", "100", "--network", "80", "--latency", "0"])
    assert script.all_reduce_seconds(1e9, 8, options) == pytest.approx(2 * 7 / 8 * 1e9 / 100e9)
    # Two machines: each sends all of it once over its network.
    assert script.all_reduce_seconds(1e9, 16, options) == pytest.approx(2 * 7 / 8 / 100 + 1e9 / 10e9)


def test_more_processes_wait_longer_for_the_slowest(script):
    assert script.slowest(1, 0.1) == pytest.approx(1, abs=0.02)
    assert script.slowest(8, 0.0) == pytest.approx(1)
    assert 1.05 < script.slowest(8, 0.1) < script.slowest(512, 0.1) < 1.5


def test_a_measured_rate_replaces_the_computed_one_and_few_cores_slow_all_down(script):
    model = script.Model(parameters=1_000_000, flops=1e12)
    fast = script.simulate(8, model, script.parse_arguments(["--images-per-second", "10", "--variation", "0"]))
    assert fast["compute (s)"] == 0.2 and fast["images/s"] == pytest.approx(80) and fast["cores for loading"] == 3
    few = ["--images-per-second", "10", "--variation", "0", "--cores", "1"]
    assert script.simulate(8, model, script.parse_arguments(few))["images/s"] == pytest.approx(80 / 2.4)


def test_a_run_saves_its_table(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "count_model", lambda side: script.Model(220_000_000, 1.7e12))
    script.main(["--results", str(tmp_path / "scaling")])
    assert "512 GPUs" in (tmp_path / "scaling.md").read_text()
