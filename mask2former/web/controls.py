"""What a visitor chooses with: task, thresholds, classes and how strong the colours are."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mask2former.prediction.predictor import Predictor
from mask2former.tasks import Task
from mask2former.web.workbench import Choice

if TYPE_CHECKING:
    import gradio as gr

_TASKS: dict[Task, tuple[str, str]] = {
    "panoptic": ("Panoptic", "things one by one, and what surrounds them"),
    "instance": ("Instances", "things one by one"),
    "semantic": ("Semantic", "the class of each pixel"),
}
# The page's style sheet reads the variable.
_SET_OPACITY = "value => document.documentElement.style.setProperty('--m2f-opacity', value / 100)"


@dataclass(frozen=True)
class Controls:
    """The controls, built; in percent where people read them."""

    task: "gr.Radio"
    confidence: "gr.Slider"
    overlap: "gr.Slider"
    classes: "gr.Dropdown"

    @property
    def inputs(self) -> list[Any]:
        """Their values are the arguments of `choice`."""
        return [self.task, self.confidence, self.overlap, self.classes]


def choice(task: Task, confidence: float, overlap: float, classes: list[str] | None) -> Choice:
    """What the values of the controls mean."""
    return Choice(task, confidence / 100, overlap / 100, tuple(classes or ()))


def default_choice(predictor: Predictor) -> Choice:
    """What a page shows before anything was chosen."""
    return Choice(predictor.task, predictor.default_threshold(predictor.task), predictor.default_overlap)


def build_controls(gradio: ModuleType, predictor: Predictor) -> Controls:
    """Put the controls where the page is being built.

    Args:
        gradio: the module.
        predictor: says which tasks and classes there are.
    """
    start = default_choice(predictor)
    tasks = gradio.Radio(
        [(f"{_TASKS[task][0]}: {_TASKS[task][1]}", task) for task in predictor.tasks],
        value=start.task,
        label="Task",
        elem_id="m2f-task",
    )
    confidence = gradio.Slider(0, 100, step=1, elem_id="m2f-confidence", **_confidence(predictor, start.task))
    classes = gradio.Dropdown(multiselect=True, elem_id="m2f-classes", **_classes(predictor, start.task, []))
    with gradio.Accordion("More settings", open=False):
        overlap = gradio.Slider(0, 100, step=1, elem_id="m2f-overlap", **_overlap(start.task, start.overlap))
        opacity = gradio.Slider(0, 100, value=50, step=5, label="Strength of the colours, %", elem_id="m2f-opacity")
    opacity.input(None, opacity, None, js=_SET_OPACITY, api_visibility="private")
    return Controls(tasks, confidence, overlap, classes)


def for_task(gradio: ModuleType, predictor: Predictor, task: Task, chosen: Sequence[str]) -> list[Any]:
    """Updates of confidence, overlap and classes when another task was chosen; classes that it knows stay chosen."""
    return [
        gradio.update(**_confidence(predictor, task)),
        gradio.update(**_overlap(task)),
        gradio.update(**_classes(predictor, task, chosen)),
    ]


def _confidence(predictor: Predictor, task: Task) -> dict[str, Any]:
    if task == "semantic":
        return {"label": "Confidence, %", "info": "Semantic results have none.", "value": 0, "interactive": False}
    value = round(100 * predictor.default_threshold(task))
    return {"label": "Confidence, %", "info": "Lower shows more.", "value": value, "interactive": True}


def _overlap(task: Task, value: float | None = None) -> dict[str, Any]:
    info = "How much of its mask a segment keeps beside others, at least." if task == "panoptic" else "Panoptic only."
    given = {} if value is None else {"value": round(100 * value)}
    return {"label": "Overlap, %", "info": info, "interactive": task == "panoptic", **given}


def _classes(predictor: Predictor, task: Task, chosen: Sequence[str]) -> dict[str, Any]:
    table = predictor.classes(task)
    possible = [str(n) for i, n in enumerate(table.names) if task != "instance" or i in (table.thing_ids or (i,))]
    # Names may repeat; choosing one then chooses all classes of the name.
    names = list(dict.fromkeys(possible))
    return {
        "label": "Classes",
        "info": "Choose those to show; none: all.",
        "choices": names,
        "value": [n for n in chosen if n in names],
    }
