"""The Makefile and .ci/run, without running what they start."""

import os
import re
import subprocess

import pytest

from tests.conftest import ROOT

# Variables that an outer `make test VARIABLE=...` passes on.
INHERITED = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV", "ARGS"}


def command(*words, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in INHERITED}
    return subprocess.run(words, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False)


def test_help_is_the_default_and_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    result = command("make")
    assert result.returncode == 0
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("  make ")] == targets
    assert {"setup", "test", "lint", "demo", "clean"} < set(targets)


@pytest.mark.parametrize("target", ["test", "test-all", "lint", "demo"])
def test_targets_set_up_first(target):
    lines = command("make", "--dry-run", target).stdout.splitlines()
    assert "tools/setup_env.py" in lines[0] and ".venv/bin/python" in lines[1]


@pytest.mark.parametrize(("choice", "passed"), [([], False), (["PYTHON=/usr/bin/python3"], True)])
def test_only_a_chosen_python_replaces_an_environment(choice, passed):
    assert ("--chosen-python" in command("make", "--dry-run", "setup", *choice).stdout) == passed


def test_clean_env_leaves_foreign_folders(tmp_path):
    (tmp_path / "precious").touch()
    result = command("make", "clean-env", f"VENV={tmp_path}")
    assert result.returncode != 0 and (tmp_path / "precious").exists()
    (tmp_path / "setup-base").touch()
    assert command("make", "clean-env", f"VENV={tmp_path}").returncode == 0
    assert not tmp_path.exists()


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("lint", 1), ("test", 1)])
def test_ci_runs_everything_and_fails_if_anything_fails(tmp_path, failing, status):
    # It may install Chromium, which a test must not do.
    for name, script in (("make", f'echo "ran $1"\n[ "$1" != {failing} ]'), ("apt-get", "exit 1")):
        stand_in = tmp_path / name
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
    result = command("bash", ".ci/run", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == status
    assert '+ make lint\nran lint\n+ make test\nran test\n+ make test ARGS="-m slow"\nran test\n' in result.stdout
    assert (f"failed: {failing}" in result.stderr) == bool(status)
