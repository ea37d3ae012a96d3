"""The predictor with a model of every kind."""

import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

from mask2former import ConfigError, Predictor, setup_cfg
from mask2former.data.build import build_test_transform
from mask2former.prediction import InstancePrediction
from mask2former.prediction.predictor import RESULTS
from mask2former.tasks import ARCHITECTURES
from mask2former.test_time_augmentation import augment_at_test_time
from tests.kinds import KINDS


def test_every_architecture_has_a_row():
    """Of the models that tests of demo, video, page, predictor and evaluation run with."""
    assert {kind.architecture for kind in KINDS.values()} == ARCHITECTURES.keys()
    for kind in KINDS.values():
        row = ARCHITECTURES[kind.architecture]
        assert row.tasks is None or kind.task in row.tasks
        assert row.augmentation == kind.augmented and row.boxes == ("bbox" in kind.metrics)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def lowest(kind):
    """A threshold that keeps everything, for results that have one."""
    return 0.0 if kind.task in ("panoptic", "instance") else None


@pytest.fixture(scope="module")
def predictors():
    return {}


@pytest.fixture
def predictor(kind, weights_of, predictors):
    if kind.name not in predictors:
        opts = weights_of(kind.name)
        predictors[kind.name] = Predictor.from_config(kind.config, opts=opts, confidence_threshold=lowest(kind))
    return predictors[kind.name]


def photo(height=48, width=80, seed=0):
    pixels = np.random.RandomState(seed).randint(0, 256, (6, 10, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def same(a, b):
    return json.dumps(a.record()) == json.dumps(b.record())


def test_images_of_every_form_give_one_result(predictor, kind, tmp_path):
    pixels = photo()
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    result = predictor(pixels)
    assert type(result) is RESULTS[kind.task] and result.size == (48, 80)
    forms = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.open(tmp_path / "photo.png")]
    forms += [(tmp_path / "photo.png").read_bytes(), io.BytesIO((tmp_path / "photo.png").read_bytes())]
    forms += [torch.from_numpy(pixels.transpose(2, 0, 1).copy()), pixels.tolist(), pixels.astype(np.float64) / 255]
    assert all(same(predictor(form), result) for form in forms)
    restored = type(result).from_record(json.loads(json.dumps(result.record())), result.size, result.classes, pixels)
    np.testing.assert_array_equal(restored.draw(), result.draw())


def test_a_batch_gives_what_single_images_give(predictor):
    images = [photo(seed=1), photo(60, 40), photo(seed=2), photo(seed=3)]
    together, alone = predictor(images, batch_size=3), [predictor(image) for image in images]
    for a, b in zip(together, alone, strict=True):
        # Sums of a batch may differ in the last bits.
        assert a.size == b.size and (a.draw() != b.draw()).any(2).mean() < 0.02
        if isinstance(a, InstancePrediction):
            np.testing.assert_allclose(a.boxes, b.boxes, atol=2e-2)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_threads_and_copies_give_the_same(predictor):
    image, expected = photo(), predictor(photo())
    with ThreadPoolExecutor(4) as pool:
        assert all(same(result, expected) for result in pool.map(predictor, [image] * 6))
    assert same(pickle.loads(pickle.dumps(predictor))(image), expected)  # noqa: S301 - our own


@pytest.mark.parametrize("size", [(1, 1), (5, 700), (700, 5)])
def test_images_of_extreme_shape(predictor, size):
    result = predictor(photo(*size))
    assert result.size == size and result.draw(enlarge=False).shape == (*size, 3)
    json.dumps(result.to_json("photo.png"), allow_nan=False)


def test_large_images_are_predicted_smaller_and_enlarged(kind, weights_of):
    """As if memory allowed results of at most 1000 pixels: boxes are those of the image all the same."""
    predictor = Predictor.from_config(kind.config, opts=weights_of(kind.name), confidence_threshold=lowest(kind))
    small = Predictor.from_config(kind.config, opts=weights_of(kind.name), confidence_threshold=lowest(kind))
    small = pickle.loads(pickle.dumps(small))  # noqa: S301 - our own
    small._max_pixels = 1000
    a, b = predictor(photo(96, 160)), small(photo(96, 160))
    assert a.size == b.size == (96, 160)
    if ARCHITECTURES[kind.architecture].boxes:
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-4, atol=1e-3)


