"""Photographs of many kinds: the orientation as OpenCV reads it, 8-bit values by one rule, limits and refusals."""

import io
import itertools
import logging
import random
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.transforms import AugInput
from PIL import Image

from mask2former.config import ConfigError, add_maskformer2_config
from mask2former.data import photographs
from mask2former.data.dataset_mapper import ResizeShortestEdge, large_scale_jitter
from mask2former.data.image_io import (
    ImageReadError,
    configured_range,
    image_size,
    read_image,
    read_label_map,
    to_rgb,
)

from ..conftest import load_script

ORIENTATION = 0x0112
# Tags before the orientation whose broken texts make OpenCV give up, while browsers go on.
STOP_OPENCV = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0131, 0x0132, 0x013E, 0x013F, 0x0211, 0x0214, 0x8298}
TAGS = [0x0100, 0x0103, 0x0128, 0x0201, 0x0213, 0x8769, 0x8825, 0x9003, 0x927C, 0xA005, *sorted(STOP_OPENCV)]


@pytest.fixture(scope="module")
def corner():
    """An image [8, 16, 3] with a bright corner, so that turning it shows."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8], pixels[:3, :3, 0] = 200, 90
    return pixels


@pytest.fixture(scope="module")
def photo():
    """A random image [10, 14, 3]."""
    return np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)


def encoded(pixels, format, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(pixels, *blocks):
    data = encoded(pixels, "JPEG", quality=95)
    segments = b"".join(struct.pack(">BBH", 0xFF, 0xE1, len(block) + 2) + block for block in blocks)
    return data[:2] + segments + data[2:]


def with_exif(pixels, format, block):
    """A file of a format with an EXIF block."""
    if format == "JPEG":
        return jpeg(pixels, b"Exif\0\0" + block)
    data = encoded(pixels, format, **({"lossless": True} if format == "WEBP" else {}))
    if format == "PNG":
        chunk = b"eXIf" + block
        return data[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    sides = b"".join((side - 1).to_bytes(3, "little") for side in pixels.shape[1::-1])
    header = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + sides
    body = header + data[12:] + b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def block(*entries, order="<", count=None, magic=42, directory=8, tail=bytes(4)):
    """An EXIF block of entries (tag, type, count, four bytes)."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", magic, directory)
    number = struct.pack(f"{order}H", len(entries) if count is None else count)
    return head + number + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries) + tail


def turned(value, order="<", kind=3, count=1):
    return (ORIENTATION, kind, count, struct.pack(f"{order}HH", value, 0))


def random_block(rng):
    """A block with odd tags and orientations, sometimes cut or with some bytes changed; whether OpenCV gives up."""
    order = rng.choice("<>")
    entries = [
        (
            rng.choice(TAGS) if rng.random() < 0.8 else rng.randrange(65536),
            rng.randrange(15),
            rng.choice([0, 1, 2, 4, 5, rng.randrange(2**32)]),
            rng.choice([rng.randbytes(4), struct.pack(f"{order}I", rng.randrange(300)), b"2\0\0\0"]),
        )
        for _ in range(rng.randrange(5))
    ]
    for _ in range(rng.choice([0, 1, 1, 1, 2])):
        value = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, rng.randrange(65536)])
        entries.append(turned(value, order, rng.choice([3, 3, 1, 4, rng.randrange(20)]), rng.choice([1, 0, 2, 7])))
    if rng.random() < 0.8:
        entries.sort(key=lambda entry: entry[0])
    made = block(
        *entries,
        order=order,
        count=None if rng.random() < 0.9 else rng.choice([0, 1, 65535]),
        directory=8 if rng.random() < 0.95 else rng.randrange(40),
        tail=rng.choice([bytes(4), struct.pack(f"{order}I", 8), bytes(60), b""]),
    )
    if rng.random() < 0.15:
        made = made[: rng.randrange(len(made))]
    elif rng.random() < 0.2:
        # The byte order itself stays: decoders of PNG check it before OpenCV sees the block.
        position = rng.randrange(2, len(made))
        made = made[:position] + rng.randbytes(1) + made[position + 1 :]
    return made


