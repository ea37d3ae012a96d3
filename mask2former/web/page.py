"""The web page, built with Gradio; importing this module needs it.

The page loads nothing from other servers: no fonts, no scripts, no usage statistics.
"""

import html
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dinat_common.errors import UserError
from dinat_common.files import WriteError
from mask2former.prediction.base import SegmentPrediction
from mask2former.prediction.predictor import RESULTS, Predictor
from mask2former.tasks import TASKS, Task
from mask2former.web.workbench import (
    CLASS_HEADERS,
    SEGMENT_HEADERS,
    Choice,
    PhotoError,
    Upload,
    Workbench,
    segment_label,
    thumbnails,
)


class MissingGradioError(UserError):
    """Gradio is not installed; the message says how to install it."""


# Read when Gradio is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    raise MissingGradioError(f"the web page needs Gradio: pip install -e '.[app]' ({error})") from error

_START = "Upload a photograph or choose a sample to see what is in it."
_NO_MEMORY = "There is not enough memory for this photograph. Make it smaller and try again."
_THUMBNAIL_SIDE = 240
# Number of classes that the page lists by name.
_NAMED_CLASSES = 8
# Number of segments per class that have the colours of the downloaded picture; Gradio chooses colours for the others.
_COLORED_PER_CLASS = 10
# Seconds between deletions of old uploads and pictures, and their age at deletion.
_FILE_LIFETIME = (600, 3600)
# Number of visitors who may wait; others are asked to come back.
_LONGEST_QUEUE = 32
# On a phone, the result is below the visible part of the page.
_SCROLL = """() => {
    const status = document.getElementById("m2f-status");
    if (status.getBoundingClientRect().top > window.innerHeight / 2) status.scrollIntoView();
}"""
# Photograph and settings on the left, the result on the right; in one column on narrow screens.
_LAYOUT = """
.gradio-container { max-width: 1400px !important; }
#m2f-columns { display: grid; gap: 16px;
    grid-template: "photo result" auto "settings result" 1fr / minmax(260px, 340px) minmax(0, 1fr); }
#m2f-photo { grid-area: photo; } #m2f-result { grid-area: result; } #m2f-settings { grid-area: settings; }
#m2f-status { overflow-wrap: anywhere; } #m2f-status [role=alert] { color: #dc2626; font-weight: 600; }
@media (max-width: 800px) { #m2f-columns { grid-template: "photo" "result" "settings" / minmax(0, 1fr); } }
"""


class Handlers:
    """Event handlers of the page; Gradio calls them with the values of its components."""

    def __init__(self, bench: Workbench, samples: Sequence[Path]):
        """Set the parts.

        Args:
            bench: Workbench that makes the results.
            samples: Photographs to try, in the order of the gallery.
        """
        self._bench = bench
        self._samples = samples

    def uploaded(self, path: str) -> list[Any]:
        """New values of upload, drop area, picture, status, table and both buttons after a photograph was uploaded."""
        return self._received(Upload(path, Path(path).name))

    def sample_chosen(self, index: int) -> list[Any]:
        """New values after a sample was chosen, see `uploaded`."""
        file = self._samples[index]
        return self._received(Upload(str(file), file.name))

    def _received(self, upload: Upload) -> list[Any]:
        try:
            picture = self._bench.preview(upload), []
            kept, status = upload, status_html(f"Looking at {upload.name} …")
        except (PhotoError, MemoryError) as error:
            picture, kept, status = None, None, status_html(_explain(error), error=True)
        button = gr.update(interactive=kept is not None)
        return [kept, None, picture, status, gr.update(visible=False), button, button]

    def show(self, request: gr.Request, upload: Upload | None, opacity: float, *values: Any) -> Any:
        """Picture, status and table of the result; the values are those of `choice`."""
        if upload is None:
            return gr.skip()
        try:
            shown = self._bench.show(str(request.session_hash), upload, choice(*values), opacity / 100)
        except (PhotoError, MemoryError, torch.OutOfMemoryError) as error:
            return None, status_html(_explain(error), error=True), gr.update(visible=False)
        table = gr.update(value=[list(row) for row in shown.rows], visible=bool(shown.rows))
        # The picture is a plain value: Gradio never deletes the files of components whose properties are updated.
        return (shown.photo, shown.masks), status_html(shown.caption), table

    def task_changed(self, task: Task, classes: Sequence[str]) -> list[Any]:
        """Updates of confidence, overlap and classes; chosen classes that the new task has stay chosen."""
        return [gr.update(**settings) for settings in _settings(self._bench.predictor, task, classes)]

    def picture(self, request: gr.Request, upload: Upload, *values: Any) -> Path:
        """Write the picture to download."""
        return self._download(self._bench.picture, request, upload, values)

    def data(self, request: gr.Request, upload: Upload, *values: Any) -> Path:
        """Write the JSON to download."""
        return self._download(self._bench.data, request, upload, values)

    def _download(
        self, write: Callable[[str, Upload, Choice], Path], request: gr.Request, upload: Upload, values: Sequence[Any]
    ) -> Path:
        try:
            return write(str(request.session_hash), upload, choice(*values))
        except (PhotoError, WriteError, MemoryError, torch.OutOfMemoryError) as error:
            raise gr.Error(html.escape(_explain(error)), print_exception=False) from error

    def left(self, request: gr.Request) -> None:
        """Forget a visitor who closed the page."""
        self._bench.forget(str(request.session_hash))


