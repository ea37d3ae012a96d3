"""What happens on the page: which control starts what, and what the page shows then."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mask2former.tasks import Task
from mask2former.web.controls import Controls, choice, for_task
from mask2former.web.overlay import message_html
from mask2former.web.photos import PhotoError, Sample
from mask2former.web.workbench import Choice, Upload, Workbench

# On a phone the result starts below what is seen.
_SHOW_VIEW = """() => {
    const view = document.getElementById("m2f-view");
    if (view.getBoundingClientRect().top > window.innerHeight / 2) {
        const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
        view.scrollIntoView({behavior: still ? "auto" : "smooth", block: "start"});
    }
}"""
_NO_MEMORY = "There is not enough memory for this photograph. Make it smaller and try again."
# One photograph at a time goes through the model; and no handler is an API of the server.
_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


class Handlers:
    """The handlers of one page. They are called by Gradio, with the values of controls."""

    def __init__(self, gradio: ModuleType, workbench: Workbench, samples: Sequence[Sample]):
        """Set the parts.

        Args:
            gradio: the module.
            workbench: what does the work.
            samples: what the gallery of the page shows.
        """
        self._gradio = gradio
        self._bench = workbench
        self._samples = samples
        # Each visitor's own.
        self._upload = gradio.State(None)

    def connect_photos(self, drop: Any, gallery: Any, view: Any, buttons: Sequence[Any], controls: Controls) -> None:
        """Show the photographs that are uploaded or chosen, then what is in them."""
        outputs = [self._upload, drop, view, *buttons]
        received = drop.upload(self._uploaded, drop, outputs, **_PRIVATE)
        selected = gallery.select(self._with_selection(self._sample), None, outputs, **_PRIVATE)
        for event in (received, selected):
            event.then(None, None, None, js=_SHOW_VIEW, **_PRIVATE)
            event.then(self.with_visitor(self._show), [self._upload, *controls.inputs], view, **_MODEL)

    def connect_controls(self, view: Any, controls: Controls) -> None:
        """Show the result anew when another is asked for."""
        of_task = [controls.confidence, controls.overlap, controls.classes]
        changed = controls.task.input(self._task, [controls.task, controls.classes], of_task, **_PRIVATE)
        # The last result stays to be seen meanwhile: this takes a moment only.
        show = (self.with_visitor(self._show), [self._upload, *controls.inputs], view)
        changed.then(*show, show_progress="minimal", **_MODEL)
        moved = [control.input for control in of_task]
        self._gradio.on(moved, *show, trigger_mode="always_last", show_progress="minimal", **_MODEL)

    def connect_download(self, button: Any, make: Callable[[str, Upload, Choice], Path], controls: Controls) -> None:
        """Make a file when a button is clicked, and let the browser save it."""
        file = self._gradio.DownloadButton(visible="hidden", elem_id=f"{button.elem_id}-file")

        def handle(visitor: str, upload: Upload, *values: Any) -> Path:
            try:
                return make(visitor, upload, choice(*values))
            except (PhotoError, MemoryError, torch.OutOfMemoryError) as error:
                raise self._gradio.Error(_explain(error), print_exception=False) from error

        made = button.click(
            self.with_visitor(handle), [self._upload, *controls.inputs], file, show_progress_on=button, **_MODEL
        )
        # The browser gets the file's address with this event, and uses it in the next turn.
        made.success(
            None, None, None, js=f"() => setTimeout(() => document.getElementById('{file.elem_id}').click(), 50)"
        )

    def with_visitor(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """A handler whose first argument is the visitor, in the form that Gradio calls."""

        def handle(request: Any, *values: Any) -> Any:
            return handler(request.session_hash, *values)

        # By its type Gradio knows what to give.
        handle.__annotations__["request"] = self._gradio.Request
        return handle

    def _with_selection(self, handler: Callable[[int], Any]) -> Callable[..., Any]:
        def handle(event: Any) -> Any:
            return handler(event.index)

        handle.__annotations__["event"] = self._gradio.SelectData
        return handle

    def _uploaded(self, path: str) -> list[Any]:
        return self._received(Upload(path, Path(path).name))

    def _sample(self, index: int) -> list[Any]:
        sample = self._samples[index]
        return self._received(Upload(str(sample.file), sample.file.name))

    def _received(self, upload: Upload) -> list[Any]:
        """The visitor's photograph, an empty place for the next, what is shown, and both buttons."""
        try:
            shown, kept = self._bench.preview(upload), upload
        except (PhotoError, MemoryError) as error:
            shown, kept = message_html(_explain(error), error=True), None
        button = self._gradio.update(interactive=kept is not None)
        return [kept, None, shown, button, button]

    def _show(self, visitor: str, upload: Upload | None, *values: Any) -> Any:
        if upload is None:
            return self._gradio.skip()
        try:
            return self._bench.show(visitor, upload, choice(*values))
        except (PhotoError, MemoryError, torch.OutOfMemoryError) as error:
            return message_html(_explain(error), error=True)

    def _task(self, task: Task, classes: Sequence[str]) -> list[Any]:
        return for_task(self._gradio, self._bench.predictor, task, classes)


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, PhotoError) else _NO_MEMORY
