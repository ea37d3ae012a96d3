"""The page itself, in Gradio, which is imported when a page is built: everything else works without it.

Nothing on the page comes from anywhere but this process: no fonts, scripts or usage statistics of others.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mask2former.data.image_io import read_image
from mask2former.prediction.predictor import Predictor, shrunk
from mask2former.utils.errors import UserError
from mask2former.web.address import free_port
from mask2former.web.controls import build_controls
from mask2former.web.handlers import Handlers
from mask2former.web.overlay import message_html
from mask2former.web.photos import Sample
from mask2former.web.workbench import Workbench

if TYPE_CHECKING:
    import gradio as gr

_FOLDER = Path(__file__).parent
_TITLE = "Image segmentation"
_THUMBNAIL_SIDE = 240
# More names than that are a wall of text.
_NAMED_CLASSES = 8
# Uploads and downloads are deleted when they are an hour old, looked for every ten minutes.
_FILE_LIFETIME = (600, 3600)
# So many visitors may wait; the next is told to come back.
_LONGEST_QUEUE = 32


class MissingGradioError(UserError):
    """Gradio is not installed; the message says how to get it."""


def import_gradio() -> ModuleType:
    """The module, told not to call home.

    Raises:
        MissingGradioError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise MissingGradioError(f"the web page needs Gradio: pip install -e '.[app]' ({error})") from error
    return gradio


def serve(page: "gr.Blocks", workbench: Workbench, host: str, port: int | None) -> str:
    """Serve a page in threads of its own, until its `close()`, and return the address.

    Args:
        page: from `build_page`.
        workbench: the same as there.
        host: address of this machine to listen at; "127.0.0.1" can be reached from this machine alone.
        port: None: the first free one from 7860 on.

    Raises:
        AddressError: the address can't be used.
    """
    port = free_port(host, port)
    _no_proxy_for(host)
    themes = import_gradio().themes
    theme = themes.Default(
        primary_hue=themes.colors.teal, font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    _, address, _ = page.queue(max_size=_LONGEST_QUEUE).launch(
        server_name=host,
        server_port=port,
        theme=theme,
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        # So the browser says at once that a file is too large, and does not send it.
        max_file_size=int(2**20 * workbench.limits.megabytes),
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
    return address


def _no_proxy_for(host: str) -> None:
    """Gradio asks itself whether it is there, which a proxy of the environment would answer."""
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    own = ["localhost", "127.0.0.1", host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([excepted, *own] if excepted else own)


def build_page(workbench: Workbench, samples: Sequence[Sample]) -> "gr.Blocks":
    """Build the page of a model.

    Args:
        workbench: what does the work.
        samples: photographs to try.

    Raises:
        MissingGradioError: Gradio is not installed.
    """
    gradio = import_gradio()
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=_FILE_LIFETIME) as page:
        gradio.Markdown(f"# {_TITLE}\n{_about(workbench.predictor)}", elem_id="m2f-head")
        with gradio.Row(elem_id="m2f-columns"):
            with gradio.Column(elem_id="m2f-photo"):
                drop = gradio.File(label="Photograph", file_types=["image"], height=140, elem_id="m2f-upload")
                gallery = _gallery(gradio, samples)
            with gradio.Column(elem_id="m2f-result"):
                view = gradio.HTML(
                    message_html("Upload a photograph or choose a sample to see what is in it."),
                    apply_default_css=False,
                    js_on_load=(_FOLDER / "overlay.js").read_text(encoding="utf-8"),
                    elem_id="m2f-view",
                )
                with gradio.Row():
                    png = gradio.Button("Download picture (PNG)", interactive=False, elem_id="m2f-png")
                    json = gradio.Button("Download segments (JSON)", interactive=False, elem_id="m2f-json")
            with gradio.Column(elem_id="m2f-settings"):
                controls = build_controls(gradio, workbench.predictor)
        handlers = Handlers(gradio, workbench, samples)
        handlers.connect_photos(drop, gallery, view, [png, json], controls)
        handlers.connect_controls(view, controls)
        handlers.connect_download(png, workbench.picture, controls)
        handlers.connect_download(json, workbench.data, controls)
        page.unload(handlers.with_visitor(workbench.forget))
    return page


def _gallery(gradio: ModuleType, samples: Sequence[Sample]) -> Any:
    thumbnails = [(shrunk(read_image(sample.file), _THUMBNAIL_SIDE), sample.name) for sample in samples]
    return gradio.Gallery(
        thumbnails,
        label="Or choose a sample",
        columns=4,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        visible=bool(samples),
        elem_id="m2f-samples",
    )


def _about(predictor: Predictor) -> str:
    """A sentence about the model, and one about photographs."""
    names = list(dict.fromkeys(map(str, predictor.classes().names)))
    others = len(names) - _NAMED_CLASSES
    listed = ", ".join(names[:_NAMED_CLASSES]) + (f" and {others} more" if others > 0 else "")
    return (
        f"What is in a photograph, pixel by pixel. This model knows {len(names)} classes: {html.escape(listed)}. "
        "Photographs stay on this server, which deletes them after about an hour."
    )
