"""Input of classifiers: published evaluation transform, training augmentation, and its draws."""

import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from dinat_common.errors import ConfigError, MissingPackageError
from mask2former import setup_cfg
from mask2former.data.build import build_test_transform
from mask2former.data.classification import (
    build_batch_augmentation,
    build_classification_mapper,
    build_evaluation_transform,
)
from mask2former.data.dataset_mapper import TestMapper
from mask2former.data.datasets import AnnotationError
from mask2former.data.training_order import TrainingLoader
from tests.conftest import ROOT

FIXTURE = json.loads((ROOT / "tests/parity/classification.json").read_text())["preprocess"]
OUTPUTS = np.load(ROOT / "tests/parity/classification.npz")


def config(**changes):
    opts = [word for key, value in changes.items() for word in (key.replace("__", "."), str(value))]
    return setup_cfg(ROOT / "configs/_base_/classification.yaml", ["MODEL.CLASSIFIER.NUM_CLASSES", "5", *opts])


@pytest.mark.parametrize("entry", FIXTURE, ids=lambda entry: entry["image"][0])
def test_evaluation_transform_gives_the_published_bytes(entry, deterministic):
    image = deterministic.image(*entry["image"]).transpose(1, 2, 0)
    cfg = config(INPUT__CLASSIFICATION__SIZE=entry["size"], INPUT__CLASSIFICATION__CROP_PCT=entry["crop_pct"])
    got = build_evaluation_transform(cfg)(image)
    assert np.array_equal(got.transpose(2, 0, 1)[:, 3::8, 3::8], OUTPUTS[f"preprocess.{entry['image'][0]}"])


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("photo.JPEG", "RGB", {"quality": 90}),
        ("grey.jpg", "L", {}),
        ("cmyk.jpg", "CMYK", {}),
        ("png.JPEG", "RGB", {"format": "PNG"}),
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
    ],
)
def test_photographs_have_the_pixels_of_pillows_rgb_conversion(name, mode, options, tmp_path, deterministic):
    pixels = deterministic.image("photo", 70, 60).transpose(1, 2, 0)
    Image.fromarray(pixels).convert(mode).save(tmp_path / name, **options)
    cfg = config(INPUT__CLASSIFICATION__SIZE=60, INPUT__CLASSIFICATION__CROP_PCT=1.0)
    record = TestMapper(T.AugmentationList([build_test_transform(cfg)]), cfg.INPUT.FORMAT)(
        {"file_name": str(tmp_path / name)}
    )
    expected = np.array(Image.open(tmp_path / name).convert("RGB"))[5:65]
    assert np.array_equal(record["image"].numpy(), expected.transpose(2, 0, 1))


@pytest.fixture
def dicts(tmp_path, deterministic):
    for index in range(6):
        pixels = deterministic.image(f"image {index}", 50, 40 + index).transpose(1, 2, 0)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return [{"file_name": str(tmp_path / f"{index}.png"), "label": index % 5} for index in range(6)]


def test_a_training_batch_is_mixed_erased_and_smoothed(dicts):
    cfg = config(INPUT__CLASSIFICATION__SIZE=32, INPUT__CLASSIFICATION__ERASING=1.0)
    mapper, augment = build_classification_mapper(cfg), build_batch_augmentation(cfg, 4)
    batch = augment([mapper(record) for record in dicts[:4]])
    labels = torch.stack([record["label"] for record in batch])
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    # Smoothing 0.1 over five classes.
    assert float(labels.min()) == pytest.approx(0.02)
    # The i-th image is mixed with the i-th from the end.
    torch.testing.assert_close(labels[0] - 0.02 > 1e-6, torch.tensor([True, False, False, True, False]))
    images = torch.stack([record["image"] for record in batch])
    assert images.dtype == torch.float32 and images.shape == (4, 3, 32, 32)
    # Erased regions are normal noise in normalised values.
    fractional = images != images.round()
    noise = (images - augment.mean) / augment.std
    assert fractional[:, 0].sum((1, 2)).min() > 0.02 * 32 * 32 - 40
    assert abs(float(noise[fractional].mean())) < 0.1 and abs(float(noise[fractional].std()) - 1) < 0.1


def test_draws_follow_seed_epoch_and_place_whoever_reads(dicts):
    cfg = config(INPUT__CLASSIFICATION__SIZE=32)

    def batches(workers):
        mapper = build_classification_mapper(cfg)
        loader = TrainingLoader(
            dicts, mapper, batch_size=2, seed=3, workers=workers, batch_mapper=build_batch_augmentation(cfg, 2)
        )
        iterator = iter(loader)
        return loader, [next(iterator) for _ in range(5)]

    def equal(one, other):
        pairs = zip(one, other, strict=True)
        return all(torch.equal(a[key], b[key]) for a, b in pairs for key in ("image", "label"))

    (loader, first), (_, second) = batches(0), batches(2)
    assert all(equal(one, other) for one, other in zip(first, second, strict=True))
    continued = TrainingLoader(
        dicts,
        build_classification_mapper(cfg),
        batch_size=2,
        batch_mapper=build_batch_augmentation(cfg, 2),
    )
    continued.load_state_dict(loader.state_dict())
    _, more = batches(0)
    iterator = iter(loader)
    assert equal(next(iterator), next(iter(continued)))
    assert not equal(more[0], more[1])


def test_the_last_partial_batch_of_an_epoch_is_dropped(dicts):
    loader = TrainingLoader(dicts, lambda record: record, batch_size=4, seed=0, multiple_of=4)
    assert loader.images_per_epoch() == 4
    iterator = iter(loader)
    for _ in range(5):
        assert len({record["file_name"] for record in next(iterator)}) == 4
    with pytest.raises(ConfigError, match="6 training images make no step of 8"):
        TrainingLoader(dicts, lambda record: record, batch_size=4, multiple_of=8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SIZE": 0}, "SIZE is 0, expected a number of pixels"),
        ({"CROP_PCT": 1.5}, "CROP_PCT is 1.5, expected more than 0"),
        ({"ERASING": 2.0}, "ERASING 2.0: expected a number from 0 to 1"),
        ({"RAND_AUGMENT": "nothing"}, "timm can't use it"),
        ({"INTERPOLATION": "nothing"}, "timm can't use it"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    cfg = config(**{f"INPUT__CLASSIFICATION__{key}": value for key, value in changes.items()})
    with pytest.raises(ConfigError, match=message):
        build_classification_mapper(cfg)
        build_batch_augmentation(cfg, 4)
    with pytest.raises(ConfigError, match="a process has 3 images of a batch"):
        build_batch_augmentation(config(), 3)


@pytest.mark.parametrize("label", [None, 5])
def test_labels_must_be_those_of_the_model(label, dicts):
    with pytest.raises(AnnotationError, match=r"0\.png: (no 'label'|class id 5, expected 0 to 4)"):
        build_classification_mapper(config())({**dicts[0], "label": label})


def test_training_without_timm_is_refused_in_one_line(monkeypatch):
    for loaded in ["timm", *(name for name in sys.modules if name.startswith("timm."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    cfg = setup_cfg(ROOT / "configs" / "imagenet" / "classification" / "nat" / "nat_mini.yaml")
    build_classification_mapper(cfg, augmented=False)
    with pytest.raises(MissingPackageError, match=r"of a classifier needs .* -e '\.\[timm\]'"):
        build_classification_mapper(cfg)
