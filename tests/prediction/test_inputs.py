"""What a predictor takes as images: each kind is read as what it is, or refused in one line."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.data.image_io import ImageReadError
from mask2former.prediction.inputs import read_image, split
from tests.prediction.test_predictor import predictor

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
BLACK_AND_WHITE = np.repeat(IMAGE[:, :, :1] > 127, 3, axis=2)


def png(pixels=IMAGE):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class Interface:
    def __init__(self, pixels):
        self.__array_interface__ = pixels.__array_interface__
        self.pixels = pixels


class Convertible:
    def __array__(self, dtype=None, copy=None):
        return IMAGE


def tensor(pixels=IMAGE):
    return torch.from_numpy(pixels.copy())


ONE = {
    "array": IMAGE,
    "read-only": np.frombuffer(IMAGE.tobytes(), np.uint8).reshape(IMAGE.shape),
    "turned over and back": IMAGE[::-1].copy()[::-1],
    "Fortran order": np.asfortranarray(IMAGE),
    "int64": IMAGE.astype(np.int64),
    "big-endian": IMAGE.astype(">i4"),
    "float32 to 1": IMAGE.astype(np.float32) / 255,
    "float64 to 1": IMAGE / 255,
    "channels first": IMAGE.transpose(2, 0, 1),
    "alpha": np.dstack([IMAGE, IMAGE[:, :, 0]]),
    "tensor, channels last": tensor(),
    "tensor, channels first": tensor().permute(2, 0, 1),
    "tensor of floats": tensor().permute(2, 0, 1).float() / 255,
    "tensor of doubles": tensor().double() / 255,
    "tensor with a gradient": (tensor().float() / 255).requires_grad_(),
    "tensor of ints": tensor().long(),
    "lists": IMAGE.tolist(),
    "tuples": tuple(tuple(map(tuple, row)) for row in IMAGE.tolist()),
    "memory": memoryview(IMAGE),
    "__array__": Convertible(),
    "__array_interface__": Interface(IMAGE),
    "Pillow": Image.fromarray(IMAGE),
    "bytes of a file": png(),
    "bytearray": bytearray(png()),
    "memory of a file": memoryview(png()),
    "open file": io.BytesIO(png()),
}


@pytest.mark.parametrize("kind", ONE)
def test_one_image_in_any_form(kind):
    assert split(ONE[kind])[1]
    assert np.array_equal(read_image(ONE[kind]), IMAGE)


def test_files_by_any_name(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.setenv("HOME", str(tmp_path))
    with open(tmp_path / "a.png", "rb") as file:
        file.read()
        for name in (str(tmp_path / "a.png"), tmp_path / "a.png", "~/a.png", np.array(str(tmp_path / "a.png")), file):
            assert split(name)[1]
            assert np.array_equal(read_image(name), IMAGE)


def test_colours_that_become_8_bits():
    assert np.array_equal(read_image(BLACK_AND_WHITE), BLACK_AND_WHITE * np.uint8(255))
    grey = IMAGE[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for pixels in (grey, grey[:, :, None], tensor(grey), tensor(grey)[None], grey.tolist(), grey / 255):
        assert split(pixels)[1]
        assert np.array_equal(read_image(pixels), expected)
    half = (tensor().float() / 255).half()
    assert np.abs(read_image(half).astype(int) - IMAGE).max() <= 1
    assert np.abs(read_image((tensor() / 255).bfloat16()).astype(int) - IMAGE).max() <= 1


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ([IMAGE, IMAGE], 2),
        ((IMAGE,), 1),
        ((image for image in [IMAGE, IMAGE, IMAGE]), 3),
        (iter([]), 0),
        ([], 0),
        ((), 0),
        (np.stack([IMAGE, IMAGE]), 2),
        (np.stack([IMAGE]) / 255, 1),
        (np.zeros((0, 20, 40, 3), np.uint8), 0),
        (torch.stack([tensor(), tensor()]).permute(0, 3, 1, 2), 2),
        (memoryview(np.stack([IMAGE, IMAGE])), 2),
        ([IMAGE.tolist(), IMAGE.tolist()], 2),
        ([tensor(), tensor().permute(2, 0, 1)], 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_several_images(images, count):
    results = predictor("semantic")(images)
    assert isinstance(results, list) and len(results) == count
    assert all(np.array_equal(result.image, IMAGE) for result in results)


def test_arrays_of_paths_are_several(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    paths = [tmp_path / "a.png"] * 2
    for images in (tmp_path.glob("*.png"), np.array([str(path) for path in paths]), np.array(paths)):
        assert {result.size for result in predictor("semantic")(images)} == {(20, 40)}


NO_IMAGES = {
    "None": (None, "None: expected a path, .*OpenCV returns None"),
    "number": (3, "3: expected a path"),
    "dict": ({"image": IMAGE}, "an object of type dict"),
    "set": ({"a.png"}, "an object of type set"),
    "object": (object(), "an object of type object"),
    "text": ("no such image", "no such image: no such file"),
    "folder": (Path(), "can't be read"),
    "empty file": (b"", "the given bytes: can't be read as an image"),
    "text in bytes": (b"hello", "the given bytes: can't be read as an image"),
    "half a file": (png()[:200], "the given bytes: can't be read as an image"),
    "text file": (io.StringIO("hello"), "opened as text"),
    "line of pixels": (IMAGE.ravel(), r"uint8 \[2400\]: expected RGB"),
    "no pixels": (IMAGE[:0], r"uint8 \[0, 40, 3\]: expected RGB"),
    "two channels": (IMAGE[:, :, :2], r"\[20, 40, 2\]: expected RGB"),
    "five dimensions": (IMAGE[None, None], r"\[1, 1, 20, 40, 3\]: expected RGB"),
    "either order": (torch.zeros(3, 64, 3), r"\[3, 64, 3\]: its channels may be first or last"),
    "float to 255": (IMAGE.astype(np.float32), "with values from 0 to 255: expected uint8, or floats from 0 to 1"),
    "normalised": (torch.randn(3, 20, 40), "expected uint8, or floats from 0 to 1"),
    "NaN": (np.full((4, 5, 3), np.nan), "from nan to nan: expected uint8"),
    "large ints": (IMAGE.astype(np.int64) + 1, "from 1 to 256: expected uint8, or integers from 0 to 255"),
    "complex": (IMAGE.astype(complex), "complex128 .* expected numbers"),
    "objects": (IMAGE.astype(object), "object .* expected numbers"),
    "ragged lists": ([[1, 2], [3]], "the given list can't be used"),
    "no memory": (torch.zeros(3, 20, 40, device="meta"), "the given Tensor can't be used"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_other_objects_are_refused_in_one_line(kind):
    image, message = NO_IMAGES[kind]
    predict = predictor("semantic")
    for call in (predict, predict.analyze, lambda image: predict([IMAGE, image])):
        with pytest.raises(ImageReadError, match=message) as error:
            call(image)
        assert "\n" not in str(error.value)
    assert str(error.value).startswith("image 2: ")
    assert predict.model.batches == []


@pytest.mark.parametrize("images", [[[IMAGE]], [[]], [np.stack([IMAGE])], [(IMAGE, 3)]])
def test_sequences_in_sequences_are_refused(images):
    with pytest.raises(ImageReadError, match="image 1: "):
        predictor("semantic")(images)


def test_an_analysis_is_of_one_image():
    for images in ([IMAGE], np.stack([IMAGE]), (image for image in [IMAGE])):
        with pytest.raises(ImageReadError):
            predictor("semantic").analyze(images)


def test_values_of_more_than_8_bits_have_one_rule():
    wide = IMAGE.astype(np.uint16) * 16
    file = io.BytesIO()
    Image.fromarray(wide[:, :, 0]).save(file, "png")
    grey = np.repeat(IMAGE[:, :, :1], 3, axis=2)
    for pixels in (wide[:, :, 0], wide[:, :, 0].astype(">u2"), torch.from_numpy(wide[:, :, 0]), file.getvalue(), file):
        assert np.array_equal(read_image(pixels), np.rint(grey * (16 / 257)).astype(np.uint8))
        assert np.array_equal(read_image(pixels, (0, 255 * 16)), grey)
    for pixels in (wide, wide.astype(np.float32), torch.from_numpy(wide.astype(np.int64)), wide.tolist()):
        assert np.array_equal(read_image(pixels, (0, 255 * 16)), IMAGE)
    assert np.array_equal(read_image(IMAGE, (0, 10)), IMAGE), "8-bit pixels stay as they are"
