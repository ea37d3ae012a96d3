"""A list of images that several processes share, and that a later run continues."""

import json
from types import SimpleNamespace

import pytest
from detectron2.utils import comm

from mask2former.prediction.files import FileDone, FileFailed
from mask2former.prediction.sharing import ImageShare, SharingError
from tests.processes import together

PREDICTOR = SimpleNamespace(task="semantic", fingerprint=lambda: {"weights": "a"})


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(7):
        (folder / f"{index}.jpg").write_text(str(index))
    return sorted(folder.iterdir())


def predicted(share, *, failing=(), stop=None):
    """What `predict_files` yields: results that name the process."""
    for image, stem in zip(share.images, share.stems, strict=True):
        if image.name == stop:
            raise KeyboardInterrupt
        if image.name in failing:
            yield FileFailed(image, "damaged")
            continue
        picture = stem.with_name(f"{stem.name}.png")
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(str(comm.get_rank()))
        yield FileDone(image, (1, 1), picture, 0.0, (picture,))


def work(images, output, settings=None, **events):
    """Predict the share of this process, and describe what it did."""
    share = ImageShare(images, output, PREDICTOR, settings or {})
    done = [outcome.image.name for outcome in share.keep(predicted(share, **events))]
    outcome = share.outcome()
    failed = [(rank, failure.image.name) for rank, failure in outcome.failed]
    return {"done": done, "kept": outcome.kept, "total": outcome.images, "failed": failed}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def interrupted(images, output, **events):
    with pytest.raises(KeyboardInterrupt):
        work(images, output, **events)


def test_an_interrupted_run_goes_on_and_a_finished_one_starts_anew(images, tmp_path):
    output = tmp_path / "out"
    interrupted(images, output, stop="3.jpg")
    assert len(names(output)) == 4  # with the records
    assert work(images, output) == {"done": [f"{i}.jpg" for i in range(3, 7)], "kept": 3, "total": 7, "failed": []}
    assert names(output) == [f"{i}_semantic.png" for i in range(7)]
    assert work(images, output)["kept"] == 0


@pytest.mark.parametrize("change", ["input", "result", "missing", "settings", "another image of the name"])
def test_what_has_changed_is_predicted_again(change, images, tmp_path):
    output = tmp_path / "out"
    interrupted(images, output, stop="3.jpg")
    if change == "input":
        images[0].write_text("another")
    elif change == "result":
        (output / "0_semantic.png").write_text("of another model")
    elif change == "missing":
        (output / "0_semantic.png").unlink()
    elif change == "another image of the name":
        images[0] = images[0].rename(images[0].with_suffix(".png"))
    report = work(images, output, {"json": True} if change == "settings" else {})
    assert report["kept"] == (0 if change == "settings" else 2)


def test_images_that_failed_are_reported_and_leave_no_records(images, tmp_path):
    report = work(images, tmp_path / "out", failing=["5.jpg"])
    assert report["failed"] == [(0, "5.jpg")]
    assert names(tmp_path / "out") == [f"{i}_semantic.png" for i in (0, 1, 2, 3, 4, 6)]


@pytest.mark.parametrize("local_size", [3, 1])
def test_each_image_is_done_once_by_processes_that_may_have_folders_of_their_own(local_size, images, tmp_path):
    def output(rank):
        return tmp_path / ("shared" if local_size == 3 else f"machine{rank}")

    first = together(tmp_path, lambda rank: work(images, output(rank), failing=["6.jpg"]), 3, local_size)
    assert [report["done"] for report in first] == [["0.jpg", "3.jpg", "6.jpg"], ["1.jpg", "4.jpg"], ["2.jpg", "5.jpg"]]
    assert all(report["failed"] == [(0, "6.jpg")] and report["total"] == 7 for report in first)
    # A launcher that starts a failed command again, here with fewer processes, repeats only what failed.
    again = together(tmp_path, lambda rank: work(images, output(rank)), 2, min(2, local_size))
    if local_size == 3:
        assert again == [{"done": done, "kept": 6, "total": 7, "failed": []} for done in (["6.jpg"], [])]
        assert names(tmp_path / "shared") == [f"{i}_semantic.png" for i in range(7)]
    else:  # the third machine is missing, and its results with it
        assert [report["kept"] for report in again] == [4, 4]
        assert [report["done"] for report in again] == [["2.jpg", "6.jpg"], ["5.jpg"]]


def test_a_process_that_finds_other_images_is_named(images, tmp_path):
    def refused(rank):
        with pytest.raises(SharingError, match="process 1 finds 6 images, process 0 finds 7"):
            work(images[: 7 - (rank == 1)], tmp_path / "out")

    assert together(tmp_path, refused, 2, 2) == [None, None]
    assert not (tmp_path / "out").exists()


def test_machines_may_have_their_images_in_different_folders(images, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("mask2former.prediction.sharing._LOG.warning", lambda *message: warned.append(message))

    def share(rank, **settings):
        folder = tmp_path / f"images{rank}"
        folder.mkdir(exist_ok=True)
        copies = [folder / image.name for image in images]
        for copy in copies:
            copy.touch()
        return ImageShare(copies, tmp_path / f"out{rank}", PREDICTOR, settings, [str(folder)]).images, len(warned)

    for settings, warnings in ((lambda rank: {}, [0, 0]), (lambda rank: {"weights": rank}, [1, 0])):
        shares = together(tmp_path, lambda rank, settings=settings: share(rank, **settings(rank)), 2, 1)
        assert [[int(image.stem) for image in mine] for mine, _ in shares] == [[0, 2, 4, 6], [1, 3, 5]]
        assert [count for _, count in shares] == warnings


def test_commands_with_other_inputs_have_other_records(images, tmp_path):
    interrupted(images, tmp_path / "out", stop="3.jpg")
    share = ImageShare(images, tmp_path / "out", PREDICTOR, {}, ["other"])
    assert share.kept == 0


def test_a_folder_of_inputs_is_no_folder_for_results(images, tmp_path):
    with pytest.raises(SharingError, match=r"0_semantic\.png would be an image of the next run"):
        ImageShare(images, images[0].parent, PREDICTOR, {}, [str(images[0].parent)])
    assert ImageShare(images, images[0].parent, PREDICTOR, {}, list(map(str, images))).total == 7


def test_records_are_json(images, tmp_path):
    interrupted(images, tmp_path / "out", stop="1.jpg")
    (lines,) = (tmp_path / "out").glob(".unfinished_*/rank0.jsonl")
    assert json.loads(lines.read_bytes().splitlines()[1][9:])[0] == "0_semantic"
