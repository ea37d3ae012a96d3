import filecmp
import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from numpy.random import RandomState
from pycocotools.coco import COCO

from mask2former.data.datasets.shapes import CATEGORIES, draw_scene
from mask2former.data.image_io import read_image, read_label_map, read_panoptic_ids

from .conftest import SHAPES


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(RandomState([8, i]), 96) for i in range(100)]


def test_segments_do_not_overlap_and_leave_little_void(scenes):
    void = []
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == np.uint8
        covered = sum(segment.mask.astype(int) for segment in scene.segments)
        assert covered.max() == 1
        void.append((covered == 0).mean())
    assert 0 < np.mean(void) < 0.02
    assert max(void) < 0.1


def test_scenes_have_all_that_matters(scenes):
    segments = [segment for scene in scenes for segment in scene.segments]
    assert {segment.category for segment in segments} == set(CATEGORIES)
    assert 0 < sum(segment.iscrowd for segment in segments) < 20
    things = [[s for s in scene.segments if s.category.isthing and not s.iscrowd] for scene in scenes]
    counts = [len(in_scene) for in_scene in things]
    assert min(counts) == 0
    assert 3 < np.mean(counts) < 6.5
    touching = sum(
        (grow(first.mask) & second.mask).any()
        for in_scene in things
        for i, first in enumerate(in_scene)
        for second in in_scene[:i]
        if first.category == second.category
    )
    assert touching > len(scenes) / 4, "separating instances of one class has to matter"
    assert all(segment.mask.sum() >= 20 for in_scene in things for segment in in_scene)


def grow(mask):
    grown = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(mask, step, axis)
    return grown


def test_color_does_not_give_the_class_away(scenes):
    # Guess the class of a thing from the nearest mean colour of the other scenes' things.
    colors, classes = [], []
    for scene in scenes:
        for segment in scene.segments:
            if segment.category.isthing and not segment.iscrowd:
                colors.append(scene.image[segment.mask].mean(axis=0))
                classes.append(CATEGORIES.index(segment.category))
    distances = np.linalg.norm(np.array(colors)[:, None] - np.array(colors), axis=2)
    np.fill_diagonal(distances, np.inf)
    guesses = np.array(classes)[distances.argmin(axis=1)]
    # Colours lean towards a class on purpose, so that a small model learns in minutes; shape has to decide the rest.
    assert (guesses == classes).mean() < 0.95


def test_same_seed_same_scene():
    first, second, other = (draw_scene(RandomState(seed), 64) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, second.image)
    assert len(first.segments) == len(second.segments)
    assert not np.array_equal(first.image, other.image)


def test_annotation_files_agree(shapes):
    for split in ("train", "val"):
        panoptic = json.loads((shapes / f"annotations/panoptic_{split}.json").read_text())
        coco = COCO(str(shapes / f"annotations/instances_{split}.json"))
        assert len(panoptic["images"]) == len(coco.imgs) == SHAPES[split]
        assert [c["name"] for c in panoptic["categories"]] == [c.name for c in CATEGORIES]
        assert [c["isthing"] for c in panoptic["categories"]] == [int(c.isthing) for c in CATEGORIES]
        index = {category.id: i for i, category in enumerate(CATEGORIES)}
        for annotation in panoptic["annotations"]:
            stem = annotation["file_name"].removesuffix(".png")
            ids = read_panoptic_ids(shapes / f"panoptic_{split}/{stem}.png")
            labels = read_label_map(shapes / f"panoptic_semseg_{split}/{stem}.png")
            assert read_image(shapes / split / f"{stem}.jpg").shape == (64, 64, 3)
            segments = {segment["id"]: segment for segment in annotation["segments_info"]}
            assert set(np.unique(ids)) - {0} == set(segments)
            np.testing.assert_array_equal(labels == 255, ids == 0)
            things = coco.loadAnns(coco.getAnnIds(annotation["image_id"]))
            masks = [coco.annToMask(thing).astype(bool) for thing in things]
            for segment_id, segment in segments.items():
                mask = ids == segment_id
                assert mask.sum() == segment["area"]
                assert (labels[mask] == index[segment["category_id"]]).all()
                x, y, width, height = segment["bbox"]
                assert not mask.sum() - mask[y : y + height, x : x + width].sum()
                if CATEGORIES[index[segment["category_id"]]].isthing:
                    (thing,) = [t for t, m in zip(things, masks, strict=True) if np.array_equal(m, mask)]
                    for key in ("category_id", "area", "bbox", "iscrowd"):
                        assert thing[key] == segment[key]
            assert len(things) == sum(CATEGORIES[index[s["category_id"]]].isthing for s in segments.values())


def test_splits_differ(shapes):
    train, val = (
        {
            record["image_id"]: read_image(record["file_name"])
            for record in DatasetCatalog.get(f"shapes_{split}_panoptic")
        }
        for split in ("train", "val")
    )
    assert not train.keys() & val.keys()
    assert not any(np.array_equal(a, b) for a in train.values() for b in val.values())


def test_finished_set_is_left_alone(prepare_shapes, shapes, capsys):
    times = {path: path.stat().st_mtime_ns for path in shapes.rglob("*")}
    assert prepare_shapes.prepare(shapes.parent, **SHAPES) == shapes
    assert {path: path.stat().st_mtime_ns for path in shapes.rglob("*")} == times
    assert "complete" in capsys.readouterr().out
    assert not (shapes.parent / "shapes.partial").exists()


def test_interrupted_set_is_completed(prepare_shapes, shapes, tmp_path, monkeypatch):
    drawn = []
    draw = prepare_shapes.draw_scene

    def fail_at_sixth(rng, size):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(size)
        return draw(rng, size)

    monkeypatch.setattr(prepare_shapes, "draw_scene", fail_at_sixth)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes.prepare(tmp_path, **SHAPES)
    assert not (tmp_path / "shapes").exists()
    monkeypatch.setattr(prepare_shapes, "draw_scene", lambda rng, size: drawn.append(size) or draw(rng, size))
    prepare_shapes.prepare(tmp_path, **SHAPES)
    assert len(drawn) == SHAPES["train"] + SHAPES["val"], "what was drawn is not drawn again"
    assert tree(tmp_path / "shapes") == tree(shapes)


def test_other_options_replace(prepare_shapes, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "shapes")
    prepare_shapes.prepare(tmp_path, **{**SHAPES, "train": 2, "val": 1})
    assert len(list((tmp_path / "shapes/train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    # An image depends on the seed and its number alone.
    for path in (tmp_path / "shapes/train").iterdir():
        assert filecmp.cmp(path, shapes / "train" / path.name, shallow=False)
    prepare_shapes.prepare(tmp_path, **{**SHAPES, "train": 2, "val": 1, "seed": 4})
    for path in (tmp_path / "shapes/train").iterdir():
        assert not filecmp.cmp(path, shapes / "train" / path.name, shallow=False)


def test_command_line(prepare_shapes, tmp_path, capsys):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes/mine.txt").touch()
    with pytest.raises(SystemExit, match="1"):
        prepare_shapes.main(["--root", str(tmp_path)])
    assert str(tmp_path / "shapes") in capsys.readouterr().err
    assert (tmp_path / "shapes/mine.txt").exists()
    with pytest.raises(SystemExit, match="1"):
        prepare_shapes.main(["--root", str(tmp_path), "--size", "8"])
    assert "size >= 48" in capsys.readouterr().err
    root = tmp_path / "new"
    assert prepare_shapes.main(["--root", str(root), "--train", "1", "--val", "1", "--size", "48"]) == 0
    assert (root / "shapes/annotations/panoptic_val.json").exists()
