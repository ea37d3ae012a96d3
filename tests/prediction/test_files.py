"""Many files: what one of them causes is reported with its name, and the others are done."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former.prediction.files import FileDone, FileFailed, find_images, predict_files
from mask2former.prediction.results import SemanticPrediction
from mask2former.utils.input_files import first_found_again, output_stems
from tests.prediction.test_predictor import Recorder, predictor


class Picky(Recorder):
    """Fails for images that are brighter than the threshold, as libraries do for unusual pixels."""

    def predict(self, batched_inputs):
        if any(inputs["image"].max() > 200 for inputs in batched_inputs):
            raise IndexError("too bright")
        return super().predict(batched_inputs)


@pytest.fixture
def files(tmp_path):
    for name, value in {"a": 10, "bright": 250, "dark": 1, "z": 20}.items():
        Image.fromarray(np.full((20, 40, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "folder.png").mkdir()
    names = ("a", "half", "bright", "missing", "dark", "text", "folder", "z")
    return [tmp_path / f"{name}.png" for name in names]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_one_bad_file_never_ends_the_work_on_others(files, tmp_path, batch_size, monkeypatch):
    draw = SemanticPrediction.draw

    def refine(result):
        if result.image.max() == 1:
            raise TypeError("unlucky")
        return result

    def drawn(self, *arguments, **options):
        if self.image.max() == 20:
            raise ValueError("no colours")
        return draw(self, *arguments, **options)

    monkeypatch.setattr(SemanticPrediction, "draw", drawn)
    done = list(
        predict_files(
            predictor("semantic", Picky()),
            files,
            tmp_path / "out",
            with_json=True,
            batch_size=batch_size,
            refine=refine,
        )
    )
    assert [outcome.image for outcome in done] == files
    assert [type(outcome) for outcome in done] == [FileDone, *[FileFailed] * 7]
    for outcome, reason in zip(done[1:], ("half", "too bright", "no such file", "unlucky", "text", "folder", "no col"),
                               strict=True):  # fmt: skip
        assert str(outcome.image) in outcome.error and reason in outcome.error and "\n" not in outcome.error
    assert json.loads((tmp_path / "out" / "a_semantic.json").read_text())["file_name"] == str(files[0])


def test_inputs_that_the_system_refuses_are_named_and_the_others_found(files):
    folder = files[0].parent
    images, empty = find_images([str(files[0]), "x" * 5000, str(folder / "nothing*"), str(files[4])])
    assert images == [files[0], files[4]]
    assert empty == [f"{'x' * 5000} (File name too long)", str(folder / "nothing*")]


@pytest.mark.parametrize(
    ("inputs", "output", "found"),
    [
        (["photos"], "out", False),
        (["photos"], "photos/out", False),
        (["photos"], "photos", True),
        (["photos/"], "link", True),
        (["photos/*.jpg"], "photos", False),
        (["photos/*.png"], "photos", True),
        (["photos/../photos/[ab]*"], "photos", True),
        (["photos/c*"], "photos", False),
        (["photos/**/*.png"], "photos/out", True),
        (["photos/**/*.png"], "photos/.out", False),
        (["photos/a.png", "other"], "photos", False),
        (["photos/a.png", "photos"], "photos", True),
    ],
)
def test_results_that_a_later_run_would_take_for_images_are_known_before(inputs, output, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/out", "photos/.out", "other", "out"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("photos/a.png", "photos/a.jpg", "other/b.png"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("photos")
    images, _ = find_images(inputs)
    results = [stem.with_name(f"{stem.name}.png") for stem in output_stems(images, Path(output), "panoptic")]
    again = first_found_again(inputs, results)
    assert (again is not None) == found
    # The same is seen once the results are there.
    for result in results:
        result.touch()
    assert bool({path.resolve() for path in find_images(inputs)[0]} & {path.resolve() for path in results}) == found
