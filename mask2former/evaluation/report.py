"""Results of an evaluation, for people and for files."""

import math
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

Results = Mapping[str, Mapping[str, float]]


def results_table(dataset_name: str, results: Results) -> str:
    """The metrics of a data set but for those of single classes, a row each, in percent."""
    rows = [
        (task, metric, value)
        for task, metrics in results.items()
        for metric, value in metrics.items()
        if "-" not in metric  # PQ-<class> and the like
    ]
    table = tabulate(rows, headers=("task", "metric", "%"), tablefmt="github", floatfmt=".4f")
    return f"Results on {dataset_name}:\n{table}"


def json_ready(results: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict of numbers as JSON has them: null for what could not be measured."""
    ready: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            ready[key] = json_ready(value)
        else:
            ready[key] = float(value) if math.isfinite(value) else None
    return ready