def choice(task: Task, confidence: float, overlap: float, classes: list[str] | None) -> Choice:
    """Choice for the values of the controls, which are in percent."""
    return Choice(task, confidence / 100, overlap / 100, tuple(classes or ()))


def status_html(text: str, *, error: bool = False) -> str:
    """Text for the line above the picture; screen readers announce it."""
    return f'<div role="{"alert" if error else "status"}">{html.escape(text)}</div>'


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, PhotoError | WriteError) else _NO_MEMORY


def build_page(bench: Workbench, samples: Sequence[Path]) -> gr.Blocks:
    """Build the page of a model.

    Args:
        bench: Workbench that makes the results.
        samples: Photographs to try; those that can't be read are left out.
    """
    predictor = bench.predictor
    small = thumbnails(samples, _THUMBNAIL_SIDE, predictor.value_range)
    handlers = Handlers(bench, list(small))
    segments = issubclass(RESULTS[predictor.task], SegmentPrediction)
    title, what = ("Image segmentation", "segments") if segments else ("Image classification", "classes")
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=_FILE_LIFETIME) as page:
        gr.Markdown(f"# {title}\n{_about(predictor)}")
        upload = gr.State(None)  # of one visitor
        with gr.Row(elem_id="m2f-columns"):
            with gr.Column(elem_id="m2f-photo"):
                drop = gr.File(label="Photograph", file_types=["image"], height=140, elem_id="m2f-upload")
                gallery = gr.Dataset(
                    label="Or choose a sample",
                    components=["image"],
                    samples=[[picture] for picture in small.values()],
                    type="index",
                    samples_per_page=len(small) or 1,
                    visible=bool(small),
                    elem_id="m2f-samples",
                )
            with gr.Column(elem_id="m2f-result"):
                status = gr.HTML(status_html(_START), elem_id="m2f-status")
                view = gr.AnnotatedImage(color_map=_colors(predictor), show_label=False, elem_id="m2f-view")
                table = gr.Dataframe(
                    headers=list(SEGMENT_HEADERS if segments else CLASS_HEADERS),
                    interactive=False,
                    visible=False,
                    show_label=False,
                    buttons=[],
                    elem_id="m2f-table",
                )
                with gr.Row():
                    png = gr.Button("Download picture (PNG)", interactive=False, elem_id="m2f-png")
                    json = gr.Button(f"Download {what} (JSON)", interactive=False, elem_id="m2f-json")
            with gr.Column(elem_id="m2f-settings"):
                of_confidence, of_overlap, of_classes = _settings(predictor, predictor.task, [])
                tasks = [(f"{TASKS[task].label}: {TASKS[task].description}", task) for task in predictor.tasks]
                several = len(tasks) > 1
                task = gr.Radio(tasks, value=predictor.task, label="Task", visible=several, elem_id="m2f-task")
                scored = not all(TASKS[task].no_threshold for task in predictor.tasks)
                confidence = gr.Slider(0, 100, step=1, visible=scored, elem_id="m2f-confidence", **of_confidence)
                classes = gr.Dropdown(multiselect=True, elem_id="m2f-classes", **of_classes)
                with gr.Accordion("More settings", open=False, visible=segments):
                    start = round(100 * predictor.default_overlap)
                    competing = "panoptic" in predictor.tasks
                    overlap = gr.Slider(0, 100, start, step=1, visible=competing, elem_id="m2f-overlap", **of_overlap)
                    opacity = gr.Slider(0, 100, 60, step=5, label="Opacity of the masks, %", elem_id="m2f-opacity")

        # No handler is an API of the server, and one photograph at a time passes through the model.
        private: dict[str, Any] = {"api_visibility": "private"}
        in_turn: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", **private}
        chosen = [task, confidence, overlap, classes]
        show = {"fn": handlers.show, "inputs": [upload, opacity, *chosen], "outputs": [view, status, table], **in_turn}
        received = [upload, drop, view, status, table, png, json]
        for event in (
            drop.upload(handlers.uploaded, drop, received, **private),
            gallery.click(handlers.sample_chosen, gallery, received, **private),
        ):
            event.then(**show)
            event.then(None, None, None, js=_SCROLL, **private)
        changed = task.input(handlers.task_changed, [task, classes], [confidence, overlap, classes], **private)
        changed.then(**show, show_progress="minimal")
        moved = [control.input for control in (confidence, overlap, classes, opacity)]
        gr.on(moved, **show, trigger_mode="always_last", show_progress="minimal")
        for button, write in ((png, handlers.picture), (json, handlers.data)):
            file = gr.DownloadButton(visible="hidden", elem_id=f"{button.elem_id}-file")
            written = button.click(write, [upload, *chosen], file, show_progress_on=button, **in_turn)
            # The browser learns the address of the file with this event, and can use it in the next turn.
            click = f"() => setTimeout(() => document.getElementById('{file.elem_id}').click(), 50)"
            written.success(None, None, None, js=click, **private)
        page.unload(handlers.left)
    return page