def tags_before_orientation(made):
    """Tags that OpenCV reads before the orientation."""
    order = "<" if made[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", made, 4)
        (count,) = struct.unpack_from(f"{order}H", made, start)
    except struct.error:
        return set()
    tags = set()
    for position in range(start + 2, min(start + 2 + 12 * count, len(made) - 1), 12):
        (tag,) = struct.unpack_from(f"{order}H", made, position)
        if tag == ORIENTATION:
            break
        tags.add(tag)
    return tags


def by_opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def read_bytes(data, value_range=None):
    return photographs.to_rgb(photographs.open_photograph(io.BytesIO(data), "photo"), value_range)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_blocks_are_read_as_opencv_reads_them(corner, format, capfd):
    rng = random.Random(format)
    compared = 0
    for _ in range(400):
        made = random_block(rng)
        data = with_exif(corner, format, made)
        pixels = read_bytes(data)
        assert sorted(pixels.shape) == [3, 8, 16]
        if not tags_before_orientation(made) & STOP_OPENCV:
            np.testing.assert_allclose(pixels.astype(int), by_opencv(data), atol=1, err_msg=made.hex())
            compared += 1
    assert compared > 150
    capfd.readouterr()  # libpng's warnings


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [0x010E, 0x010F, 0x0110, 0x0128, 0x011A, 0x0132, 0x0213, 0x0100, 0x8769, 0x8825])
def test_no_other_tag_matters(corner, order, tag):
    odd = (tag, 2, 50, b"\xff\xff\xff\xff")
    upright = np.rot90(corner, -1)
    for entries in ([odd, turned(6, order)], [turned(6, order), odd]):
        pixels = read_bytes(jpeg(corner, b"Exif\0\0" + block(*entries, order=order)))
        np.testing.assert_allclose(pixels.astype(int), by_opencv(jpeg(upright)), atol=12)


def test_other_blocks_before_the_exif_block(corner):
    sound = b"Exif\0\0" + block(turned(6))
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation='3'/>"
    for blocks, size in (
        ([xmp, sound], (16, 8)),
        ([b"Exif\0\0broken", sound], (16, 8)),
        ([sound, b"Exif\0\0" + block(turned(1))], (16, 8)),
        ([b"Exif\0\0" + block(turned(99)), sound], (8, 16)),
        # Browsers and OpenCV don't look at XMP.
        ([xmp.replace(b"'3'", b"'6'")], (8, 16)),
    ):
        data = jpeg(corner, *blocks)
        assert read_bytes(data).shape[:2] == size == by_opencv(data).shape[:2]


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_other_formats(corner, format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "MPO": {"quality": 100, "subsampling": 0}}.get(
        format, {}
    )
    pixels = read_bytes(encoded(corner, format, exif=exif, **options))
    np.testing.assert_allclose(pixels.astype(int), photographs.turn(corner, orientation), atol=30)
    assert np.abs(pixels.astype(int) - photographs.turn(corner, orientation)).mean() < 3


def test_tiff_with_odd_tags(corner, tmp_path):
    """Pillow alone fails, or turns the image twice."""
    tags = {ORIENTATION: 6, 0x0128: 2, 0x011A: 72.0}
    data = bytearray(encoded(corner, "TIFF", tiffinfo=tags))
    (start,) = struct.unpack_from("<I", data, 4)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] in (0x0128, 0x011A):
            data[entry + 2 : entry + 12] = struct.pack("<HI", 2, 2**31) + b"\xff\xff\xff\xff"
    (tmp_path / "odd.tif").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "odd.tif"), np.rot90(corner, -1))
    assert image_size(tmp_path / "odd.tif") == (16, 8)


