"""A log that can't be written is an error, and expected errors are logged without a traceback."""

import logging
import sys

import pytest

from dinat_common.errors import UserError
from dinat_common.files import WriteError
from mask2former.utils.logs import set_up_logs
from tests.unwritable import FULL, full_disk

NAMES = ("mask2former", "dinat_backbone")


@pytest.fixture
def log(loggers_restored):
    return logging.getLogger("mask2former.part")


def test_lines_go_to_the_console_and_to_the_file_of_the_last_run(log, tmp_path, capsys):
    for run in ("a", "b"):
        set_up_logs(NAMES, tmp_path / run)
        log.info("run %s", run)
        logging.getLogger("dinat_backbone").warning("of another package")
    assert capsys.readouterr().out.count("run b") == 1
    for run in ("a", "b"):
        lines = (tmp_path / run / "log.txt").read_text().splitlines()
        assert len(lines) == 2 and lines[0].endswith(f"mask2former.part INFO: run {run}")


def test_other_processes_have_their_own_file(log, tmp_path, capsys):
    set_up_logs(NAMES, tmp_path, rank=1)
    log.info("é \udcff")
    assert "mask2former.part INFO: é" in (tmp_path / "log.txt.rank1").read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""


def test_a_full_disk_ends_the_work_and_leaves_whole_lines(log, tmp_path, monkeypatch, capsys):
    with full_disk(monkeypatch, 100):
        set_up_logs(NAMES, tmp_path)
        log.info("fits")
        with pytest.raises(WriteError, match=rf"log\.txt: can't be written: {FULL}"):
            log.info("x" * 100)
    assert (tmp_path / "log.txt").read_text().endswith("INFO: fits\n")
    assert "Traceback" not in capsys.readouterr().err


def test_expected_errors_are_logged_without_a_traceback_even_if_the_log_is_full(log, tmp_path, monkeypatch, capsys):
    with full_disk(monkeypatch, 130):
        set_up_logs(NAMES, tmp_path)
        for error in (UserError("the first reason"), UserError("the second reason"), RuntimeError("ours")):
            log.error("Exception during training:", exc_info=error)
    found = capsys.readouterr()
    assert "Exception during training: the second reason" in found.out
    assert "\nRuntimeError: ours" in found.out and "UserError" not in found.out
    assert found.err == ""
    assert "the first reason" in (tmp_path / "log.txt").read_text()


def test_a_console_that_is_full_is_named(log, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, FULL)

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Full())
    set_up_logs(NAMES)
    with pytest.raises(WriteError, match=f"standard output: can't be written: {FULL}"):
        log.info("a line")
