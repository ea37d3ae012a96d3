import errno
import io
import json
import multiprocessing
import os
import pickle
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save

from dinat_common.files import (
    AppendedFile,
    TextFileError,
    WriteError,
    atomic_write,
    check_file,
    check_folder,
    make_folder,
    read_text,
    sha256_of,
    user_path,
    write_json,
    writing,
    writing_in,
)
from tests.unwritable import FULL, OBSTACLES, blocked, content, full_disk, small_files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "made" / "a.txt"
    with atomic_write(path) as file:
        file.write("né")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "né"
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "né"
    assert list(path.parent.iterdir()) == [path]
    with atomic_write(path, "wb", durable=True) as file:
        file.write(b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_checksums_are_those_of_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("content", ["é\n".encode(), "\ufeffé\n".encode()])
def test_text_is_read_with_and_without_byte_order_mark(tmp_path, content):
    file = tmp_path / "names.txt"
    file.write_bytes(content)
    assert read_text(file) == "é\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_in_another_encoding_is_an_error_that_names_the_file(tmp_path, encoding):
    file = tmp_path / "names.txt"
    file.write_bytes("Straße".encode(encoding))
    with pytest.raises(TextFileError, match=r"names\.txt: not a text file in UTF-8"):
        read_text(file)


def test_the_home_folder_in_paths_of_users(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/a b") == Path("/home/somebody/a b")
    assert user_path(Path("~")) == Path("/home/somebody")
    assert user_path("a/~/b") == Path("a/~/b")
    assert user_path("~no such user/b") == Path("~no such user/b")


PIXELS = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
# Libraries that write to our file; some of them turn its errors into others, or hide them.
WRITERS = {
    "bytes": lambda file: file.write(bytes(9000)),
    "many pieces": lambda file: [file.write(b"x" * 100) for _ in range(200)],
    "torch.save": lambda file: torch.save({"model": torch.zeros(9000)}, file),
    "safetensors": lambda file: file.write(save({"a": torch.zeros(9000)})),
    "JPEG": lambda file: Image.fromarray(PIXELS).save(file, "JPEG", quality=95),
    "PNG": lambda file: Image.fromarray(PIXELS).save(file, "PNG"),
    "TIFF": lambda file: Image.fromarray(PIXELS).save(file, "TIFF"),
    "OpenCV": lambda file: file.write(cv2.imencode(".png", PIXELS)[1].tobytes()),
    "Matplotlib": lambda file: Figure().savefig(file, format="png"),
    "NumPy": lambda file: np.savez(file, a=PIXELS),
    "text": lambda file: io.TextIOWrapper(file).write("x" * 9000),
    "a library that hides errors": lambda file: _hiding(file),
}


def _hiding(file):
    try:
        file.write(bytes(9000))
        file.flush()
    except OSError:
        return


@pytest.mark.parametrize("free", [0, 1, 600])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_whatever_writes_and_the_former_file_stays(tmp_path, monkeypatch, writer, free):
    path = tmp_path / "result"
    path.write_text("former")
    with full_disk(monkeypatch, free), pytest.raises(WriteError) as caught, atomic_write(path, "wb") as file:
        WRITERS[writer](file)
    assert str(caught.value) == f"{path}: can't be written: {FULL}"
    assert caught.value.disk_is_full and caught.value.errno == errno.ENOSPC
    assert content(tmp_path) == {"result": b"former"}


@pytest.mark.parametrize("writer", ["bytes", "torch.save", "JPEG", "Matplotlib"])
def test_a_limit_of_the_system_is_reported_like_a_full_disk(tmp_path, writer):
    path = tmp_path / "result"
    too_large = pytest.raises(WriteError, match="result: can't be written: File too large")
    with small_files(512), too_large, atomic_write(path, "wb") as file:
        WRITERS[writer](file)
    assert content(tmp_path) == {}
    with atomic_write(path, "wb") as file:
        WRITERS[writer](file)
    assert path.stat().st_size > 512


def test_other_errors_of_the_block_stay_what_they_are(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "no", "other.txt"), OSError(errno.EIO, "of a socket"), ValueError()):
        with pytest.raises(type(error)) as caught, atomic_write(tmp_path / "a") as file:
            file.write("a")
            raise error
        assert caught.value is error
    assert content(tmp_path) == {}


def test_a_failed_flush_to_the_disk_is_a_failed_write(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    failed = pytest.raises(WriteError, match="a: can't be written: Input/output error")
    with failed, atomic_write(tmp_path / "a", durable=True) as file:
        file.write("a")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("write", [make_folder, check_folder, lambda folder: write_json(folder / "a.json", 1)])
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path, obstacle, write):
    folder, reason = blocked(obstacle, tmp_path)
    before = content(tmp_path)
    with pytest.raises(WriteError) as caught:
        write(folder)
    assert reason in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert content(tmp_path) == before


def test_a_folder_in_place_of_a_file_is_known_before_the_work(tmp_path):
    (tmp_path / "a.pth").mkdir()
    for write in (check_file, lambda path: atomic_write(path).__enter__()):
        with pytest.raises(WriteError, match=r"a\.pth: can't be written: it is a folder, expected a file"):
            write(tmp_path / "a.pth")


def test_checks_leave_nothing_behind(tmp_path, monkeypatch):
    for path in (tmp_path / "new" / "deep" / "a", tmp_path / "b"):
        check_file(path)
        check_folder(path, size=1)
    assert content(tmp_path) == {}
    with full_disk(monkeypatch), pytest.raises(WriteError, match=f"new: can't be written: {FULL}"):
        check_folder(tmp_path / "new")
    assert content(tmp_path) == {}


def _check_often(folder):
    for _ in range(300):
        check_folder(folder)


def test_several_processes_check_the_same_new_folder(tmp_path):
    """Each removes what it made, maybe while another one is about to write there. An empty folder may stay."""
    pool = ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn"))
    with pool:
        list(pool.map(_check_often, [tmp_path / "new" / "deep"] * 3))
    assert content(tmp_path).keys() <= {"new", "new/deep"}


@pytest.mark.parametrize(("free", "passes"), [(0, True), (999_999, False), (2_000_000, True)])
def test_space_is_checked_unless_the_system_does_not_know_it(tmp_path, monkeypatch, free, passes):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(9, 9, free))
    if passes:
        check_folder(tmp_path, 1_000_000)
        return
    with pytest.raises(WriteError, match=r": can't be written: 1\.0 MB are needed, 1\.0 MB are free"):
        check_folder(tmp_path, 1_000_000)