SIXTEEN = {
    "grey.png": lambda p: p[:, :, 0],
    "grey.tif": lambda p: p[:, :, 0],
    "colour.png": lambda p: p,
    "colour.tif": lambda p: p,
    "alpha.png": lambda p: np.dstack([p, p[:, :, 0]]),
    "alpha.tif": lambda p: np.dstack([p, p[:, :, 0]]),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_16_bits_are_scaled_by_one_rule(tmp_path, name):
    values = np.random.default_rng(1).integers(0, 65536, (23, 37, 3)).astype(np.uint16)
    chosen = SIXTEEN[name](values)
    cv2.imwrite(str(tmp_path / name), chosen)
    expected = np.rint(chosen / 257).astype(np.uint8)
    expected = np.repeat(expected[:, :, None], 3, 2) if expected.ndim == 2 else expected[:, :, 2::-1]
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    assert np.abs(cv2.imread(str(tmp_path / name)).astype(int)[:, :, ::-1] - expected).max() <= 1
    # 12 bits in 16.
    cv2.imwrite(str(tmp_path / name), chosen >> 4)
    ranged = read_image(tmp_path / name, value_range=(0, 4095))
    assert np.abs(ranged.astype(int) - expected).max() <= 1


def test_16_bit_grey_with_alpha_and_interlaced(photo):
    """Colour types that OpenCV does not write."""
    height, width = photo.shape[:2]
    values = np.random.default_rng(2).integers(0, 65536, (height, width, 2)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_bytes(data)[:, :, 0], np.rint(values[:, :, 0] / 257))


# Compression and predictor of TIFF files, by type of the values. OpenCV writes no predictor that is not listed.
STORED = {
    "float32": [(1, 1), (5, 1), (8, 1), (5, 3), (8, 3)],
    "float64": [(1, 1), (5, 1), (5, 3)],
    "uint16": [(1, 1), (5, 1), (5, 2), (8, 2), (32773, 1)],
    "int16": [(1, 1), (5, 2)],
    "uint32": [(1, 1), (5, 2)],
}


@pytest.mark.parametrize(("kind", "stored"), [(kind, way) for kind, ways in STORED.items() for way in ways])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_values_of_all_types(tmp_path, kind, stored, channels):
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 1, (33, 29, channels)) if "float" in kind else rng.integers(0, 30000, (33, 29, channels))
    values = values.astype(kind)
    path = tmp_path / "values.tif"
    assert cv2.imwrite(
        str(path), values, [cv2.IMWRITE_TIFF_COMPRESSION, stored[0], cv2.IMWRITE_TIFF_PREDICTOR, stored[1]]
    )
    high = 1.0 if "float" in kind else 30000.0
    expected = np.rint(np.clip(values.astype(np.float64) * (255 / high), 0, 255)).astype(np.uint8)
    expected = np.repeat(expected, 3, 2) if channels == 1 else expected[:, :, 2::-1]
    np.testing.assert_array_equal(read_image(path, value_range=(0, high)), expected)
    if kind != "uint16":
        with pytest.raises(ImageReadError, match=r"values\.tif: .* no fixed 8-bit range; INPUT\.VALUE_RANGE"):
            read_image(path)


