"""Evaluations of the published models: what can be evaluated here, and the results so far.

Most models have one evaluation. A model whose published numbers may belong to either of two settings has one for each,
called `MODEL@WAY`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from dinat_common.files import read_text, write_json
from mask2former.data.published import DatasetCheck
from mask2former.evaluation.metric import EvaluationError
from mask2former.model_zoo import MODELS, Group, PublishedModel

JSON_NAME = "reproduction.json"
_VERSION = 1
# The published file, what tools/convert_weights.py makes of it, and what older scripts made.
CHECKPOINT_ENDINGS = (".pth", ".safetensors", ".pkl")
# Where the metrics of the papers are in our results: task, and possible names.
_METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "top1": ("classification", ("top1",)),
    "box AP": ("bbox", ("AP",)),
    "mask AP": ("segm", ("AP",)),
    "PQ": ("panoptic_seg", ("PQ",)),
    "AP": ("segm", ("AP",)),
    "mIoU": ("sem_seg", ("mIoU", "IoU")),  # Cityscapes' own scripts call the mean over classes IoU
}
# Metrics of models without published numbers.
_UNPUBLISHED: Mapping[Group, tuple[str, ...]] = {"classification": ("top1",)}
_MULTI_SCALE = " multi-scale"
_NO_CHECKPOINT = "weights: no file of the published name (.pth, .safetensors or .pkl) in"


@dataclass(frozen=True)
class Quantity:
    """A number that is measured and compared with the paper.

    Attributes:
        label: Name of the metric, with "multi-scale" if there is also a number at a single scale.
        metric: Name of the metric.
        paper: Published value in percent; None if there is none.
        multi_scale: Whether only test-time augmentation gives it.
    """

    label: str
    metric: str
    paper: float | None
    multi_scale: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One way to evaluate a published model.

    Attributes:
        name: Name of the evaluation.
        model: The model.
        opts: Config keys and values of this way.
    """

    name: str
    model: PublishedModel
    opts: tuple[str, ...] = ()

    @property
    def augmented(self) -> bool:
        """Whether there are published numbers with test-time augmentation."""
        return self.model.multi_scale or bool(self.model.published_multi_scale)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What is measured."""
        metrics = tuple(self.model.published) or _UNPUBLISHED[self.model.group]
        single = (Quantity(metric, metric, self.model.published.get(metric)) for metric in metrics)
        multi = self.model.published_multi_scale.items()
        return (*single, *(Quantity(metric + _MULTI_SCALE, metric, paper, True) for metric, paper in multi))

    @property
    def doubt(self) -> str:
        """Reason why the published numbers may belong to another model or setting; empty if there is none."""
        # Two file names are no doubt about a number.
        return "" if self.model.other_checkpoints else self.model.doubt

    def remarks(self) -> list[str]:
        """What a reader of the results has to know."""
        found = [] if self.model.published else ["no number was published"]
        if self.doubt:
            found.append(self.doubt)
        if self.opts:
            found.append(f"evaluated with {' '.join(self.opts)}")
        return found


def _evaluations_of(model: PublishedModel) -> list[Evaluation]:
    if not model.ways:
        return [Evaluation(model.name, model)]
    return [Evaluation(f"{model.name}@{way}", model, opts) for way, opts in model.ways.items()]


EVALUATIONS: Mapping[str, Evaluation] = {
    evaluation.name: evaluation for model in MODELS.values() for evaluation in _evaluations_of(model)
}
# Names of evaluations by group, in the order of the papers.
GROUPS: Mapping[Group, tuple[str, ...]] = {
    group: tuple(name for name, evaluation in EVALUATIONS.items() if evaluation.model.group == group)
    for group in dict.fromkeys(model.group for model in MODELS.values())
}


def select(word: str) -> list[str]:
    """Names of the evaluations that a word stands for: a model, one of its ways, a group, or a pattern."""
    return [
        name
        for name, evaluation in EVALUATIONS.items()
        if word == evaluation.model.group or fnmatchcase(name, word) or fnmatchcase(evaluation.model.name, word)
    ]


def near(word: str) -> str:
    """What a word may have meant for which `select` finds nothing; all that there is if nothing is similar."""
    known = {name: name for name in (*GROUPS, *EVALUATIONS)}
    for model in MODELS.values():
        files = (model.config_file, *map(Path, (model.checkpoint, *model.other_checkpoints)))
        known |= {model.name: model.name} | {name: model.name for file in files for name in (file.name, file.stem)}
    if similar := get_close_matches(Path(word).name, known, n=5):
        return f"similar: {', '.join(dict.fromkeys(known[name] for name in similar))}"
    lists = (f"{group}: {', '.join(names)}" for group, names in GROUPS.items())
    return "\n  ".join(["there are these groups and models, and patterns such as '*dinat_s*'", *lists])


def compact(names: Iterable[str]) -> str:
    """Names of evaluations in one line, in which complete and almost complete groups are called by their names."""
    names, parts = set(names), []
    for group, members in GROUPS.items():
        found, lacking = ([name for name in members if (name in names) == known] for known in (True, False))
        if not lacking:
            parts.append(f"{group} (all {len(members)})")
        elif len(lacking) < len(members) / 4:
            parts.append(f"{group} (all but {', '.join(lacking)})")
        else:
            parts += found
    return ", ".join(parts)


@dataclass(frozen=True)
class Plan:
    """What is available for one evaluation.

    Attributes:
        evaluation: The evaluation.
        images: Number of images to evaluate.
        checkpoint: File of the weights; None if it is missing.
        obstacles: Reasons why it can't be done.
        remarks: Differences from the published data that do not prevent it.
    """

    evaluation: Evaluation
    images: int
    checkpoint: Path | None
    obstacles: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the evaluation can be done."""
        return not self.obstacles