def _settings(predictor: Predictor, task: Task, chosen: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Properties of the controls for confidence, overlap and classes that depend on the task."""
    confidence = {"label": "Confidence, %", "info": "Semantic results have none.", "value": 0, "interactive": False}
    if not TASKS[task].no_threshold:
        value = round(100 * predictor.default_threshold(task))
        confidence |= {"info": "Lower shows more.", "value": value, "interactive": True}
    share = "Smallest share of its mask that a segment keeps next to others."
    overlap = {
        "label": "Overlap, %",
        "info": share if task == "panoptic" else "Panoptic only.",
        "interactive": task == "panoptic",
    }
    table = predictor.classes(task)
    # Names may repeat; one name stands for all its classes.
    things_only = TASKS[task].class_list == "thing"
    named = (str(name) for i, name in enumerate(table.names) if not things_only or i in table.thing_ids)
    names = list(dict.fromkeys(named))
    classes = {
        "label": "Classes",
        "info": "Classes to show; all if none is chosen.",
        "choices": names,
        "value": [name for name in chosen if name in names],
    }
    return confidence, overlap, classes


def _colors(predictor: Predictor) -> dict[str, str]:
    """Colours of segments by their label, as in the downloaded picture."""
    colors: dict[str, str] = {}
    for task in predictor.tasks:
        if not issubclass(RESULTS[task], SegmentPrediction):
            continue
        table = predictor.classes(task)
        for class_id in range(len(table.names)):
            for index in range(_COLORED_PER_CLASS):
                color = "#{:02x}{:02x}{:02x}".format(*table.instance_color(class_id, index))
                colors.setdefault(segment_label(table.name(class_id), index), color)
    return colors


def _about(predictor: Predictor) -> str:
    names = list(dict.fromkeys(map(str, predictor.classes().names)))
    others = len(names) - _NAMED_CLASSES
    listed = ", ".join(names[:_NAMED_CLASSES]) + (f" and {others} more" if others > 0 else "")
    how = ", pixel by pixel" if issubclass(RESULTS[predictor.task], SegmentPrediction) else ""
    return (
        f"Shows what is in a photograph{how}. The model knows {len(names)} classes: {html.escape(listed)}. "
        "Photographs stay on this server, which deletes them after about an hour."
    )


class AddressError(UserError):
    """An address at which the page cannot be served; the message says why."""


def serve(page: gr.Blocks, bench: Workbench, host: str, port: int | None) -> str:
    """Serve a page in threads of its own until its `close()`, and return its URL.

    Args:
        page: Page from `build_page`.
        bench: Workbench of that page.
        host: Name or IPv4 address of this machine to listen at; "127.0.0.1" cannot be reached from other machines.
        port: Port to listen at; None uses the first free one from 7860 on.

    Raises:
        AddressError: The address or the port cannot be used.
    """
    _check_address(host, port)
    # Gradio requests its own page at the start, which a proxy of the environment would answer.
    direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, direct))
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.teal, font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    try:
        _, address, _ = page.queue(max_size=_LONGEST_QUEUE).launch(
            server_name=host,
            server_port=port,
            theme=theme,
            css=_LAYOUT,
            # The browser refuses larger files before it sends them.
            max_file_size=int(2**20 * bench.limits.megabytes),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    except OSError as error:
        raise AddressError(f"can't listen at {host}, port {port or 'from 7860 on'}: {error}") from error
    return address


def _check_address(host: str, port: int | None) -> None:
    """Raise an AddressError unless a server can listen there; Gradio would try for minutes and not say why."""
    if port is not None and not 0 < port < 65536:
        raise AddressError(f"port {port}: expected a number from 1 to 65535")
    try:
        with socket.socket() as server:
            # Like web servers, which may return to a port at once.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port or 0))
    except socket.gaierror as error:
        raise AddressError(f"{host}: expected a name or an IPv4 address of this machine ({error})") from error
    except OSError as error:
        raise AddressError(f"can't listen at {host}, port {port or 'from 7860 on'}: {error}") from error
