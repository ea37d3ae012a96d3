"""No class of a label map vanishes, whatever its pixels and its list of classes look like."""

import json
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.data import problems
from mask2former.data.build import repeat_factors
from mask2former.data.custom.class_list import SourceError, read_label_classes
from mask2former.data.custom.inspection import inspect_sources, render
from mask2former.data.custom.source import Source
from mask2former.data.custom.split import split
from mask2former.data.custom.training_files import derive
from mask2former.data.dataset_mapper import TrainingMapper, resize_and_crop
from mask2former.data.datasets import register_custom_datasets
from mask2former.data.label_maps import LabelCode, label_text
from mask2former.evaluation.coco import count_pixels
from mask2former.utils.label_images import write_png

from .conftest import scene, write


def palette(mask):
    image = Image.fromarray(mask, "P")
    image.putpalette([value for index in range(256) for value in (index, 37 * index % 256, 255 - index)])
    return image


# Images of a mask of zeros and ones.
WHITE = {
    "grey": lambda mask: Image.fromarray(mask * np.uint8(255)),
    "rgb": lambda mask: Image.fromarray(mask * np.uint8(255)).convert("RGB"),
    "rgba": lambda mask: Image.fromarray(mask * np.uint8(255)).convert("RGBA"),
    "grey with alpha": lambda mask: Image.fromarray(mask * np.uint8(255)).convert("LA"),
    "palette": lambda mask: palette(mask * np.uint8(255)),
    "16 bits": lambda mask: Image.fromarray(mask * np.uint16(255)),
}
ONE = {
    "grey": Image.fromarray,
    "1 bit": lambda mask: Image.fromarray(mask.astype(bool)),
    "palette": palette,
    "16 bits": lambda mask: Image.fromarray(mask.astype(np.uint16)),
}


