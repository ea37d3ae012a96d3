"""Data sets of class folders: ImageNet's, and those of DATASETS.CUSTOM."""

import copy
import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.config import ConfigError
from mask2former.data.datasets import AnnotationError, MissingDatasetError, register_custom_datasets
from mask2former.data.datasets.class_folders import ClassImages, class_folders, read_class_folders
from mask2former.data.datasets.imagenet import CLASSES
from mask2former.tasks import possible_tasks


def make(root, **classes):
    """Folders with empty files; nothing here opens an image."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file in files:
            (root / name / file).touch()
    return root


@pytest.fixture
def pets(tmp_path):
    return make(tmp_path / "pets", dog=["b.JPEG", "a.jpg", ".hidden"], cat=["ü.png"], eel=["1.webp", "2.webp"])


def test_ids_follow_the_names_of_folders_and_images_are_sorted(pets):
    images = read_class_folders(pets, class_folders(pets))
    assert [(image["image_id"], image["label"]) for image in images] == [
        ("cat/ü.png", 0),
        ("dog/a.jpg", 1),
        ("dog/b.JPEG", 1),
        ("eel/1.webp", 2),
        ("eel/2.webp", 2),
    ]
    assert images[-1]["file_name"] == str(pets / "eel" / "2.webp")
    assert images.counts() == [1, 2, 2]
    assert list(copy.deepcopy(images)) == list(images)


def test_a_million_names_take_little_memory():
    names = [[f"n{c:08d}_{i}.JPEG" for i in range(200)] for c in range(100)]
    images = ClassImages("/data", [f"n{c:08d}" for c in range(100)], names)
    assert len(pickle.dumps(images)) < 40 * len(images)
    assert images[12345]["image_id"] == "n00000061/n00000061_145.JPEG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "labels.txt").touch(), r"labels\.txt: a file beside the class folders"),
        (lambda root: (root / "cat" / "Thumbs.db").touch(), r"Thumbs\.db: not an image; class folders contain"),
        (lambda root: (root / "cat" / "more").mkdir(), r"more: a folder; class folders contain"),
        (lambda root: (root / "fox").mkdir(), "fox: no image of this class"),
    ],
)
def test_what_does_not_belong_there_is_named_in_one_line(pets, change, message):
    change(pets)
    with pytest.raises(AnnotationError, match=message) as error:
        read_class_folders(pets, class_folders(pets))
    assert len(str(error.value).splitlines()) == 1


def entry(images, **more):
    return {"name": images.name, "format": "class_folders", "images": str(images), **more}


def test_an_entry_of_a_config_takes_its_classes_from_the_folders_or_from_a_list(pets):
    (complete,) = register_custom_datasets([entry(pets)], "")
    assert [c["name"] for c in complete["classes"]] == ["cat", "dog", "eel"]
    assert "ignore_label" not in complete
    metadata = MetadataCatalog.get("pets")
    assert possible_tasks(metadata) == ("classification",)
    assert len(DatasetCatalog.get("pets")) == 5
    # The complete entry needs no files.
    moved = {**complete, "images": str(pets.with_name("gone"))}
    assert register_custom_datasets([moved], "") == [moved]
    with pytest.raises(MissingDatasetError, match="gone"):
        DatasetCatalog.get("pets")
    # The order of the list numbers the classes.
    register_custom_datasets([entry(pets, classes=["eel", "dog", "cat"])], "")
    assert DatasetCatalog.get("pets")[0]["label"] == 0 and "eel" in DatasetCatalog.get("pets")[0]["file_name"]


def test_a_list_of_files_chooses_images(pets, tmp_path):
    (tmp_path / "list.txt").write_text("eel/2.webp\ncat/ü.png\n", encoding="utf-8")
    register_custom_datasets([entry(pets, files=str(tmp_path / "list.txt"))], "")
    assert [image["image_id"] for image in DatasetCatalog.get("pets")] == ["cat/ü.png", "eel/2.webp"]
    (tmp_path / "list.txt").write_text("eel/3.webp\n")
    with pytest.raises(AnnotationError, match=r"no image eel/3\.webp in"):
        DatasetCatalog.get("pets")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "dog"], "class folder 'eel' is not one that the list of classes has"),
        (["cat", "dog", "eel", "fox"], "no class folder 'fox'"),
    ],
)
def test_classes_of_a_config_must_be_the_folders(pets, classes, message):
    register_custom_datasets([entry(pets, classes=classes)], "")
    with pytest.raises(AnnotationError, match=message):
        DatasetCatalog.get("pets")


def test_an_entry_without_classes_and_folders_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no folder with class folders"):
        register_custom_datasets([entry(tmp_path / "nowhere")], "")
    with pytest.raises(ConfigError, match="unknown key 'ignore_label'"):
        register_custom_datasets([entry(tmp_path, ignore_label=3)], "")


def test_imagenet_has_its_classes_without_files_and_must_have_all_of_its_folders(tmp_path, monkeypatch):
    assert len(CLASSES) == 1000 and CLASSES[0] == "tench" and CLASSES[999] == "toilet tissue"
    assert possible_tasks(MetadataCatalog.get("imagenet_val")) == ("classification",)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(MissingDatasetError, match=r"imagenet/val.*image-net\.org"):
        DatasetCatalog.get("imagenet_val")
    make(tmp_path / "imagenet" / "val", n1=["a.JPEG"], n2=["a.JPEG"])
    with pytest.raises(AnnotationError, match="2 class folders, data set imagenet_val has 1000 classes"):
        DatasetCatalog.get("imagenet_val")
    make(tmp_path / "imagenet" / "train", n1=["a.JPEG"], n3=["a.JPEG"])
    with pytest.raises(AnnotationError, match=r"val: no class folder 'n3', which .*train has"):
        DatasetCatalog.get("imagenet_val")
