"""The benchmark of evaluation compares equal numbers, whatever the size of the images and how often it repeats."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES


@pytest.mark.parametrize(("size", "instances"), [((48, 64), 20), ((33, 95), 1)])
def test_both_tools_have_equal_numbers(size, instances, load_benchmark, tmp_path):
    pytest.importorskip("panopticapi", reason="panopticapi is optional and not installed")
    script = load_benchmark("evaluate")
    scenes = [script.draw(index, size, instances, COCO_CATEGORIES) for index in range(3)]
    script.register(script.NAME, tmp_path, [scene.truth for scene in scenes], COCO_CATEGORIES)
    try:
        rows = {row["metric"]: row for row in script.compare(scenes, tmp_path, repeats=2)}
    finally:
        DatasetCatalog.remove(script.NAME)
        MetadataCatalog.remove(script.NAME)
    assert list(rows) == ["AP", "PQ", "mIoU", "all three"]
    for name in ("AP", "PQ", "mIoU"):
        assert rows[name]["difference"] < 1e-9 and rows[name]["%"] > 0
        assert rows[name]["all: ours (s)"] >= rows[name]["alone: ours (s)"] > 0
    total = sum(rows[name]["reference (s)"] for name in ("AP", "PQ", "mIoU"))
    assert rows["all three"]["reference (s)"] == pytest.approx(total)
