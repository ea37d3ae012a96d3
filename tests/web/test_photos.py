import numpy as np
import pytest
from PIL import Image

from mask2former.web import Limits, PhotoError, SamplesError, find_samples
from mask2former.web.workbench import read_photo

LIMITS = Limits(megapixels=0.01, megabytes=0.1)


def test_a_photograph_within_the_limits_is_read_upright(photo):
    path = photo()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = path.with_name("turned.jpg")
    Image.open(path).save(turned, exif=exif)
    assert read_photo(path, "photo.png", LIMITS).shape == (48, 80, 3)
    assert read_photo(turned, "turned.jpg", LIMITS).shape == (80, 48, 3)


def write_noise(path):
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (300, 300, 3)).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("write", "limits", "message"),
    [
        (lambda path: path.write_text("text"), LIMITS, "can't be read as an image"),
        (lambda path: path.write_bytes(b""), LIMITS, "can't be read as an image"),
        (
            lambda path: Image.new("RGB", (200, 100)).save(path),
            LIMITS,
            "200 × 100 pixels are 0.02 megapixels, at most 0.01",
        ),
        (write_noise, LIMITS, "too large: 0.26 MB, at most 0.1 MB"),
        (lambda path: None, LIMITS, "no longer on the server"),
    ],
    ids=["text", "empty", "pixels", "bytes", "gone"],
)
def test_what_is_not_accepted_is_explained_without_a_path(write, limits, message, tmp_path):
    path = tmp_path / "a1b2c3.png"
    write(path)
    with pytest.raises(PhotoError) as refused:
        read_photo(path, "holiday.png", limits)
    assert "holiday.png" in str(refused.value) and message in str(refused.value)
    assert str(tmp_path) not in str(refused.value) and "a1b2c3" not in str(refused.value)


def test_the_limit_is_the_page_s_and_not_pillow_s(photo, monkeypatch):
    path = photo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_photo(path, "photo.png", Limits()).ndim == 3


def test_a_large_photograph_is_refused_before_it_is_decoded(photo, monkeypatch):
    path = photo(height=400, width=400)
    monkeypatch.setattr("mask2former.web.workbench.read_image", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="too large"):
        read_photo(path, "photo.png", LIMITS)


def test_samples_are_the_images_of_a_folder(photo, tmp_path):
    for name in ("samples/b.png", "samples/a.jpg"):
        photo(name)
    (tmp_path / "samples" / "notes.txt").write_text("no image")
    assert [sample.name for sample in find_samples(tmp_path / "samples")] == ["a.jpg", "b.png"]


def test_folders_without_samples_are_refused(tmp_path):
    with pytest.raises(SamplesError, match="no image"):
        find_samples(tmp_path)
    with pytest.raises(SamplesError, match="nowhere: expected a folder"):
        find_samples(tmp_path / "nowhere")


def test_without_a_folder_samples_come_with_an_installed_package(monkeypatch):
    samples = find_samples()
    assert [sample.stem for sample in samples] == ["astronaut", "chelsea", "coffee", "motorcycle_left"]
    assert all(read_photo(sample, sample.name, Limits()).shape[2] == 3 for sample in samples)
    monkeypatch.setattr("mask2former.web.workbench.find_spec", lambda _: None)
    assert find_samples() == []
