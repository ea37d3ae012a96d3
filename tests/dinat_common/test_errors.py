"""Which errors a command line reports without a traceback."""

import os
import subprocess
import sys

import pytest

from dinat_backbone import BackboneConfigError
from dinat_common.errors import UserError, report_errors, report_interrupt, run_script
from mask2former import ConfigError
from mask2former.checkpoint import CheckpointError, DownloadError
from mask2former.data.datasets import AnnotationError, MissingDatasetError
from mask2former.data.image_io import ImageReadError
from mask2former.engine import DeviceError, LaunchError, NonFiniteLossError
from mask2former.evaluation import EvaluationError
from tests.conftest import ROOT

OF_USERS = (
    *(UserError, ConfigError, CheckpointError, DownloadError, AnnotationError, MissingDatasetError, ImageReadError),
    *(DeviceError, LaunchError, NonFiniteLossError, EvaluationError, BackboneConfigError),
)


@pytest.mark.parametrize("kind", [*OF_USERS, OSError, PermissionError])
def test_errors_of_users_and_of_the_system_are_a_line_and_a_status(kind, capsys):
    with pytest.raises(SystemExit) as exit_, report_errors(status=3):
        raise kind("a.yaml: no such key")
    assert exit_.value.code == 3
    assert capsys.readouterr().err == "error: a.yaml: no such key\n"
    with pytest.raises(kind), report_errors(debug=True):
        raise kind("a.yaml: no such key")


@pytest.mark.parametrize("kind", [ValueError, TypeError, RuntimeError, AssertionError, KeyError])
def test_other_errors_keep_their_traceback(kind):
    with pytest.raises(kind), report_errors():
        raise kind("a mistake of ours")


def test_an_interruption_has_the_usual_status(capsys):
    with pytest.raises(SystemExit) as exit_, report_interrupt("go on with --resume"):
        raise KeyboardInterrupt
    assert exit_.value.code == 130
    assert "interrupted: go on with --resume" in capsys.readouterr().err


SCRIPT = """
import sys
# The folder of the module alone: the package would import PyTorch.
sys.path.insert(0, sys.argv[1])
from errors import run_script

def main():
    for number in range(100_000):
        print(number)
    return 3

run_script(main)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "s.py").write_text(SCRIPT)
    return f"{sys.executable} -W ignore {tmp_path / 's.py'} {ROOT / 'dinat_common'}"


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("> /dev/null", 3, ""),
        ("| head -1 > /dev/null", 141, ""),
        ("| true", 141, ""),
        ("> /dev/full", 1, "error: standard output: can't be written: No space left on device\n"),
    ],
)
def test_output_without_a_reader_or_a_full_disk_leaves_no_traceback(script, redirection, status, message):
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    words = ["bash", "-c", f"{script} {redirection}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, message)


def test_errors_of_the_system_name_the_file_without_a_number(capsys):
    with pytest.raises(SystemExit), report_errors():
        open("/no such folder/a")  # noqa: SIM115 - it fails
    assert capsys.readouterr().err == "error: /no such folder/a: No such file or directory\n"


def test_a_script_ends_with_the_status_of_its_main(capsys):
    for result, status in ((0, 0), (None, None), (2, 2)):
        with pytest.raises(SystemExit) as end:
            run_script(lambda result=result: result)
        assert end.value.code == status

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_script(interrupted)
    assert end.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
