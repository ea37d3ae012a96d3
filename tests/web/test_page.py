import re
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former.web import (
    AddressError,
    Limits,
    MissingGradioError,
    Workbench,
    build_page,
    import_gradio,
    serve,
)
from mask2former.web.address import free_port
from mask2former.web.controls import choice, default_choice, for_task
from mask2former.web.handlers import Handlers
from mask2former.web.photos import PhotoError, Sample
from mask2former.web.workbench import Choice


@pytest.fixture
def bench(predictor, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    # As a developer's shell may have it.
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    return Workbench(predictor, Limits(megabytes=2), tmp_path)


@pytest.fixture
def handlers(bench, photo):
    gradio = import_gradio()
    with gradio.Blocks(analytics_enabled=False):
        return Handlers(gradio, bench, [Sample(photo("sample.png"), "sample")])


def test_the_page_is_served_to_this_machine_alone_and_calls_nobody(bench, photo, monkeypatch):
    connected = []
    connect = socket.socket.connect

    def watch(self, address):
        connected.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watch)
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.com")
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = build_page(bench, [Sample(photo(), "sample")])
    try:
        address = serve(page, bench, "127.0.0.1", None)
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", address).group(1))
        assert not page.share and page.server_name == "127.0.0.1"
        with pytest.raises(AddressError, match=f"port {port}: .*in use"):
            serve(page, bench, "127.0.0.1", port)
    finally:
        page.close(verbose=False)
    assert connected and {host for host, *_ in connected} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("::1", None, "IPv4 address"),
        ("no such host", None, "IPv4 address"),
        ("203.0.113.7", None, "port 7860 to 7959"),
        ("127.0.0.1", 65536, "port 65536"),
    ],
)
def test_addresses_that_are_not_here_are_refused(host, port, message):
    with pytest.raises(AddressError, match=message):
        free_port(host, port)


def test_a_taken_port_is_passed_over():
    first = free_port("127.0.0.1", None)
    with socket.socket() as server:
        server.bind(("127.0.0.1", first))
        server.listen()
        assert free_port("127.0.0.1", None) > first


def test_no_handler_is_an_api_and_the_page_names_no_other_server(bench, photo):
    config = build_page(bench, [Sample(photo(), "sample")]).get_config_file()
    assert config["dependencies"]
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}
    assert not config["analytics_enabled"]


def test_without_gradio_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingGradioError, match=r"'\.\[app\]'"):
        import_gradio()


def test_values_of_controls_are_percent(predictor):
    assert choice("instance", 35, 80, ["cat"]) == Choice("instance", 0.35, 0.8, ("cat",))
    assert choice("semantic", 0, 80, None).classes == ()
    assert default_choice(predictor) == Choice("panoptic", 0.0, 0.0)


@pytest.mark.parametrize(
    ("task", "confidence", "can_choose", "classes"),
    [
        ("panoptic", 0, True, ["person", "sky-other-merged"]),
        ("instance", 50, True, ["person"]),
        ("semantic", 0, False, ["person", "sky-other-merged"]),
    ],
)
def test_controls_follow_the_task(predictor, task, confidence, can_choose, classes):
    chosen = ["person", "sky-other-merged", "unknown"]
    of_confidence, of_overlap, of_classes = for_task(import_gradio(), predictor, task, chosen)
    assert of_confidence["value"] == confidence and of_confidence["interactive"] == can_choose
    assert "value" not in of_overlap and of_overlap["interactive"] == (task == "panoptic")
    assert of_classes["value"] == classes and len(of_classes["choices"]) == (80 if task == "instance" else 133)


def test_an_upload_is_shown_and_can_be_downloaded(handlers, photo):
    upload, drop, page, *buttons = handlers._uploaded(str(photo("my photo.png")))
    assert upload.name == "my photo.png" and drop is None and "<img" in page
    assert [button["interactive"] for button in buttons] == [True, True]
    assert "<path" in handlers._show("me", upload, "panoptic", 0, 0, [])
    assert handlers._sample(0)[0].name == "sample.png"


def test_a_bad_upload_is_explained_and_the_message_stays(handlers, tmp_path):
    (tmp_path / "notes.jpg").write_text("text")
    upload, _, page, *buttons = handlers._uploaded(str(tmp_path / "notes.jpg"))
    assert upload is None and 'role="alert"' in page and "notes.jpg can" in page
    assert [button["interactive"] for button in buttons] == [False, False]
    assert "value" not in handlers._show("me", upload, "panoptic", 0, 0, [])


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA"), PhotoError("photo.png is gone")])
def test_what_fails_while_a_result_is_made_is_explained(handlers, photo, monkeypatch, error):
    def fail(image):
        raise error

    upload = handlers._uploaded(str(photo()))[0]
    monkeypatch.setattr(handlers._bench.predictor, "analyze", fail)
    page = handlers._show("me", upload, "panoptic", 0, 0, [])
    assert 'role="alert"' in page and ("gone" in page or "not enough memory" in page)


def test_samples_become_thumbnails(bench, photo):
    page = build_page(bench, [Sample(photo(height=480, width=800), "sample")])
    (gallery,) = [block for block in page.blocks.values() if block.get_block_name() == "gallery"]
    assert max(np.array(Image.open(gallery.value[0]["image"]["path"])).shape) == 240
