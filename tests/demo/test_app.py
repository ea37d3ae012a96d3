import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from detectron2.modeling import build_model
from PIL import Image
from playwright.sync_api import sync_playwright

from mask2former import setup_cfg
from tests.conftest import ROOT, config_path, load_script
from tests.tiny import TINY

app = load_script("demo/app.py")
CONFIG = config_path("coco-panoptic")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Nothing of its own on the network, nothing of a user's profile.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(autouse=True)
def _process_restored(monkeypatch):
    """The script sets these for its process."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def draw_photo(path, seed=0, size=(80, 48)):
    pixels = np.random.RandomState(seed).randint(0, 256, (6, 10, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.NONSENSE", "1"], "MODEL.NONSENSE"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["--samples", "nowhere"], "nowhere: expected a folder"),
        (["--port", "99999"], "port 99999"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        app.main(["--config-file", str(CONFIG), *TINY, *arguments])
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ") and message in printed[-1]
    assert sum(line.startswith("error") for line in printed) == 1


def test_without_gradio_the_extra_is_named_before_the_model_is_built(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "mask2former.web.page", raising=False)
    monkeypatch.setattr(app.Predictor, "from_config", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(SystemExit, match="2"):
        app.main(["--config-file", str(CONFIG)])
    assert "'.[app]'" in capsys.readouterr().err


def test_limits_are_positive_and_the_page_is_for_this_machine_by_default():
    options = app.parse_arguments("--config-file F MODEL.DEVICE cpu --max-megapixels 0.5".split())
    assert (options.host, options.port, options.max_megapixels) == ("127.0.0.1", None, 0.5)
    assert options.opts == ["MODEL.DEVICE", "cpu"]
    for text in ("0", "-1", "nan", "many"):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            app.positive(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory, deterministic):
    """The address of the page of a model that finds much, and its temporary folder; it has to leave nothing behind."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("app")
    samples, files = folder / "samples", folder / "tmp"
    samples.mkdir(), files.mkdir()
    for seed in range(3):
        draw_photo(samples / f"sample{seed}.png", seed)
    weights = folder / "weights.safetensors"
    deterministic.save(deterministic.load_weights(build_model(setup_cfg(CONFIG, TINY))), weights)
    command = [sys.executable, "demo/app.py", "--config-file", str(CONFIG), "--samples", str(samples)]
    command += ["--max-megapixels", "0.1", "--max-megabytes", "0.1", *TINY, "MODEL.WEIGHTS", str(weights)]
    command += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"]
    environment = os.environ | {"TMPDIR": str(files), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        yield _address(process, lines), files
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
        reader.join(timeout=10)
    output = "".join(lines)
    assert status == 0 and "Traceback" not in output, output
    assert list(files.iterdir()) == []


def _address(process, lines):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        for line in list(lines):
            if line.startswith("open http"):
                return line.split()[1]
        time.sleep(0.1)
    process.kill()
    pytest.fail("no page:\n" + "".join(lines))


@pytest.fixture(scope="module")
def chromium(server):
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


# The progress indicator is visible only briefly, so the test watches for it.
_WATCH_BUSY = """() => new MutationObserver(() => {
    const sign = document.querySelector("#m2f-view > [data-testid=status-tracker]:not(.hide)");
    if (sign && getComputedStyle(sign).opacity !== "0") window.wasBusy = true;
}).observe(document.getElementById("m2f-view"), {subtree: true, attributes: true, childList: true})"""


class Visit:
    """A visitor with an own session: what the page asked for, and what it complained about."""

    def __init__(self, browser, address, screen):
        width, height = SCREENS[screen]
        phone = screen == "phone"
        # Without motion, so that places on the screen stay where they are.
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, is_mobile=phone, has_touch=phone, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#m2f-samples .gallery-item")

    def upload(self, path):
        self.page.set_input_files("#m2f-upload input[type=file]", str(path))

    def choose_sample(self, number):
        self.page.click(f"#m2f-samples .gallery-item >> nth={number}")

    def wait_for_result(self, of):
        self.wait_for_caption("segment", of)

    def wait_for_caption(self, *texts):
        self.page.wait_for_function(
            "texts => texts.every(text => document.querySelector('#m2f-status').innerText.includes(text))", arg=texts
        )

    def wait_for_alert(self, text):
        self.page.wait_for_selector(f'#m2f-status [role=alert]:has-text("{text}")')

    def segments(self):
        """Names under the picture, and in the rows of the table that are in view."""
        self.page.wait_for_selector("#m2f-table [role=gridcell]")
        names = self.page.locator("#m2f-view .legend-item").all_inner_texts()
        return names, self.column(0)

    def column(self, number):
        return self.page.locator(f"#m2f-table [role=gridcell][data-col='{number}']").all_inner_texts()

    def wait_for_masks(self, count):
        """Wait until masks are drawn: all of them, and those that are seen."""
        self.page.wait_for_function(
            """count => {
                const masks = [...document.querySelectorAll("#m2f-view .mask")];
                const seen = masks.filter(mask => getComputedStyle(mask).opacity > 0.1);
                return masks.every(mask => mask.complete && mask.naturalWidth) && seen.length === count;
            }""",
            arg=count,
        )

    def set_confidence(self, percent):
        box = self.page.locator("#m2f-confidence input[type=number]")
        box.fill(str(percent))
        box.press("Enter")

    def download(self, button):
        with self.page.expect_download() as saved:
            self.page.click(f"#m2f-{button}")
        return saved.value.suggested_filename, Path(saved.value.path())

    def overflows(self):
        return self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")

    def end(self):
        self.context.close()
        hosts = {urlsplit(url).hostname for url in self.requests if not url.startswith(("data:", "blob:"))}
        assert hosts == {"127.0.0.1"} and self.errors == []


@pytest.fixture
def visit(chromium, server):
    visits = []

    def begin(screen="desktop"):
        visits.append(Visit(chromium, server[0], screen))
        return visits[-1]

    yield begin
    for one in visits:
        one.end()


@pytest.mark.browser
def test_a_photograph_from_sample_to_download(visit, server, tmp_path):
    visitor = visit()
    visitor.page.evaluate(_WATCH_BUSY)
    assert visitor.page.locator("#m2f-png").is_disabled()
    visitor.choose_sample(0)
    visitor.wait_for_result("sample0.png (80 × 48 pixels)")
    assert visitor.page.evaluate("window.wasBusy")
    names, rows = visitor.segments()
    assert len(names) > 1 and rows == names[: len(rows)] and len(rows) > 1
    assert f"{len(names)} segments" in visitor.page.inner_text("#m2f-status") and all(visitor.column(1))
    visitor.wait_for_masks(len(names))
    visitor.page.hover("#m2f-view .legend-item >> nth=1")
    visitor.wait_for_masks(1)
    visitor.page.mouse.move(0, 0)
    visitor.page.focus("#m2f-view .legend-item >> nth=0")
    visitor.wait_for_masks(1)
    visitor.page.keyboard.press("Tab")
    visitor.wait_for_masks(1)
    assert visitor.page.evaluate("document.activeElement.innerText") == names[1]
    visitor.page.screenshot(path=tmp_path / "desktop.png", full_page=True)
    assert not visitor.overflows()

    assert _downloaded_segments(visitor, "panoptic", (80, 48)) == len(names)
    visitor.set_confidence(100)
    visitor.wait_for_caption("0 segments", "lower it")
    visitor.page.click("#m2f-task >> text=Semantic")
    visitor.wait_for_caption("Hover over")
    visitor.page.wait_for_selector("#m2f-table [role=gridcell]")
    assert not any(visitor.column(1)), "semantic results have no scores"
    _downloaded_segments(visitor, "semantic", (80, 48))

    assert list(server[1].rglob("sample0_semantic.*"))
    visitor.context.close()
    deadline = time.monotonic() + 30
    while list(server[1].rglob("sample0_semantic.*")):
        assert time.monotonic() < deadline, "files of a visitor who left"
        time.sleep(0.1)


def _downloaded_segments(visitor, task, size):
    """Download both files, and return how many segments the JSON has."""
    name, picture = visitor.download("png")
    assert name == f"sample0_{task}.png" and Image.open(picture).size == (size[0] * 8, size[1] * 8)
    name, data = visitor.download("json")
    result = json.loads(data.read_text())
    assert name == f"sample0_{task}.json" and result["file_name"] == "sample0.png" and result["task"] == task
    assert (result["width"], result["height"]) == size
    return len(result["segments_info"])


@pytest.mark.browser
def test_on_a_phone_nothing_overflows_and_tapping_a_name_shows_its_segment(visit, tmp_path):
    visitor = visit("phone")
    assert not visitor.overflows()
    photo = draw_photo(tmp_path / f"{'long_name_' * 12}.jpg", size=(60, 90))
    visitor.upload(photo)
    visitor.wait_for_result("(60 × 90 pixels)")
    visitor.page.wait_for_function("document.getElementById('m2f-view').getBoundingClientRect().top < innerHeight")
    visitor.page.tap("#m2f-view .legend-item >> nth=0")
    visitor.wait_for_masks(1)
    visitor.page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert not visitor.overflows()
    visitor.page.tap("text=More settings")
    visitor.page.wait_for_selector("#m2f-overlap input[type=range]")
    assert not visitor.overflows()


@pytest.mark.browser
def test_bad_files_are_explained_and_the_page_goes_on(visit, tmp_path):
    visitor = visit()
    (tmp_path / "notes.jpg").write_text("no image")
    visitor.upload(tmp_path / "notes.jpg")
    visitor.wait_for_alert("notes.jpg can't be read as an image")
    visitor.upload(draw_photo(tmp_path / "large.jpg", size=(400, 400)))
    message = "large.jpg is too large: 400 × 400 pixels are 0.16 megapixels, at most 0.1 are accepted"
    visitor.wait_for_alert(message)
    assert visitor.page.locator("#m2f-png").is_disabled()
    (tmp_path / "heavy.jpg").write_bytes(bytes(200_000))
    visitor.upload(tmp_path / "heavy.jpg")
    visitor.page.get_by_text('maximum allowed size of 102.4 Kb: "heavy.jpg"').wait_for()
    visitor.upload(draw_photo(tmp_path / "good.png"))
    visitor.wait_for_result("good.png")


@pytest.mark.browser
def test_classes_are_chosen_for_one_visitor_alone(visit):
    mine, yours = visit(), visit()
    mine.choose_sample(0)
    mine.wait_for_result("sample0.png")
    yours.choose_sample(1)
    yours.wait_for_result("sample1.png")
    yours.wait_for_masks(len(yours.segments()[0]))
    all_of_yours = yours.segments()
    name = mine.segments()[0][0]
    mine.page.fill("#m2f-classes input", name)
    mine.page.keyboard.press("Enter")
    mine.page.wait_for_function(
        """name => {
            const names = [...document.querySelectorAll("#m2f-view .legend-item")].map(item => item.innerText);
            return names.length && names.every(text => text === name || text.startsWith(`${name} #`));
        }""",
        arg=name,
    )
    assert mine.segments()[1]
    assert yours.segments() == all_of_yours
    yours.set_confidence(1)
    yours.wait_for_result("sample1.png")