def tiff(values, order="<", *, big=False, compressed=False, meaning=None, planes=1, orientation=()):
    """A TIFF or BigTIFF file of values [H, W, C]; an orientation is (type, count, value)."""
    height, width, channels = values.shape
    word, number, header = ("Q", "Q", "HHHQ") if big else ("I", "H", "HI")
    values = (values if planes == 1 else values.transpose(2, 0, 1)).astype(values.dtype.newbyteorder(order))
    stored = zlib.compress(values) if compressed else values.tobytes()
    tags = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * channels, 259: [8 if compressed else 1]}
    tags |= {262: [(1 if channels < 3 else 2) if meaning is None else meaning], 273: [0], 277: [channels]}
    tags |= {278: [height], 279: [len(stored)], 284: [planes], 339: ["uif".index(values.dtype.kind) + 1] * channels}
    tags |= {338: [2]} if channels in (2, 4) else {}
    start, size = struct.calcsize(f"=2s{header}"), struct.calcsize(f"=HH{word}{word}")
    end = start + struct.calcsize(f"={number}{word}") + size * (len(tags) + bool(orientation))
    tags[273] = [end]
    entries = {tag: (4, len(held), struct.pack(f"{order}{len(held)}I", *held)) for tag, held in tags.items()}
    if orientation:
        kind, count, value = orientation
        entries[ORIENTATION] = kind, count, struct.pack(order + {1: "B", 4: "I"}.get(kind, "H"), value)
    directory = b""
    for tag, (kind, count, held) in sorted(entries.items()):
        if len(held) > struct.calcsize(word):
            held, stored = struct.pack(order + word, end + len(stored)), stored + held
        directory += struct.pack(f"{order}HH{word}", tag, kind, count) + held.ljust(struct.calcsize(word), b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + header, *((43, 8, 0) if big else (42,)), start)
    return head + struct.pack(order + number, len(entries)) + directory + bytes(struct.calcsize(word)) + stored


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "float32", "float64"])
def test_tiff_of_all_byte_orders_and_sizes(kind, channels):
    """Pillow mixes up the bytes of some of these."""
    values = np.random.default_rng(4).uniform(0, 30000, (9, 13, channels)).astype(kind)
    expected = np.rint(values.astype(np.float64) * (255 / 30000)).astype(np.uint8)
    expected = np.repeat(expected, 3, axis=2) if channels == 1 else expected[:, :, :3]
    for order, big, compressed in itertools.product("<>", (False, True), (False, True)):
        data = tiff(values, order, big=big, compressed=compressed)
        np.testing.assert_array_equal(read_bytes(data, (0, 30000)), expected)
        if channels == 1:
            white_is_zero = tiff(values, order, big=big, compressed=compressed, meaning=0)
            np.testing.assert_array_equal(read_bytes(white_is_zero, (0, 30000)), 255 - expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 8, 2, 5, 7, 11, 0])
def test_orientation_of_tiff_is_read_as_opencv_reads_it(corner, order, kind, capfd):
    for pixels, count, value in itertools.product((corner, corner.astype(np.uint16) * 257), (0, 1, 2), (0, 1, 3, 6, 9)):
        data = tiff(pixels, order, orientation=(kind, count, value))
        np.testing.assert_array_equal(read_bytes(data), by_opencv(data))
    capfd.readouterr()  # libtiff's warnings


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (np.zeros((4, 5, 3), np.float16), {}, r"OpenCV .* doesn't know this kind of float16 image"),
        (np.zeros((4, 5, 2), np.uint16), {}, r"OpenCV .* doesn't know this kind of uint16 image"),
        (np.zeros((4, 5, 3), np.uint16), {"planes": 2}, "separate planes"),
    ],
)
def test_kinds_that_no_library_reads_are_refused(tmp_path, values, options, reason, capfd):
    (tmp_path / "odd.tif").write_bytes(tiff(values, **options))
    with pytest.raises(ImageReadError, match=rf"odd\.tif: can't be read as an image \(.*{reason}"):
        read_image(tmp_path / "odd.tif", value_range=(0, 1))
    assert capfd.readouterr().err == ""