def test_a_name_that_fits_is_not_too_long_until_the_file_is_complete(tmp_path):
    path = tmp_path / ("é" * 127)
    for text in ("one", "two"):
        with atomic_write(path) as file:
            file.write(text)
    assert content(tmp_path) == {path.name: b"two"}


def test_writers_of_other_packages_get_the_name_too(tmp_path):
    unnamed, named = OSError(errno.ENOSPC, FULL), OSError(errno.ENOENT, "missing", "photo.jpg")
    with pytest.raises(WriteError, match=rf"events: can't be written: {FULL}"), writing(tmp_path / "events"):
        raise unnamed
    with pytest.raises(WriteError, match=rf"{tmp_path.name}: can't be written: {FULL}"), writing_in(tmp_path):
        raise unnamed
    for other in (named, BrokenPipeError(errno.EPIPE, "Broken pipe"), ValueError("ours")):
        with pytest.raises(type(other)) as caught, writing_in(tmp_path):
            raise other
        assert caught.value is other


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(WriteError(errno.ENOSPC, FULL, "/a/b")))  # noqa: S301
    assert str(error) == f"/a/b: can't be written: {FULL}" and error.disk_is_full
    # As PyTorch raises an error of a worker again.
    assert str(WriteError("Caught WriteError in worker")) == "Caught WriteError in worker"


def test_an_appended_file_grows_by_whole_pieces(tmp_path, monkeypatch):
    path = tmp_path / "new" / "log"
    file = AppendedFile(path)
    assert [file.add(b"one\n"), file.add(b"three\n")] == [0, 4]
    with full_disk(monkeypatch, 3):
        full = AppendedFile(path)
        with pytest.raises(WriteError, match=f"log: can't be written: {FULL}"):
            full.add(b"four\n")
    assert path.read_bytes() == b"one\nthree\n"
    assert file.add(b"five\n") == 10
