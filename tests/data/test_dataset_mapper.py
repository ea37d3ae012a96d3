import copy
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MapDataset
from detectron2.data import transforms as T
from PIL import Image

from dinat_common.errors import UserError
from mask2former.data.dataset_mapper import TestMapper, TrainingMapper, large_scale_jitter, resize_and_crop
from mask2former.data.datasets import AnnotationError
from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids

UNCHANGED = T.AugmentationList([])


def mapper(kind, augmentations=UNCHANGED, **options):
    return TrainingMapper(augmentations, kind, num_classes=10, **options)


@pytest.fixture
def panoptic(shapes):
    return DatasetCatalog.get("shapes_train_panoptic")


def test_panoptic_targets_are_the_segments(panoptic):
    for record in panoptic:
        mapped = mapper("panoptic")(record)
        ids = read_panoptic_ids(record["pan_seg_file_name"])
        segments = [segment for segment in record["segments_info"] if not segment["iscrowd"]]
        assert mapped["instances"].gt_classes.tolist() == [segment["category_id"] for segment in segments]
        for segment, mask in zip(segments, mapped["instances"].gt_masks, strict=True):
            np.testing.assert_array_equal(mask, ids == segment["id"])
        assert {key: mapped[key] for key in ("file_name", "image_id", "height", "width")} == {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "height": 64,
            "width": 64,
        }
        np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), read_image(record["file_name"]))


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_void_is_marked_on_demand_and_has_no_target(kind, shapes):
    crop = large_scale_jitter(96, 0.5, 0.9, "horizontal")
    some_void = False
    for record in DatasetCatalog.get(f"shapes_train_{kind}"):
        np.random.seed(3)
        plain = mapper(kind, crop, size_divisibility=64)(record)
        np.random.seed(3)
        mapped = mapper(kind, crop, size_divisibility=64, mark_void=True)(record)
        assert "void" not in plain
        assert torch.equal(mapped["instances"].gt_masks, plain["instances"].gt_masks)
        void, labelled = mapped["void"], mapped["instances"].gt_masks.any(0)
        assert void.dtype == torch.bool and void.shape == mapped["image"].shape[1:]
        assert not (void & labelled).any()
        # Images fill less than 0.9 of the crop of 96 pixels, which is padded to 128.
        assert void[90:].all() and void[:, 90:].all()
        if kind != "instance":
            # The rest is all labelled or void.
            assert (void | labelled).all()
        else:
            assert not (void | labelled).all(), "background of instances is known to be background"
        some_void |= bool(void[:40, :40].any())
    # The few instances here have no crowd; tests/data/test_targets.py has.
    assert some_void or kind == "instance"


def test_three_kinds_agree(panoptic):
    instance = DatasetCatalog.get("shapes_train_instance")
    semantic = DatasetCatalog.get("shapes_train_semantic")
    for dicts in zip(panoptic, instance, semantic, strict=True):
        segments, things, classes = (
            mapper(kind)(record)["instances"]
            for kind, record in zip(("panoptic", "instance", "semantic"), dicts, strict=True)
        )
        # Things have contiguous ids 0 to 5 in both numberings.
        is_thing = segments.gt_classes < 4
        assert torch.equal(segments.gt_classes[is_thing], things.gt_classes)
        assert torch.equal(segments.gt_masks[is_thing], things.gt_masks)
        for class_id, mask in zip(classes.gt_classes, classes.gt_masks, strict=True):
            parts = segments.gt_masks[segments.gt_classes == class_id].any(dim=0)
            # Crowds are classes of pixels, but no segments.
            assert (mask >= parts).all()


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("recipe", ["jitter", "crop"])
def test_form_of_the_output(shapes, kind, recipe):
    np.random.seed(0)
    if recipe == "jitter":
        mapped_by = mapper(kind, large_scale_jitter(48, 0.1, 2.0, "horizontal"))
        sides = (48, 48)
    else:
        crop = T.RandomCrop_CategoryAreaConstraint("absolute", (50, 60), 1.0, 255)
        augmentations = resize_and_crop([40, 64, 90], 100, "choice", crop, "RGB", "horizontal")
        mapped_by = mapper(kind, augmentations, size_divisibility=64)
        sides = (64, 64)
    for record in DatasetCatalog.get(f"shapes_train_{kind}"):
        before = copy.deepcopy(record)
        mapped = mapped_by(record)
        assert record == before
        assert mapped["image"].dtype == torch.uint8
        assert mapped["image"].shape == (3, *sides)
        instances = mapped["instances"]
        assert instances.image_size == sides
        assert type(instances.gt_masks) is torch.Tensor
        assert instances.gt_masks.dtype == torch.bool
        assert instances.gt_masks.shape == (len(instances), *sides)
        assert instances.gt_classes.dtype == torch.int64
        assert instances.gt_masks.sum(dim=0).max() <= 1
        # What was padded is grey, and belongs to no segment.
        padded = (mapped["image"] == 128).all(dim=0).flip(0, 1).cummin(0).values.cummin(1).values.flip(0, 1)
        assert not (instances.gt_masks & padded).any()


