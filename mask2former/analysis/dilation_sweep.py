"""Other dilations in evaluation: which ones, and how results compare (DiNAT, arXiv 2209.15001, table 12).

Dilations have no weights, so that a trained model runs with any of them. Maps that are too small for one are padded.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tabulate import tabulate

from dinat_common.errors import UserError
from dinat_common.files import atomic_write, read_text, write_json

from .charts import draw_sweep

JSON_NAME, MARKDOWN_NAME, CHART_NAME = "dilations.json", "dilations.md", "dilations.png"
_VERSION = 1
# The main metrics, by the names of `metrics.json`; of each task, those among them are compared.
_MAIN = ("top1", "top5", "PQ", "AP", "mIoU", "IoU")

Dilations = list[list[int]]


class DilationError(UserError):
    """A setting of dilations that can't be understood, or does not fit the model."""


def parse_dilations(text: str, trained: Sequence[Sequence[int]]) -> Dilations:
    """Read a setting of dilations.

    Args:
        text: Name, number or list:

            * default: those of the config.
            * nat: no dilation.
            * A number, for example 2: those of the config times this number; layers without dilation stay without.
            * Numbers for all levels, for example 8,4,2,1: these in every second block, and 1 in the others.
            * A list for each level, for example [[1,8,1],[1,4,1,4],[1,2,1],[1,1]].
        trained: Dilations of the config, for each block of each level.

    Returns:
        Dilations for each block of each level.

    Raises:
        DilationError: The text is none of these, or has another number of levels or blocks.
    """
    if text == "default":
        return [list(level) for level in trained]
    if text == "nat":
        return [[1] * len(level) for level in trained]
    value: Any = None
    with suppress(ValueError):
        value = json.loads(text if text.startswith("[") else f"[{text}]")
    if _is_dilations(value) and len(value) == 1 and not text.startswith("["):
        return [[dilation if dilation == 1 else dilation * value[0] for dilation in level] for level in trained]
    if _is_dilations(value) and len(value) == len(trained):
        levels = zip(value, trained, strict=True)
        return [[dilation if block % 2 else 1 for block in range(len(level))] for dilation, level in levels]
    shapes = [len(level) for level in trained]
    if isinstance(value, list) and all(map(_is_dilations, value)) and [len(level) for level in value] == shapes:
        return value
    raise DilationError(
        f"dilations {text!r}: expected default, nat, a factor such as 2, {len(trained)} numbers such as 8,4,2,1, or "
        f"lists of {', '.join(map(str, shapes))} positive numbers"
    )


def _is_dilations(value: Any) -> bool:
    """Whether a value is a list of positive integers."""
    return isinstance(value, list) and bool(value) and all(type(entry) is int and entry > 0 for entry in value)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation with one setting of dilations.

    Attributes:
        name: Setting as it was given.
        dilations: Dilations for each block of each level.
        status: Whether there is a result.
        metrics: Main metrics in percent by task and name, such as "sem_seg mIoU".
        key: Hash of config and weights; results with the same key are equal.
        reason: Reason why there is no result.
    """

    name: str
    dilations: Dilations
    status: Literal["done", "failed", "open"] = "open"
    metrics: Mapping[str, float] = field(default_factory=dict)
    key: str = ""
    reason: str = ""


def main_metrics(folder: Path) -> dict[str, float]:
    """Read the main metrics that train_net.py left in OUTPUT_DIR.

    Raises:
        DilationError: There are none.
    """
    path = folder / "inference" / "metrics.json"
    content = json.loads(read_text(path))
    found = {
        f"{task} {name}": value
        for tasks in content.values()
        for task, metrics in tasks.items()
        for name, value in metrics.items()
        if name in _MAIN and value is not None
    }
    if not found:
        raise DilationError(f"{path}: expected one of the metrics {', '.join(_MAIN)}")
    return found


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Read what `write_report` left in a folder, by key; empty if there is nothing readable."""
    try:
        content = json.loads(read_text(folder / JSON_NAME))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    names = {entry.name for entry in fields(Evaluation)}
    found = [Evaluation(**{key: entry[key] for key in names if key in entry}) for entry in content["evaluations"]]
    return {evaluation.key: evaluation for evaluation in found}


def write_report(evaluations: Sequence[Evaluation], folder: Path) -> str:
    """Write `dilations.json`, `.md` and `.png` into a folder; returns the table."""
    done = [evaluation for evaluation in evaluations if evaluation.status == "done"]
    names = list(dict.fromkeys(name for evaluation in done for name in evaluation.metrics))
    rows = [
        (
            evaluation.name,
            " ".join(str(max(level)) for level in evaluation.dilations),
            *(f"{evaluation.metrics[name]:.2f}" if name in evaluation.metrics else "" for name in names),
            evaluation.reason or evaluation.status,
        )
        for evaluation in evaluations
    ]
    headers = ("setting", "largest dilation by level", *names, "")
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    content = {"version": _VERSION, "evaluations": [asdict(evaluation) for evaluation in evaluations]}
    write_json(folder / JSON_NAME, content, indent=2)
    with atomic_write(folder / MARKDOWN_NAME) as file:
        file.write(f"# Other dilations in evaluation\n\n{table}\n")
    if done:
        with atomic_write(folder / CHART_NAME, "wb") as file:
            draw_sweep({evaluation.name: evaluation.metrics for evaluation in done}, file)
    return table