def data(root, encode, count=3, ending=".png", classes="background\nlesion\n", fraction=3, first=0):
    """Images whose upper part is background and whose lower part is a lesion."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        mask = np.zeros((40, 60), np.uint8)
        mask[40 // fraction + number :] = 1
        Image.fromarray(scene(number)[0]).save(root / f"images/{number}.png")
        encode(mask).save(root / f"labels/{number}{ending}")
    if isinstance(classes, str):
        (root / "classes.txt").write_text(classes, encoding="utf-8")
        return Source(root / "images", labels=root / "labels", classes=root / "classes.txt")
    write(root / "classes.json", classes)
    return Source(root / "images", labels=root / "labels", classes=root / "classes.json")


def inspected(source, **changes):
    return inspect_sources([replace(source, **changes)], workers=1)


@pytest.mark.parametrize("encode", WHITE.values(), ids=WHITE)
def test_white_masks_are_refused_with_the_option_that_makes_them_usable(encode, tmp_path):
    source = data(tmp_path, encode)
    found = inspected(source)
    assert not found.usable
    assert problems.VANISHED in found.findings["train"].counts
    assert "lesion (1); pixels have 255: --map 255=1, or --ignore-label 255" in render(found)
    mapped = inspected(source, values={255: 1})
    assert mapped.usable and mapped.train.total("pixels").keys() == {0, 1}
    # What the user says is void is void.
    assert inspected(source, ignore_label=255).usable


@pytest.mark.parametrize("encode", ONE.values(), ids=ONE)
def test_masks_of_zeros_and_ones_are_usable(encode, tmp_path):
    found = inspected(data(tmp_path, encode))
    assert found.usable and found.train.total("pixels").keys() == {0, 1}


def test_white_masks_without_a_default_void(tmp_path):
    found = inspected(data(tmp_path, WHITE["grey"]), ignore_label=254)
    assert not found.usable and "--map 255=1" in render(found)


def test_masks_of_different_bit_depths_mean_the_same(tmp_path):
    data(tmp_path, ONE["1 bit"])
    source = data(tmp_path, WHITE["rgb"], first=3)
    found = inspected(source, values={255: 1})
    assert found.usable and found.train.images() == {0: 6, 1: 6}
    assert not inspected(source, values={}).train.total("others").keys() - {255}


@pytest.mark.parametrize("encode", [WHITE["grey"], WHITE["palette"], WHITE["16 bits"], WHITE["rgb"], ONE["1 bit"]])
def test_a_map_holds_in_training_evaluation_and_repeat_factors(encode, tmp_path, registered):
    source = data(tmp_path, encode)
    found = inspected(source, values={255: 1})
    parts = split(found.train, tmp_path / "split", share=0.4, seed=0)
    derived = [derive(part, f"made_{name}", tmp_path / "out" / name, 1) for name, part in parts.items()]
    entries = json.loads(json.dumps([dataset.entry() for dataset in derived]))
    assert [entry["name"] for entry in register_custom_datasets(entries, tmp_path)] == ["made_train", "made_val"]
    records = DatasetCatalog.get("made_train")
    assert len(records) == 2
    augmentations = resize_and_crop([40], 60, "choice", None, None, "none")
    mapper = TrainingMapper(augmentations, "semantic", num_classes=2, ignore_label=derived[0].ignore_label)
    assert mapper(records[0])["instances"].gt_classes.tolist() == [0, 1]
    factors = repeat_factors(records, "semantic", threshold=0.9, ignore_label=derived[0].ignore_label)
    assert factors.tolist() == [1, 1]
    files = []
    for record in records:
        truth = np.zeros((40, 60), np.uint8)
        truth[40 // 3 + int(record["image_id"]) :] = 1
        files.append((record["sem_seg_file_name"], write_png(tmp_path / f"{record['image_id']}.png", truth)))
    counts = count_pixels(files, 2, 2, void=derived[0].ignore_label, values=derived[0].values)
    assert counts[0, 1] == counts[1, 0] == 0 and counts[1, 1] > 0


def test_the_entry_keeps_the_map_and_the_files_where_they_are(tmp_path):
    source = data(tmp_path, WHITE["grey"])
    made = derive(inspected(source, values={255: 1}).train, "made", tmp_path / "out", 1)
    assert made.entry()["map"] == {255: 1} and made.paths["labels"] == source.labels
    assert not (tmp_path / "out").exists()


LESION_255 = [{"id": 0, "name": "background"}, {"id": 255, "name": "lesion"}]


def test_a_class_with_the_default_of_void_is_a_class(tmp_path, registered):
    source = data(tmp_path, WHITE["grey"], classes=LESION_255)
    found = inspected(source)
    assert found.usable and [c.name for c in found.categories] == ["background", "lesion"]
    made = derive(found.train, "made", tmp_path / "out", 1)
    register_custom_datasets([made.entry()], tmp_path)
    (first, *_) = DatasetCatalog.get("made")
    assert np.unique(np.array(Image.open(first["sem_seg_file_name"]))).tolist() == [0, 1]
    with pytest.raises(
        SourceError, match=r"'lesion' has the id 255, which --ignore-label says is void: .* such as 65535"
    ):
        inspected(source, ignore_label=255)
    assert inspected(source, ignore_label=254).usable


@pytest.mark.parametrize("name", ["void", "Void", "unlabeled", "unlabelled", "ignore", "ignore_label", "don't care"])
@pytest.mark.parametrize("ignore_label", [None, 255])
def test_an_entry_called_void_is_no_class(name, ignore_label, tmp_path):
    write(tmp_path / "c.json", [{"id": 0, "name": "road"}, {"id": 255, "name": name, "color": [1, 2, 3]}])
    found = read_label_classes(tmp_path / "c.json", ignore_label, {})
    assert [category.name for category in found.listed.categories] == ["road"]
    assert (found.void, found.void_color, found.assumed) == (255, (1, 2, 3), False)


def test_300_classes_keep_class_255(tmp_path, registered):
    names = "\n".join(f"class {number}" for number in range(300))
    source = data(tmp_path, lambda mask: Image.fromarray(np.where(mask, 255, 299).astype(np.uint16)), classes=names)
    found = inspected(source)
    assert found.usable and found.train.images() == {255: 3, 299: 3}
    assert inspected(source, ignore_label=65535).usable
    with pytest.raises(SourceError, match="'class 255' has the id 255"):
        inspected(source, ignore_label=255)
    made = derive(found.train, "made", tmp_path / "out", 1)
    assert (made.ignore_label, made.paths["labels"]) == (65535, source.labels)
    # An entry of a config without ignore_label means the same.
    entry = {key: value for key, value in made.entry().items() if key != "ignore_label"}
    assert register_custom_datasets([entry], tmp_path)[0]["ignore_label"] == 65535
    record = DatasetCatalog.get("made")[0]
    augmentations = resize_and_crop([40], 60, "choice", None, None, "none")
    mapper = TrainingMapper(augmentations, "semantic", num_classes=300, ignore_label=65535)
    assert mapper(record)["instances"].gt_classes.tolist() == [255, 299]
    predicted = write_png(tmp_path / "p.png", np.full((40, 60), 255, np.uint16))
    counts = count_pixels([(record["sem_seg_file_name"], predicted)], 300, 300, void=65535)
    assert counts[255, 255] > 0 and counts[299, 255] > 0 and counts.sum() == 2400


def test_labels_that_begin_with_1(tmp_path):
    """As in ADE20K: 0 is void, and the list has no ids."""
    source = data(tmp_path, lambda mask: Image.fromarray(np.pad(mask[:, 2:] + 1, ((0, 0), (2, 0))).astype(np.uint8)))
    found = inspected(source)
    assert not found.usable and "--ignore-label 0" in render(found)
    assert inspected(source, ignore_label=0).usable
    # Reduced already: then the list must not begin with 1.
    again = data(tmp_path / "b", Image.fromarray)
    found = inspected(again, ignore_label=0)
    assert not found.usable and problems.SHIFTED in found.findings["train"].counts


def test_values_that_differ_between_the_splits(tmp_path):
    train, val = data(tmp_path / "a", Image.fromarray), data(tmp_path / "b", WHITE["grey"], first=7, count=2)
    found = inspect_sources([train, replace(val, split="val")], workers=1)
    assert not found.usable
    assert found.findings["val"].examples[problems.VANISHED] == [
        "lesion (1); pixels have 255: --map 255=1, or --ignore-label 255 if that is void"
    ]
    assert inspect_sources(
        [replace(of, values={255: 1}) for of in (train, replace(val, split="val"))], workers=1
    ).usable


def test_a_class_that_is_only_missing_stays_a_note(tmp_path):
    source = data(tmp_path, Image.fromarray, classes="background\nlesion\nscar\n")
    found = inspected(source)
    assert found.usable and problems.NEVER_USED in found.findings["train"].counts
    void = data(tmp_path / "void", lambda mask: Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)))
    assert inspected(void, ignore_label=255).usable


def test_a_single_class_is_noted_with_its_value(tmp_path):
    found = inspected(data(tmp_path, WHITE["grey"], classes="lesion\n"))
    assert found.usable
    assert found.findings["train"].examples[problems.SINGLE_CLASS] == ["lesion is 0; void is 255"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({255: 5}, r"--map 255=5: .*classes.txt has no class with the id 5 \(its ids are 0 to 1\), and void is 254"),
        ({254: 1}, "--map 254=1: --ignore-label says that 254 is void"),
    ],
)
def test_a_map_that_means_nothing(values, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        inspected(data(tmp_path, WHITE["grey"]), values=values, ignore_label=254)


def test_a_map_to_void(tmp_path):
    encode = lambda mask: Image.fromarray(np.pad(mask[:, 2:] + 1, ((0, 0), (2, 0))).astype(np.uint8))  # noqa: E731
    found = inspected(data(tmp_path, encode), values={0: 255, 1: 0, 2: 1})
    assert found.usable and found.train.images() == {0: 3, 1: 3} and found.train.total("others").keys() == {255}


@pytest.mark.parametrize(
    ("pixels", "ids"),
    [
        (np.array([[0, 1, -1]], np.int32), [0, 1, -1]),
        (np.array([[0, 1, 2]], np.float32), [0, 1, 2]),
        (np.array([[0, 1000, 70000]], np.int32), [0, 1000, 70000]),
    ],
)
def test_unusual_types_are_read_as_they_are(pixels, ids, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert LabelCode().read(tmp_path / "a.tif")[0].tolist() == [ids]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0, 0.5]], np.float32), r"a\.tif: a label map has whole numbers, found 0\.5"),
        (np.array([[0, np.nan]], np.float32), r"a\.tif: a label map has whole numbers, found nan"),
        (np.array([[0, 1 << 30]], np.int32), r"a\.tif: values from 0 to 1073741824 are no class ids"),
    ],
)
def test_what_is_no_label_map_is_refused(pixels, message, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=message):
        LabelCode().read(tmp_path / "a.tif")


def test_negative_void_is_converted(tmp_path, registered):
    encode = lambda mask: Image.fromarray(np.where(mask, 1, -1).astype(np.int32))  # noqa: E731
    classes = [{"id": 1, "name": "lesion"}]
    found = inspected(data(tmp_path, encode, ending=".tif", classes=classes), ignore_label=-1)
    assert found.usable
    made = derive(found.train, "made", tmp_path / "out", 1)
    assert np.unique(np.array(Image.open(made.paths["labels"] / "0.png"))).tolist() == [0, 255]
    assert "-1" in render(inspected(data(tmp_path, encode, ending=".tif", classes=classes)))


def test_colours_that_the_list_lacks_are_named(tmp_path):
    red = lambda mask: Image.fromarray(np.stack([mask * np.uint8(200), 0 * mask, 0 * mask], axis=2))  # noqa: E731
    found = inspected(data(tmp_path, red))
    assert not found.usable and "colour (200, 0, 0)" in render(found) and "their colours in the list" in render(found)
    listed = [{"name": "background", "color": [0, 0, 0]}, {"name": "lesion", "color": [200, 0, 0]}]
    assert inspected(data(tmp_path, red, classes=listed)).usable
    # In a list with colours, grey is a colour and no id.
    listed[0]["color"] = [9, 9, 9]
    grey = data(tmp_path, lambda mask: Image.fromarray(mask).convert("RGB"), classes=listed)
    assert "colour (1, 1, 1)" in render(inspected(grey))
    assert label_text(int(LabelCode(grey_is_id=False).read(tmp_path / "labels/0.png")[0][0, 0])) == "colour (0, 0, 0)"