def make_plan(evaluation: Evaluation, data: Iterable[DatasetCheck], weights: Path) -> Plan:
    """Combine the check of the data with the search for the checkpoint.

    Args:
        evaluation: The evaluation.
        data: Checks of its data sets.
        weights: Folder of the checkpoints, under their published names, which may end in `.safetensors` or `.pkl`.
    """
    data, names = list(data), (evaluation.model.checkpoint, *evaluation.model.other_checkpoints)
    paths = [weights / Path(name).with_suffix(ending).name for name in names for ending in CHECKPOINT_ENDINGS]
    checkpoint = next((path for path in paths if path.is_file()), None)
    obstacles = [f"data: {message}" for check in data for message in check.findings.messages(blocks=True)]
    if checkpoint is None:
        obstacles.append(f"{_NO_CHECKPOINT} {weights}")
    remarks = (message for check in data for message in check.findings.messages(blocks=False))
    return Plan(evaluation, sum(check.images for check in data), checkpoint, tuple(obstacles), tuple(remarks))


def lacking_weights(records: Iterable["Record"]) -> list[str]:
    """Addresses of the checkpoints that evaluations lack; files of a folder share one, as shells expand braces."""
    folders: dict[str, dict[str, None]] = {}
    for record in records:
        if any(obstacle.startswith(_NO_CHECKPOINT) for obstacle in record.obstacles):
            folder, _, name = EVALUATIONS[record.setting].model.checkpoint_url.rpartition("/")
            folders.setdefault(folder, {})[Path(name).stem] = None
    lists = ((folder, ",".join(names), len(names)) for folder, names in folders.items())
    return [f"{folder}/{f'{{{text}}}' if count > 1 else text}.pth" for folder, text, count in lists]


