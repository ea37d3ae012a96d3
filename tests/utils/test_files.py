import json
from pathlib import Path

import pytest

from mask2former.utils.files import TextFileError, atomic_write, read_text, sha256_of, user_path, write_json


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
