import numpy as np
import pytest
from PIL import Image

from mask2former.data.image_io import ImageReadError, read_image, read_label_map, read_panoptic_ids, read_panoptic_png


@pytest.fixture
def photo():
    """An RGB image [12, 20, 3] with a bright top left corner, so that turning it shows."""
    y, x = np.mgrid[:12, :20]
    return np.stack([255 - 12 * x, 200 - 10 * y, 5 * (x + y)], axis=2).astype(np.uint8)


def test_rgb_and_bgr(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)
    bgr = read_image(tmp_path / "a.png", "BGR")
    np.testing.assert_array_equal(bgr, photo[:, :, ::-1])
    assert bgr.flags.c_contiguous


def test_unknown_format(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="'L'"):
        read_image(tmp_path / "a.png", "L")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, photo, orientation):
    # What a camera stores for each orientation, so that the viewer shows the photo.
    stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: np.rot90(photo, 1),
        7: np.rot90(photo, 2).transpose(1, 0, 2),
        8: np.rot90(photo, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_modes(tmp_path, photo, mode):
    source = Image.fromarray(photo).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    source.save(path, quality=100)
    pixels = read_image(path)
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].astype(int).sum() > pixels[-1, -1].astype(int).sum()
    np.testing.assert_allclose(pixels, np.asarray(source.convert("RGB")), atol=6)


def test_alpha_is_dropped(tmp_path, photo):
    rgba = np.dstack([photo, np.zeros((12, 20), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), photo)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency(tmp_path, photo):
    Image.fromarray(photo).quantize(8).save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert read_image(tmp_path / "a.png").shape == (12, 20, 3)


def test_16_bit_grey_is_scaled(tmp_path):
    values = np.linspace(0, 65535, 40).astype(np.uint16).reshape(5, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values / 257))
    assert (pixels[:, :, :1] == pixels).all()


def test_float_tiff_is_refused(tmp_path):
    Image.fromarray(np.ones((3, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif.*floating-point"):
        read_image(tmp_path / "a.tif")


def test_missing_text_and_truncated(tmp_path, photo):
    with pytest.raises(ImageReadError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ImageReadError, match=r"text\.jpg"):
        read_image(tmp_path / "text.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(ImageReadError, match=r"cut\.jpg"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(ImageReadError, match=tmp_path.name):
        read_image(tmp_path)


def test_label_maps(tmp_path):
    labels = np.array([[0, 3], [255, 7]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "grey.png")
    palette = Image.fromarray(labels)
    palette = palette.convert("P")
    palette.putpalette([9] * 768)
    palette.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        np.testing.assert_array_equal(read_label_map(tmp_path / name), labels)
    wide = np.array([[0, 26001]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "wide.png"), wide)


def test_label_kind_is_checked(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "rgb.png")
    with pytest.raises(ImageReadError, match=r"rgb\.png.*one channel"):
        read_label_map(tmp_path / "rgb.png")
    Image.fromarray(photo[:, :, 0]).save(tmp_path / "grey.png")
    with pytest.raises(ImageReadError, match=r"grey\.png.*RGB"):
        read_panoptic_png(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "rgb.png"), photo)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_panoptic_ids_and_sizes(tmp_path, mode):
    colors = np.array([[[1, 2, 3], [0, 0, 0]], [[255, 255, 255], [7, 0, 0]], [[0, 1, 0], [0, 0, 1]]], np.uint8)
    path = tmp_path / "ids.png"
    Image.fromarray(colors).convert(mode).save(path)
    expected = [[1 + 2 * 256 + 3 * 65536, 0], [2**24 - 1, 7], [256, 65536]]
    np.testing.assert_array_equal(read_panoptic_ids(path, (3, 2)), expected)
    for read in (read_panoptic_ids, read_panoptic_png):
        with pytest.raises(ImageReadError, match=r"ids\.png: labels of \(3, 2\) pixels for an image of \(2, 3\)"):
            read(path, (2, 3))
    Image.fromarray(colors[:, :, 0]).save(path)
    assert read_label_map(path, [3, 2]).shape == (3, 2)
    with pytest.raises(ImageReadError, match=r"\(3, 2\) pixels for an image of \(4, 4\)"):
        read_label_map(path, (4, 4))
