import re
import socket
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.web import Limits, PhotoError, Workbench
from mask2former.web.page import AddressError, Handlers, build_page, choice, serve, status_html
from mask2former.web.workbench import Choice

ME = SimpleNamespace(session_hash="me")


@pytest.fixture
def bench(predictor, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return Workbench(predictor, Limits(megabytes=2), tmp_path)


@pytest.fixture
def handlers(bench, photo):
    return Handlers(bench, [photo("sample.png")])


def blocks(page, kind):
    return [block for block in page.blocks.values() if block.get_block_name() == kind]


def test_the_page_is_served_to_this_machine_alone_and_calls_nobody(bench, photo, monkeypatch):
    connected = []
    connect = socket.socket.connect

    def watch(self, address):
        connected.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watch)
    # As a developer's shell may have it.
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page, other = build_page(bench, [photo()]), build_page(bench, [])
    try:
        address = serve(page, bench, "127.0.0.1", None)
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", address).group(1))
        assert not page.share and page.server_name == "127.0.0.1"
        with pytest.raises(AddressError, match=f"port {port}: .*in use"):
            serve(other, bench, "127.0.0.1", port)
        assert serve(other, bench, "127.0.0.1", None) != address, "a taken port is passed over"
    finally:
        page.close(verbose=False), other.close(verbose=False)
    assert connected and {host for host, *_ in connected} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("::1", None, "IPv4 address"),
        ("no such host", None, "IPv4 address"),
        ("203.0.113.7", None, "port from 7860 on"),
        ("203.0.113.7", 7860, "port 7860"),
        ("127.0.0.1", 65536, "port 65536"),
        ("127.0.0.1", 0, "port 0"),
    ],
)
def test_addresses_that_are_not_here_are_refused(host, port, message, bench):
    with pytest.raises(AddressError, match=message):
        serve(build_page(bench, []), bench, host, port)


def test_no_handler_is_an_api_and_the_page_names_no_other_server(bench, photo):
    config = build_page(bench, [photo()]).get_config_file()
    assert config["dependencies"]
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}
    assert not config["analytics_enabled"]


def test_without_gradio_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mask2former.web.page")
    with pytest.raises(ValueError, match=r"'\.\[app\]'") as error:
        import mask2former.web.page  # noqa: F401
    assert type(error.value).__name__ == "MissingGradioError"


def test_values_of_controls_are_percent():
    assert choice("instance", 35, 80, ["cat"]) == Choice("instance", 0.35, 0.8, ("cat",))
    assert choice("semantic", 0, 80, None).classes == ()


def test_the_page_starts_with_the_settings_of_the_predictor(bench):
    page = build_page(bench, [])
    assert [radio.value for radio in blocks(page, "radio")] == ["panoptic"]
    sliders = {slider.elem_id: slider.value for slider in blocks(page, "slider")}
    assert sliders == {"m2f-confidence": 0, "m2f-overlap": 0, "m2f-opacity": 60}


@pytest.mark.parametrize(
    ("task", "confidence", "can_choose", "classes"),
    [
        ("panoptic", 0, True, ["person", "sky-other-merged"]),
        ("instance", 50, True, ["person"]),
        ("semantic", 0, False, ["person", "sky-other-merged"]),
    ],
)
def test_controls_follow_the_task(handlers, task, confidence, can_choose, classes):
    chosen = ["person", "sky-other-merged", "unknown"]
    of_confidence, of_overlap, of_classes = handlers.task_changed(task, chosen)
    assert of_confidence["value"] == confidence and of_confidence["interactive"] == can_choose
    assert "value" not in of_overlap and of_overlap["interactive"] == (task == "panoptic")
    assert of_classes["value"] == classes and len(of_classes["choices"]) == (80 if task == "instance" else 133)


