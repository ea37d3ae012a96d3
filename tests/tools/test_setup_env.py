import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import load_script

setup_env = load_script("tools/setup_env.py")


@pytest.fixture
def calls(monkeypatch):
    """Replaces pip, the steps after it and the import check; collects what they would install."""
    made = []
    monkeypatch.setattr(setup_env, "pip", lambda python, *arguments, what: made.append(what))
    monkeypatch.setattr(setup_env, "install_natten", lambda venv, python: made.append("NATTEN"))
    monkeypatch.setattr(setup_env, "IMPORT_CHECK", "print('versions')")
    return made


@pytest.fixture
def detectron2(monkeypatch):
    """Replaces the steps that install Detectron2 and the packages without dependencies."""
    monkeypatch.setattr(setup_env, "install_detectron2", lambda venv, python: None)
    monkeypatch.setattr(setup_env, "install_without_dependencies", lambda python: None)


def folder_with_package(path, name="detectron2"):
    (path / name).mkdir(parents=True)
    (path / name / "__init__.py").touch()
    return path


def test_a_second_call_does_nothing_and_a_change_is_noticed(tmp_path, monkeypatch, calls, detectron2, capsys):
    changing = tmp_path / "pyproject.toml"
    changing.write_text("a")
    monkeypatch.setattr(setup_env, "INPUTS", (changing,))
    venv = tmp_path / "venv"
    setup_env.set_up(venv, chosen_python=False)
    assert calls == ["the dependencies", "NATTEN"]
    setup_env.set_up(venv, chosen_python=False)
    assert len(calls) == 2 and "is up to date" in capsys.readouterr().out
    changing.write_text("b")
    setup_env.set_up(venv, chosen_python=False)
    assert len(calls) == 4


def test_the_next_call_repeats_a_failed_step(tmp_path, monkeypatch, calls, detectron2):
    working = setup_env.pip

    def fail(python, *arguments, what):
        raise setup_env.SetupError("no network")

    monkeypatch.setattr(setup_env, "pip", fail)
    with pytest.raises(setup_env.SetupError, match="no network"):
        setup_env.set_up(tmp_path / "venv", chosen_python=False)
    monkeypatch.setattr(setup_env, "pip", working)
    setup_env.set_up(tmp_path / "venv", chosen_python=False)
    assert calls == ["the dependencies", "NATTEN"]


def test_a_broken_environment_is_replaced_but_a_foreign_folder_is_left_alone(tmp_path, calls, detectron2):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    setup_env.set_up(venv, chosen_python=False)
    assert setup_env.works(venv / "bin" / "python")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "precious.jpg").touch()
    with pytest.raises(setup_env.SetupError, match="not a virtual environment"):
        setup_env.set_up(foreign, chosen_python=False)
    assert (foreign / "precious.jpg").exists()


def test_a_python_without_venv_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_env.SetupError, match="apt install python3-venv"):
        setup_env.create_environment(tmp_path / "venv")


def test_an_importable_detectron2_is_kept(tmp_path, monkeypatch, calls, capsys):
    monkeypatch.setenv("PYTHONPATH", str(folder_with_package(tmp_path / "own")))
    setup_env.install_detectron2(tmp_path / "venv", sys.executable)
    assert calls == [] and "kept" in capsys.readouterr().out


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_snapshot_is_installed_without_compiled_ops(tmp_path, monkeypatch, interrupted):
    site = tmp_path / "site"
    site.mkdir()
    if interrupted:
        (site / "sal_detectron2-0.7.2.dist-info").mkdir()
    staging = tmp_path / "venv" / "detectron2-staging"

    def unpack(python, *arguments, what):
        assert "--require-hashes" in arguments and "--no-deps" in arguments
        folder_with_package(staging)
        (staging / "detectron2" / "_C.cpython-310-x86_64-linux-gnu.so").touch()
        folder_with_package(staging, "tools")
        (staging / "sal_detectron2-0.7.2.dist-info").mkdir()
        (staging / "sal_detectron2-0.7.2.dist-info" / "METADATA").write_text(
            "Name: sal-detectron2\nRequires-Dist: numpy<2\nLicense-File: LICENSE\n"
        )

    monkeypatch.setattr(setup_env, "pip", unpack)
    found = {"detectron2": None, "snapshot": "0.7.2" if interrupted else None, "purelib": str(site)}
    monkeypatch.setattr(setup_env, "probe", lambda python: found)
    setup_env.install_detectron2(tmp_path / "venv", sys.executable)
    assert sorted(path.name for path in site.iterdir()) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert [path.name for path in (site / "detectron2").iterdir()] == ["__init__.py"]
    assert "numpy" not in (site / "sal_detectron2-0.7.2.dist-info" / "METADATA").read_text()
    assert not staging.exists()


def test_a_failing_natten_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "run", lambda command, **kwargs: SimpleNamespace(returncode=1))
    setup_env.install_natten(tmp_path, sys.executable)
    assert "it is optional" in capsys.readouterr().out


def test_failures_are_one_message_and_exit_status_1(tmp_path):
    blocked = tmp_path / "file"
    blocked.mkdir()
    (blocked / "x").touch()
    result = subprocess.run(
        [sys.executable, setup_env.__file__, "--venv", blocked], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("setup: ") and "Traceback" not in result.stderr