def test_only_colours_of_16_bits_need_opencv(photo, tmp_path, monkeypatch):
    wide = photo.astype(np.uint16) * 257
    for name, values in (("colour.png", wide), ("grey.png", wide[:, :, 0]), ("grey.tif", wide[:, :, 0])):
        cv2.imwrite(str(tmp_path / name), values)
    Image.fromarray(photo).save(tmp_path / "bytes.tif")
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in ("grey.png", "grey.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[:, :, 0], photo[:, :, 0])
    np.testing.assert_array_equal(read_image(tmp_path / "bytes.tif"), photo)
    assert image_size(tmp_path / "colour.png") == photo.shape[:2]
    with pytest.raises(ImageReadError, match=r"colour\.png: this kind of image needs OpenCV: pip install"):
        read_image(tmp_path / "colour.png")


def test_kinds_that_pillow_knows(photo, tmp_path):
    image = Image.fromarray(photo)
    image.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    assert np.abs(read_image(tmp_path / "ycbcr.tif").astype(int) - photo).max() <= 3
    wide = photo[:, :, 0].astype(">u2") * 257
    np.testing.assert_array_equal(to_rgb(Image.frombytes("I;16B", (14, 10), wide.tobytes()))[:, :, 0], photo[:, :, 0])
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif"), image.convert("CMYK").convert("RGB"))
    frames = [Image.fromarray(np.roll(photo, shift, axis=1)) for shift in range(3)]
    for name in ("a.png", "a.webp", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(tmp_path / name), photo)


def test_arrays_follow_the_rule_for_files():
    values = np.array([[0, 257, 65535]], np.uint16)
    np.testing.assert_array_equal(to_rgb(values)[:, :, 0], [[0, 1, 255]])
    np.testing.assert_array_equal(to_rgb(values >> 4, (0, 4095))[:, :, 1], [[0, 1, 255]])
    np.testing.assert_array_equal(to_rgb(np.array([[0.5, np.nan, np.inf]]), (0, 1))[:, :, 2], [[128, 0, 255]])
    with pytest.raises(ImageReadError, match="float64"):
        to_rgb(np.zeros((2, 2)))
    with pytest.raises(ImageReadError, match=r"floating-point.*VALUE_RANGE"):
        to_rgb(Image.fromarray(np.ones((2, 2), np.float32)))


def test_a_nearly_black_image_is_mentioned_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(photographs, "_HINTED", bytearray(1))
    for name, values in (("bright.png", 60000), ("dark.png", 4000), ("dark_too.png", 3000)):
        cv2.imwrite(str(tmp_path / name), np.full((4, 4), values, np.uint16))
    with caplog.at_level(logging.WARNING):
        for name in ("bright.png", "dark.png", "dark_too.png"):
            read_image(tmp_path / name)
            read_image(tmp_path / name, value_range=(0, 4095))
    (record,) = caplog.records
    assert "dark.png" in record.message and 'INPUT.VALUE_RANGE "(0, 4095)"' in record.message


def test_the_limit_is_named_and_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").shape == (1000, 2000, 3)
    monkeypatch.setenv("DINAT_MAX_MEGAPIXELS", "1")
    for read in (read_image, read_label_map):
        with pytest.raises(ImageReadError, match=r"large\.png: 2000 x 1000 .* 2 megapixels.* DINAT_MAX_MEGAPIXELS"):
            read(tmp_path / "large.png")
    assert image_size(tmp_path / "large.png") == (1000, 2000)
    monkeypatch.setenv("DINAT_MAX_MEGAPIXELS", "2.5")
    assert read_label_map(tmp_path / "large.png").shape == (1000, 2000)
    monkeypatch.setenv("DINAT_MAX_MEGAPIXELS", "many")
    with pytest.raises(ImageReadError, match="'many', expected a number of megapixels"):
        read_image(tmp_path / "large.png")


@pytest.mark.parametrize("values", [(1,), (0, 0), (4095, 0), ("0", "1"), (0, float("nan"))])
def test_values_that_are_no_range(values):
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    assert configured_range(cfg) is None
    cfg.INPUT.VALUE_RANGE = values
    with pytest.raises(ConfigError, match=r"INPUT\.VALUE_RANGE is .*, expected two numbers"):
        configured_range(cfg)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1), (2, 5000)])
def test_images_of_any_shape_keep_a_pixel(shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert min(ResizeShortestEdge([640], 1333, "choice").get_transform(image).apply_image(image).shape) >= 1
    assert ResizeShortestEdge([640], 1333, "choice").get_transform(image).apply_image(image).size
    augmented = AugInput(image)
    large_scale_jitter(64, 0.1, 2.0, "none")(augmented)
    assert augmented.image.shape == (64, 64, 3)


def test_exported_models_see_the_same_pixels(tmp_path, photo):
    """tools/onnx_infer.py has its own copy of the module, loaded by its path."""
    script = load_script("tools/onnx_infer.py")
    for name, values in SIXTEEN.items():
        cv2.imwrite(str(tmp_path / name), values(photo.astype(np.uint16) * 200))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK"):
        ending = "tif" if mode == "CMYK" else "png"
        Image.fromarray(photo).convert(mode).save(tmp_path / f"{mode}.{ending}")
    for path in sorted(tmp_path.iterdir()):
        for value_range in (None, (0, 40000)):
            got = script.photographs.read_rgb(path, value_range)
            np.testing.assert_array_equal(got, read_image(path, value_range=value_range))