def test_masks_follow_the_image(shapes, tmp_path):
    # The image is its own label: whatever is done to it, white is the segment.
    rng = np.random.default_rng(0)
    label = np.zeros((40, 56), np.uint8)
    for _ in range(3):
        top, left = rng.integers(0, 25), rng.integers(0, 40)
        label[top : top + 15, left : left + 16] = 1
    Image.fromarray(np.repeat(255 * label[:, :, None], 3, axis=2)).save(tmp_path / "image.png")
    Image.fromarray(np.dstack([label, 0 * label, 0 * label])).save(tmp_path / "panoptic.png")
    Image.fromarray(label).save(tmp_path / "semantic.png")
    record = {
        "file_name": str(tmp_path / "image.png"),
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "sem_seg_file_name": str(tmp_path / "semantic.png"),
        "segments_info": [{"id": 1, "category_id": 1, "iscrowd": 0}],
    }
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (50, 60), 1.0, 255)
    for augmentations in (
        large_scale_jitter(48, 0.5, 2.0, "horizontal"),
        resize_and_crop([40, 64, 90], 100, "choice", crop, None, "horizontal"),
    ):
        for kind in ("panoptic", "semantic"):
            for seed in range(5):
                np.random.seed(seed)
                mapped = mapper(kind, augmentations, size_divisibility=16)(record)
                targets = mapped["instances"]
                white = mapped["image"][0] > 200
                black = mapped["image"][0] < 55
                mask = targets.gt_masks[targets.gt_classes == 1].any(dim=0)
                # Grey is padding or lies on an edge; nearest pixels are up to one off.
                assert mask[white].float().mean() > 0.9
                assert not white.any() or mask[black].float().mean() < 0.1


def test_emptied_segments(panoptic):
    record = panoptic[0]
    corner = T.AugmentationList([T.CropTransform(0, 0, 4, 4)])
    kept = mapper("panoptic", corner)(record)["instances"]
    dropped = mapper("panoptic", corner, drop_empty_targets=True)(record)["instances"]
    assert len(kept) == sum(not segment["iscrowd"] for segment in record["segments_info"])
    filled = kept.gt_masks.any(dim=(1, 2))
    assert 0 < filled.sum() < len(kept)
    assert torch.equal(dropped.gt_classes, kept.gt_classes[filled])
    assert torch.equal(dropped.gt_masks, kept.gt_masks[filled])
    gone = {**record, "segments_info": [{"id": 2**24 - 1, "category_id": 4}]}
    nothing = mapper("panoptic", corner, drop_empty_targets=True)(gone)["instances"]
    assert nothing.gt_classes.shape == (0,) and nothing.gt_classes.dtype == torch.int64
    assert nothing.gt_masks.shape == (0, 4, 4) and nothing.gt_masks.dtype == torch.bool


def test_semantic_labels_are_resized_like_floats(shapes):
    # PyTorch's nearest pixel, as in the published runs; Pillow, which uint8 labels would go through, takes another.
    (record, *_) = DatasetCatalog.get("shapes_train_semantic")
    enlarge = T.AugmentationList([T.ResizeTransform(64, 64, 97, 97)])
    targets = mapper("semantic", enlarge)(record)["instances"]
    labels = torch.from_numpy(read_label_map(record["sem_seg_file_name"]).astype(np.float64))
    expected = torch.nn.functional.interpolate(labels[None, None], (97, 97), mode="nearest")[0, 0]
    for class_id, mask in zip(targets.gt_classes, targets.gt_masks, strict=True):
        assert torch.equal(mask, expected == class_id)


def test_a_seed_decides_everything(panoptic):
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (50, 60), 0.8, 255)
    augmentations = resize_and_crop([40, 64, 90], 100, "choice", crop, "RGB", "horizontal")
    mapped_by = mapper("panoptic", augmentations, size_divisibility=64, augment_with_semantic_map=True)
    images = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        random.seed(seed)
        images.append(mapped_by(panoptic[0])["image"])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_bgr(panoptic):
    rgb = mapper("panoptic")(panoptic[0])["image"]
    assert torch.equal(mapper("panoptic", image_format="BGR")(panoptic[0])["image"], rgb.flip(0))


