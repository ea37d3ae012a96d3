"""Journals keep complete records, whatever happened to the process that wrote them."""

import pytest

from mask2former.utils.journal import Journal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "done.jsonl"
    with Journal(path, {"model": "a", "size": (2, 3)}) as journal:
        for key in ("x", 7, "z"):
            journal.add(key, {"of": key})
    return path


def reopened(path, model="a"):
    return Journal(path, {"model": model, "size": (2, 3)})


def test_records_are_there_again(path):
    with reopened(path) as journal:
        assert dict(journal) == {"x": {"of": "x"}, 7: {"of": 7}, "z": {"of": "z"}}
        assert (journal.kept, journal.differing, "y" in journal, journal.get("y")) == (3, [], False, None)


def test_nothing_is_written_before_the_first_record(tmp_path):
    assert len(Journal(tmp_path / "new" / "done.jsonl", {})) == 0
    assert list(tmp_path.iterdir()) == []


def test_records_can_be_read_while_others_are_added(path):
    with reopened(path) as journal:
        journal.add("y", 1)
        assert journal["x"] == {"of": "x"}
        journal.add("w", 2)
        assert (journal["y"], journal["w"], journal.kept, len(journal)) == (1, 2, 3, 5)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_forgotten(path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    with reopened(path) as journal:
        assert list(journal) == ["x", 7]
        journal.add("z", "again")
    with reopened(path) as journal:
        assert (list(journal), journal["z"]) == (["x", 7, "z"], "again")


def test_a_damaged_line_is_forgotten(path):
    path.write_bytes(path.read_bytes().replace(b'{"of": 7}', b'{"of": 8}'))
    assert list(reopened(path)) == ["x", "z"]


@pytest.mark.parametrize("kept_bytes", [0, 1, 30])
def test_a_header_that_was_cut_off_means_no_records(path, kept_bytes):
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with reopened(path) as journal:
        assert len(journal) == 0
        journal.add("y", 1)
    assert dict(reopened(path)) == {"y": 1}


def test_another_fingerprint_begins_anew(path):
    with reopened(path, model="b") as journal:
        assert (len(journal), journal.differing) == (0, ["model"])
        assert len(reopened(path)) == 3, "until something is added"
        journal.add("y", 1)
    assert dict(reopened(path, model="b")) == {"y": 1}
    assert len(reopened(path)) == 0


def test_the_last_record_of_a_key_counts(path):
    with reopened(path) as journal:
        journal.add("x", "new")
        assert (journal["x"], len(journal)) == ("new", 3)
    assert reopened(path)["x"] == "new"


def test_records_are_strict_json(path):
    with reopened(path) as journal, pytest.raises(ValueError, match="JSON"):
        journal.add("y", float("nan"))
    assert len(reopened(path)) == 3
