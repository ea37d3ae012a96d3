"""The script for a machine with a GPU runs all steps on a CPU, keeps what it has when time is up, and sums it up."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from ..conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"


def run(tmp_path, *options):
    command = [str(SCRIPT), "--output", str(tmp_path), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    with tarfile.open(tmp_path / "gpu-check.tar.gz") as archive:
        names = {name.removeprefix("gpu-check/") for name in archive.getnames()}
        lines = archive.extractfile("gpu-check/steps.tsv").read().decode().splitlines()
    return result, names, [line.split("\t") for line in lines]


@pytest.mark.slow
def test_dry_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHON", sys.executable)
    result, names, steps = run(tmp_path, "--dry-run")
    assert {step: status for step, status, *_ in steps} == dict.fromkeys([step for step, *_ in steps], "done")
    assert result.returncode == 0, result.stdout
    measured = [step for step, *_ in steps if step not in ("machine", "tests")]
    assert len(measured) == 7 and {f"{step}{end}" for step in measured for end in (".json", ".md", ".log")} <= names
    page = (tmp_path / "gpu-check.md").read_text()
    assert all(f"## {step}: " in page for step in measured) and "| target |" not in page


def test_no_time_left(tmp_path):
    result, names, steps = run(tmp_path, "--seconds", "1")
    assert len(steps) == 14 and {status for _, status, *_ in steps} == {"not started, no time left"}
    assert result.returncode == 0 and names == {"gpu-check", "steps.tsv"}
    # The most important first.
    assert [step for step, *_ in steps][:4] == ["machine", "tests", "attention-bfloat16-forward", "model-bfloat16"]
    assert "| model-bfloat16 | not started, no time left | 0 |" in (tmp_path / "gpu-check.md").read_text()


def test_results_of_an_earlier_run_stay(tmp_path):
    earlier = tmp_path / "gpu-check" / "model-bfloat16.json"
    earlier.parent.mkdir()
    earlier.write_text("{}")
    run(tmp_path, "--seconds", "1")
    assert not earlier.exists() and [path.name for path in tmp_path.glob("gpu-check.2*/*")] == [earlier.name]


def test_summary_has_targets_and_is_inserted_between_markers(load_benchmark, tmp_path):
    script = load_benchmark("_gpu_check_summary")
    (tmp_path / "steps.tsv").write_text(
        "tests\tdone\t60\tpytest\nattention-bfloat16-forward\tdone\t60\tpython\n"
        "model-bfloat16\tout of time\t60\tpython\n"
    )
    (tmp_path / "tests.log").write_text("...\n======= 49 passed, 9 deselected in 55.00s =======\n")
    content = {"command": ["model.py", "--size", "800", "1333"], "rows": [{"images a second": 31.4, "peak GiB": 70.0}]}
    (tmp_path / "model-bfloat16.json").write_text(json.dumps(content))
    sums = {
        "large 800x1344 bfloat16, forward: flex-tiles / ours": 4.0,
        "large 800x1344 bfloat16, forward: flex-tiles / ours, kernels": 5.0,
        "large 800x1344 bfloat16, forward: tiled / ours": 9.0,
    }
    (tmp_path / "attention-bfloat16-forward.json").write_text(json.dumps({"command": ["large"], "summary": sums}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu-check: begin -->\nold\n<!-- gpu-check: end -->\nafter\n")
    script.insert(script.summary(tmp_path), page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "Tests: 49 passed, 9 deselected in 55.00s" in text and "| model-bfloat16 | out of time | 60 |" in text
    measured = [[cell.strip() for cell in line.split("|")[3:5]] for line in text.splitlines() if "at least" in line]
    assert measured == [["4", "yes"], ["5", "yes"], ["not measured", ""], ["31.4", "yes"]]
    assert "| model-bfloat16 | 31.4 | 70 |" in text and "flex-tiles / ours, kernels | 5 |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no lines <!-- gpu-check: begin -->"):
        script.insert("text", page)


def test_a_file_that_was_cut_while_it_was_written_does_not_stop_the_summary(load_benchmark, tmp_path):
    script = load_benchmark("_gpu_check_summary")
    (tmp_path / "steps.tsv").write_text("model-bfloat16\tout of time\t60\tpython\n")
    (tmp_path / "model-bfloat16.json").write_text('{"rows": [')
    assert "| model-bfloat16 | out of time | 60 |" in script.summary(tmp_path)


def test_the_machine_is_described_without_triton(load_benchmark, monkeypatch):
    script = load_benchmark("_gpu_check_summary")
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert "triton absent" in script.machine_facts("cpu")


def test_packages_for_another_python_are_refused_at_once(tmp_path):
    (tmp_path / "target-python").write_text("2.7\n")
    with tarfile.open(tmp_path / "packages.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "target-python", "target-python")
    command = [str(SCRIPT), "--output", str(tmp_path / "out"), "--packages", str(tmp_path / "packages.tar.gz")]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert result.returncode == 1 and "is for Python 2.7" in result.stderr and "== machine" not in result.stdout


def test_what_is_written_survives_a_kill_in_the_middle_of_a_step(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\ncase "$*" in *--machine*) echo a machine; sleep 5;; esac\n')
    fake.chmod(0o755)
    command = [str(SCRIPT), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHON": str(fake)}, start_new_session=True)
    log = tmp_path / "out/gpu-check/machine.log"
    for _ in range(200):
        if log.is_file() and log.read_text():
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert log.read_text() == "a machine\n"


def test_the_page_has_the_markers(load_benchmark):
    script = load_benchmark("_gpu_check_summary")
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page.count(script._BEGIN) == page.count(script._END) == 1