def test_boxes_are_those_that_the_model_predicts(predictor, kind):
    """Not around masks; of other models, they are around masks."""
    if "instance" not in predictor.tasks:
        assert kind.task in ("semantic", "classification")
        return
    result = predictor(photo(), task="instance", confidence_threshold=0.0)
    assert isinstance(result, InstancePrediction) and len(result.scores)
    entries = result.to_coco(3)
    masks = [mask_util.decode(entry["segmentation"]).astype(bool) for entry in entries]
    assert all(np.array_equal(*pair) for pair in zip(masks, result.masks, strict=True))
    around = [mask_util.toBbox(entry["segmentation"]).tolist() for entry in entries]
    boxes = [entry["bbox"] for entry in entries]
    assert (boxes == around) != ARCHITECTURES[kind.architecture].boxes
    assert boxes == [entry["bbox"] for entry in result.segments()]
    nothing = predictor(photo(), task="instance", confidence_threshold=1.0)
    assert len(nothing.scores) == 0 and nothing.boxes.shape == (0, 4) and nothing.boxes.dtype == result.boxes.dtype
    assert nothing.to_coco() == nothing.segments() == []
    # Nothing is drawn: the picture is the enlarged photograph.
    assert abs(nothing.draw()[::8, ::8].astype(int).mean() - photo().mean()) < 3


def test_class_names_of_a_file(predictor, kind, weights_of, tmp_path):
    known = list(predictor.classes().names)
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"ñ {name}" for name in known) + "\n", encoding="utf-8")
    renamed = Predictor.from_config(
        kind.config, opts=weights_of(kind.name), confidence_threshold=lowest(kind), class_names=file
    )
    result, expected = renamed(photo()), predictor(photo())
    (new,), (old,) = result.content().values(), expected.content().values()
    assert [f"ñ {entry['category_name']}" for entry in old] == [entry["category_name"] for entry in new] != []
    assert result.classes.color(0) == expected.classes.color(0) and predictor.classes().names == known
    with pytest.raises(ConfigError, match=rf"^1 class names, but {ARCHITECTURES[kind.architecture].classes} is "):
        Predictor.from_config(kind.config, opts=weights_of(kind.name), class_names=["one"])


def test_augmentation_at_test_time_is_averaged_or_refused(predictor, kind, weights_of, tmp_path):
    opts = [*weights_of(kind.name), "TEST.AUG.ENABLED", "True"]
    if not kind.augmented:
        with pytest.raises(ConfigError, match=f"TEST.AUG.ENABLED is True, but {kind.architecture} has no test-time"):
            Predictor.from_config(kind.config, opts=opts)
        return
    averaging = Predictor.from_config(kind.config, opts=opts, confidence_threshold=lowest(kind))
    assert averaging.tasks == predictor.tasks and averaging.fingerprint() != predictor.fingerprint()
    result, plain = averaging(photo()), predictor(photo())
    assert result.size == plain.size and not same(result, plain)
    assert same(averaging([photo(), photo()], batch_size=2)[1], result)
    # The class map is that of an evaluation, which averages scores of the whole image.
    if "semantic" in averaging.tasks:
        cfg = setup_cfg(kind.config, opts)
        _, evaluated = augment_at_test_time(cfg, predictor.model)
        resized = build_test_transform(cfg).get_transform(photo()).apply_image(photo())
        Image.fromarray(photo()).save(tmp_path / "photo.png")
        inputs = {"image": torch.from_numpy(resized.transpose(2, 0, 1).copy()), "height": 48, "width": 80}
        (output,) = evaluated([{**inputs, "file_name": str(tmp_path / "photo.png")}])
        labels = averaging(photo(), task="semantic").labels
        assert np.mean(labels == output["sem_seg"].argmax(0).numpy()) > 0.999
    with ThreadPoolExecutor(2) as pool:
        copies = [averaging, pickle.loads(pickle.dumps(averaging))]  # noqa: S301 - our own
        assert all(same(other, result) for copy in copies for other in pool.map(copy, [photo()] * 2))
    assert averaging.analyze(photo()).nbytes > predictor.analyze(photo()).nbytes
