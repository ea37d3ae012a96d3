import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mask2former.utils import label_images
from mask2former.utils.label_images import colors_to_ids, encode_png, ids_to_colors

KINDS = [(np.bool_, ()), (np.uint8, ()), (np.uint8, (3,)), (np.uint16, ())]


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def compressed_by(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(label_images, "compressobj", zlib.compressobj)
    else:
        pytest.importorskip("isal", reason="isal is not installed")


def pictures(kind, channels):
    rng = np.random.default_rng(0)
    largest = 1 if kind is np.bool_ else np.iinfo(kind).max
    for size in ((1, 1), (1, 30), (30, 1), (17, 23), (64, 48)):
        yield rng.integers(0, largest, (*size, *channels), endpoint=True).astype(kind)
        yield np.full((*size, *channels), largest, kind)
        areas = rng.integers(0, largest, (size[0] // 8 + 1, size[1] // 8 + 1, *channels), endpoint=True)
        yield areas.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]].astype(kind)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 18])
@pytest.mark.parametrize(("kind", "channels"), KINDS)
def test_pillow_and_opencv_read_what_was_encoded(kind, channels, at_once, monkeypatch):
    monkeypatch.setattr(label_images, "_BYTES_AT_ONCE", at_once)
    for pixels in pictures(kind, channels):
        encoded = encode_png(pixels)
        with Image.open(io.BytesIO(encoded)) as image:
            assert image.format == "PNG"
            assert (image.mode == "1") == (kind is np.bool_)
            assert np.array_equal(np.asarray(image), pixels)
        decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        expected = pixels[..., ::-1] if channels else pixels * np.uint8(255) if kind is np.bool_ else pixels
        assert np.array_equal(decoded, expected)


def test_arrays_that_are_views_are_encoded_as_they_look():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    for view in (pixels[..., ::-1], pixels[::2, ::3], pixels.swapaxes(0, 1), pixels[..., 1], pixels[..., 1].T > 100):
        with Image.open(io.BytesIO(encode_png(view))) as image:
            assert np.array_equal(np.asarray(image), view)


def test_panopticapi_reads_the_ids_that_were_encoded():
    rgb2id = pytest.importorskip("panopticapi.utils").rgb2id
    ids = np.random.default_rng(0).choice([0, 1, 255, 256, 65535, 65536, (1 << 24) - 1], (40, 30))
    with Image.open(io.BytesIO(encode_png(ids_to_colors(ids)))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(rgb2id(np.array(image, dtype=np.uint32)), ids)


@pytest.mark.parametrize("size", [(480, 640), (1024, 2048)])
def test_large_maps_are_what_was_encoded_and_small(size):
    """Maps with few segments, none and one: each is larger than what is compressed at once."""
    ids = np.zeros(size, np.int32)
    for filled in (0, 1 << 20, 77):
        ids[size[0] // 3 : size[0] // 2, 5:-9] = filled
        encoded = encode_png(ids_to_colors(ids))
        assert len(encoded) < ids.size / 50
        with Image.open(io.BytesIO(encoded)) as image:
            assert np.array_equal(colors_to_ids(np.asarray(image)), ids)


def test_a_label_map_is_about_as_small_as_pillows():
    labels = np.zeros((240, 320), np.uint8)
    y, x = np.mgrid[:240, :320]
    for number in range(1, 20):
        labels[(y - 12 * number) ** 2 + (x - 16 * number) ** 2 < 900] = number
    pillows = io.BytesIO()
    Image.fromarray(labels).save(pillows, format="PNG")
    assert len(encode_png(labels)) < 1.5 * len(pillows.getvalue())


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.int64), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), float), np.zeros((0, 4), bool)],
)
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(ValueError, match="as PNG; expected bool, uint8 or uint16"):
        encode_png(pixels)
