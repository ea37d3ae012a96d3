"""Which errors a command line reports without a traceback."""

import pytest

from dinat_backbone import BackboneConfigError
from mask2former import ConfigError
from mask2former.checkpoint import CheckpointError, DownloadError
from mask2former.data.datasets import AnnotationError, MissingDatasetError
from mask2former.data.image_io import ImageReadError
from mask2former.engine import DeviceError, LaunchError, NonFiniteLossError
from mask2former.evaluation import EvaluationError
from mask2former.utils.errors import UserError, report_errors, report_interrupt

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