def test_an_upload_is_shown_and_can_be_downloaded(handlers, photo):
    upload, drop, (picture, masks), status, table, *buttons = handlers.uploaded(str(photo("my photo.png")))
    assert upload.name == "my photo.png" and drop is None and picture.shape == (48, 80, 3) and masks == []
    assert "Looking at my photo.png" in status and not table["visible"]
    assert [button["interactive"] for button in buttons] == [True, True]
    (picture, masks), status, table = handlers.show(ME, upload, 50, "panoptic", 0, 0, [])
    assert len(masks) == len(table["value"]) > 1 and table["visible"] and "segments in my photo.png" in status
    assert {mask.max() for mask, _ in masks} == {0.5}
    assert handlers.picture(ME, upload, "panoptic", 0, 0, []).name == "my photo_panoptic.png"
    assert handlers.data(ME, upload, "instance", 0, 0, []).name == "my photo_instance.json"
    assert handlers.sample_chosen(0)[0].name == "sample.png"


def test_a_bad_upload_is_explained_and_the_message_stays(handlers, tmp_path):
    (tmp_path / "notes.jpg").write_text("text")
    upload, _, picture, status, table, *buttons = handlers.uploaded(str(tmp_path / "notes.jpg"))
    assert upload is None and picture is None and 'role="alert"' in status and "notes.jpg can" in status
    assert [part["interactive"] for part in buttons] == [False, False] and not table["visible"]
    assert "value" not in handlers.show(ME, upload, 50, "panoptic", 0, 0, [])


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA"), PhotoError("photo.png is gone")])
def test_what_fails_while_a_result_is_made_is_explained(handlers, photo, monkeypatch, error):
    def fail(*_):
        raise error

    upload = handlers.uploaded(str(photo()))[0]
    monkeypatch.setattr(Workbench, "show", fail)
    picture, status, table = handlers.show(ME, upload, 50, "panoptic", 0, 0, [])
    assert 'role="alert"' in status and ("gone" in status or "not enough memory" in status)
    assert picture is None and not table["visible"]
    monkeypatch.setattr(Workbench, "data", fail)
    with pytest.raises(Exception, match=r"gone|not enough memory"):
        handlers.data(ME, upload, "panoptic", 0, 0, [])


def test_a_visitor_who_left_is_forgotten(handlers, photo):
    upload = handlers.uploaded(str(photo()))[0]
    file = handlers.data(ME, upload, "panoptic", 0, 0, [])
    handlers.left(ME)
    assert not file.exists()


def test_names_are_text():
    nasty = "<script>alert('{{x}} ${y}')</script>"
    assert "<script" not in status_html(nasty) and "&lt;script" in status_html(nasty, error=True)


def test_segments_have_the_colours_of_the_downloaded_picture(bench, photo, predictor):
    (view,) = blocks(build_page(bench, []), "annotatedimage")
    for task in ("panoptic", "instance"):
        result = predictor(photo(), task=task, confidence_threshold=0.0)
        segments = result.segments()
        counts = Counter()
        for segment, color in zip(segments, result.classes.segment_colors(segments), strict=True):
            name = segment["category_name"]
            counts[name] += 1
            label = f"{name} #{counts[name]}" if counts[name] > 1 else name
            if counts[name] <= 10:
                assert view.color_map[label] == "#{:02x}{:02x}{:02x}".format(*color)
    assert max(counts.values()) > 1


def test_samples_become_thumbnails(bench, photo):
    page = build_page(bench, [photo(height=480, width=800)])
    (gallery,) = blocks(page, "dataset")
    ((thumbnail,),) = gallery.samples
    assert max(np.array(Image.open(thumbnail["path"])).shape) == 240


def test_thumbnails_of_long_samples_show_the_middle(bench, photo):
    page = build_page(bench, [photo("tall.png", 1600, 16), photo("wide.png", 8, 800)])
    (gallery,) = blocks(page, "dataset")
    sizes = [Image.open(thumbnail["path"]).size for (thumbnail,) in gallery.samples]
    assert sizes == [(16, 32), (16, 8)]


def test_samples_that_cannot_be_read_are_left_out(bench, photo, tmp_path, caplog):
    whole, half = photo("whole.png"), tmp_path / "half.png"
    half.write_bytes(whole.read_bytes()[:200])
    page = build_page(bench, [half, whole])
    (gallery,) = blocks(page, "dataset")
    assert len(gallery.samples) == 1 and "half.png" in caplog.text