@dataclass(frozen=True)
class Record:
    """The state of one evaluation.

    Attributes:
        setting: Name of the evaluation.
        status: Whether there is a result.
        reason: Reason why there is none.
        obstacles: Reasons one by one if something is missing.
        multi_scale: Whether test-time augmentation was used.
        ours: Percent by label of the quantity; None if there was nothing to measure.
        config_sha256: Hash of the resolved config without paths; empty if something is missing.
        checkpoint: Name of the checkpoint file; empty if it is missing.
        checkpoint_sha256: Hash of its content.
        checkpoint_state: Size of the file in bytes, and time of its modification in nanoseconds.
        images: Number of evaluated images.
        remarks: Differences from the published data, and doubts about the published numbers.
        speed: Entry of the evaluation's `speed.json`; may be empty.
        speed_multi_scale: Entry of its multi-scale part, if that gives numbers of its own.
        versions: Versions of libraries.
        finished: Time of the result, ISO 8601.
    """

    setting: str
    status: Literal["done", "missing", "failed", "open"]
    reason: str = ""
    obstacles: Sequence[str] = ()
    multi_scale: bool = False
    ours: Mapping[str, float | None] = field(default_factory=dict)
    config_sha256: str = ""
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    checkpoint_state: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    remarks: Sequence[str] = ()
    speed: Mapping[str, Any] = field(default_factory=dict)
    speed_multi_scale: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""

    def difference(self, quantity: Quantity) -> float | None:
        """Our result minus the paper's, in percentage points; None if one of them is missing."""
        ours = self.ours.get(quantity.label)
        return None if ours is None or quantity.paper is None else ours - quantity.paper


@dataclass(frozen=True)
class Results:
    """What an evaluation has measured; see the attributes of `Record`."""

    ours: dict[str, float | None]
    speed: dict[str, Any] = field(default_factory=dict)
    speed_multi_scale: dict[str, Any] = field(default_factory=dict)


def read_results(output: Path, name: str, *, multi_scale: bool) -> Results:
    """Read the results of an evaluation by train_net.py.

    Args:
        output: OUTPUT_DIR of the evaluation.
        name: Name of the evaluation.
        multi_scale: Whether test-time augmentation was used.

    Raises:
        EvaluationError: A metric is missing; the message names file and metric.
    """
    path, speed_file = output / "inference" / "metrics.json", output / "inference" / "speed.json"
    evaluation = EVALUATIONS[name]
    dataset, tasks = next(iter(_read_object(path).items()), ("", {}))
    # If both kinds of numbers are published, those at a single scale stay what they are.
    both = bool(evaluation.model.published_multi_scale)
    ours = {}
    for quantity in evaluation.quantities:
        if quantity.multi_scale and not multi_scale:
            continue
        task, keys = _METRICS[quantity.metric]
        task += "_TTA" if quantity.multi_scale or (multi_scale and not both) else ""
        found = tasks.get(task, {})
        key = next((key for key in keys if key in found), None)
        if key is None:
            raise EvaluationError(f"{path}: expected {quantity.metric}, as {' or '.join(keys)} under {task!r}")
        ours[quantity.label] = found[key]
    speeds = _read_object(speed_file) if speed_file.is_file() else {}
    single, multi = speeds.get(dataset) or {}, speeds.get(f"{dataset}_TTA") or {}
    if not multi_scale:
        return Results(ours, single)
    return Results(ours, single, multi) if both else Results(ours, multi)


def read_records(folder: Path) -> dict[str, Record]:
    """Read the records that `write_records` left in a folder, by name; empty if there are no readable ones."""
    try:
        content = _read_object(folder / JSON_NAME)
    except (OSError, ValueError):
        return {}
    if content.get("version") != _VERSION:
        return {}
    names = {entry.name for entry in fields(Record)}
    entries = ({key: value for key, value in entry.items() if key in names} for entry in content["settings"])
    return {entry["setting"]: Record(**entry) for entry in entries if entry["setting"] in EVALUATIONS}


def write_records(records: Iterable[Record], folder: Path) -> None:
    """Write `reproduction.json`, in which each record also has the published numbers."""
    entries = []
    for record in records:
        evaluation = EVALUATIONS[record.setting]
        comparison = {
            quantity.label: {
                "paper": quantity.paper,
                "ours": record.ours.get(quantity.label),
                "difference": record.difference(quantity),
            }
            for quantity in evaluation.quantities
        }
        entries.append({**asdict(record), "group": evaluation.model.group, "comparison": comparison})
    write_json(folder / JSON_NAME, {"version": _VERSION, "settings": entries}, indent=2)


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise EvaluationError(f"{path}: expected an object")
    return content