def test_image_without_targets(panoptic):
    mapped = mapper("panoptic", size_divisibility=48)({**panoptic[0], "segments_info": []})
    assert len(mapped["instances"]) == 0
    assert mapped["instances"].gt_masks.shape == (0, 96, 96)


def test_errors_name_the_file(panoptic, tmp_path):
    record = panoptic[0]
    small = tmp_path / "small.png"
    Image.new("RGB", (5, 4)).save(small)
    with pytest.raises(ImageReadError, match=r"gone\.jpg"):
        mapper("panoptic")({**record, "file_name": "gone.jpg"})
    with pytest.raises(ImageReadError, match=r"gone\.png"):
        mapper("panoptic")({**record, "pan_seg_file_name": "gone.png"})
    with pytest.raises(ImageReadError, match=r"small\.png.*\(4, 5\).*\(64, 64\)"):
        mapper("panoptic")({**record, "pan_seg_file_name": str(small)})
    with pytest.raises(AnnotationError, match=rf"{record['file_name']}: the image has height 64, annotated 65 pixels"):
        mapper("panoptic")({**record, "height": 65, "width": 64})
    with pytest.raises(AnnotationError, match=r"\.jpg: no 'annotations'.*DATASET_MAPPER_NAME"):
        mapper("instance")(record)
    with pytest.raises(AnnotationError, match=r"annotations of .*\.jpg: .*found NoneType"):
        mapper("instance")({**record, "annotations": [{"category_id": 0}]})
    for counts in ([-3, 2], [5, 64 * 64]):
        damaged = {"category_id": 0, "segmentation": {"size": [64, 64], "counts": counts}}
        with pytest.raises(AnnotationError, match=r"annotations of .*\.jpg: .*(RLE|counts)"):
            mapper("instance")({**record, "annotations": [damaged]})
    with pytest.raises(AnnotationError, match=r"\.jpg: class ids from 10 to 10.*0 to 9"):
        segments = [{**record["segments_info"][0], "category_id": 10}]
        mapper("panoptic")({**record, "segments_info": segments})
    del record["sem_seg_file_name"]
    with pytest.raises(AnnotationError, match=r"\.jpg: no 'sem_seg_file_name'"):
        mapper("panoptic", augment_with_semantic_map=True)(record)


def test_test_mapper_reads_no_annotations(panoptic):
    resize = T.AugmentationList([T.ResizeShortestEdge([80], 100, "choice")])
    record = {**panoptic[0], "pan_seg_file_name": "gone.png", "sem_seg_file_name": "gone.png"}
    mapped = TestMapper(resize)(record)
    assert mapped["image"].shape == (3, 80, 80)
    assert mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (64, 64, record["image_id"])
    assert mapped.keys() == {"file_name", "image_id", "height", "width", "image"}


@pytest.mark.parametrize(
    ("annotation", "cause"),
    [
        ({"segmentation": {"size": [64, 64], "counts": "PPYo1"}}, ""),
        ({"segmentation": [[1, 2, "x", 4, 5, 6]]}, "could not convert"),
        ({"segmentation": [[1, 2, 3]]}, "cannot reshape"),
        ({"segmentation": None}, "found NoneType"),
        ({}, "found NoneType"),
        ({"segmentation": {"size": [64, 64]}}, "'counts'"),
        ({"segmentation": {"size": [64, 63], "counts": [64 * 63]}}, "of size"),
    ],
)
def test_every_error_of_data_is_one_line_that_names_the_file(annotation, cause, picture):
    with pytest.raises(UserError, match=f"picture.png: .*{cause}") as caught:
        list(loader_of_one(picture, annotation, workers=0))
    assert len(str(caught.value).splitlines()) == 1


def test_errors_of_worker_processes_are_one_line_of_the_same_class(picture):
    with pytest.raises(AnnotationError, match=r"^\S*annotations of .*picture\.png: expected .* found NoneType: .*$"):
        list(loader_of_one(picture, {}, workers=1))


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def loader_of_one(picture, annotation, workers):
    mapper = TrainingMapper(T.AugmentationList([]), "instance", num_classes=2)
    record = {"file_name": str(picture), "annotations": [{"category_id": 0, "iscrowd": 0, **annotation}]}
    return torch.utils.data.DataLoader(MapDataset([record], mapper), num_workers=workers, collate_fn=list)


def test_errors_that_no_one_thought_of_name_the_image(picture):
    class Broken(T.Augmentation):
        def get_transform(self, image):
            raise ZeroDivisionError("division by\nzero")

    with pytest.raises(AnnotationError, match=r"picture\.png: .*can't be used: ZeroDivisionError: division by zero$"):
        TestMapper(T.AugmentationList([Broken()]))({"file_name": str(picture)})
