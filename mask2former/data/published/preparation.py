"""Make label files: one job per image, in several processes, with progress; an interrupted run continues.

A journal beside the data holds for every finished image what it was made from, the checksums of its files, and its part
of the annotation file. An image is made again if its sources or its files have changed.
"""

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinat_common.errors import UserError, report_errors, report_interrupt
from dinat_common.files import WriteError, check_folder, user_path, write_json
from mask2former.data.datasets import MissingDatasetError, datasets_root
from mask2former.data.image_io import ImageReadError, read_pixels
from mask2former.utils.journal import Journal
from mask2former.utils.label_images import write_png
from mask2former.utils.parallel import default_workers, processes, report_interval

SPLITS = ("train", "val")
# To be increased when the same sources result in other files than before.
_VERSION = 1
_JOURNAL_FOLDER = ".preparation"
# Number of similar items that a message names.
_NAMED = 5
_PNG_END = b"IEND"


class PreparationError(UserError):
    """Labels can't be prepared; the message names the files and the causes."""


@dataclass(frozen=True)
class Job:
    """The work for one image.

    Attributes:
        key: Its name in the journal.
        sources: Files that it is made from.
        outputs: PNG files to make.
        details: Other data that it is made from; must be serializable as JSON.
    """

    key: str
    sources: tuple[Path, ...]
    outputs: tuple[Path, ...] = ()
    details: Any = None


# Pixels of the outputs, and the image's part of the annotation file, which must be serializable as JSON.
Made = tuple[Sequence[NDArray[Any]], Any]
Make = Callable[[Job], Made]


@dataclass(frozen=True)
class Part:
    """One kind of labels of one split.

    Attributes:
        name: Name in messages and of the journal.
        jobs: Jobs, one per image.
        make: Function that does a job; a module-level function, so that other processes find it.
        finish: Function that writes the annotation file from the parts of all images, in the order of the jobs.
        missing: Missing files and folders without which the jobs can't be listed.
    """

    name: str
    jobs: Sequence[Job]
    make: Make
    finish: Callable[[Sequence[Any]], None] | None = None
    missing: Sequence[Path] = ()


@dataclass(frozen=True)
class Summary:
    """Number of images of a part that were made, and that existed already."""

    name: str
    made: int
    kept: int


def run_parts(folder: Path, parts: Sequence[Part], *, source: str, workers: int) -> list[Summary]:
    """Prepare all parts of a data set.

    Args:
        folder: Folder of the data set, which also holds the journals.
        parts: Labels to make.
        source: Origin of the data, for the message about missing files.
        workers: Number of processes; 1 runs everything in the calling process.

    Raises:
        MissingDatasetError: Source files are missing; the message lists those of all parts.
        PreparationError: Files are damaged. Everything else is finished, except for annotation files that need them.
        WriteError: A file can't be written; what was finished before is kept.
    """
    missing = [path for part in parts for path in part.missing]
    sources = dict.fromkeys(path for part in parts for job in part.jobs for path in job.sources)
    # The files of a missing folder need not be listed.
    missing += [path if path.parent.exists() else path.parent for path in sources if not path.exists()]
    if missing:
        listed = "\n".join(f"  {line}" for line in _group(missing))
        raise MissingDatasetError(f"files needed to prepare {folder} are missing:\n{listed}\n{source}")
    check_folder(folder / _JOURNAL_FOLDER)
    return [_run_part(folder / _JOURNAL_FOLDER, part, workers) for part in parts]


def _run_part(folder: Path, part: Part, workers: int) -> Summary:
    counts: Counter[str] = Counter()
    entries, failures = [], []
    path = folder / f"{part.name.replace(' ', '_')}.jsonl"
    with Journal(path, {"version": _VERSION}) as journal, processes(workers) as run_all:
        results = run_all(partial(_do, part.make), part.jobs, [journal.get(job.key) for job in part.jobs])
        progress = tqdm(results, part.name, len(part.jobs), unit="image", mininterval=report_interval())
        for job, (outcome, result) in zip(part.jobs, progress, strict=True):
            counts[outcome] += 1
            if outcome == "failed":
                failures.append(result)
                continue
            entries.append(result["entry"])
            if outcome == "made":
                journal.add(job.key, result)
    if failures:
        more = [f"... and {len(failures) - _NAMED} more"] if len(failures) > _NAMED else []
        listed = "\n".join(f"  {line}" for line in (*failures[:_NAMED], *more))
        raise PreparationError(f"{part.name}: {len(failures)} of {len(part.jobs)} images failed:\n{listed}")
    if part.finish is not None:
        part.finish(entries)
    return Summary(part.name, made=counts["made"], kept=counts["kept"])


def _do(make: Make, job: Job, previous: Mapping[str, Any] | None) -> tuple[Literal["made", "kept", "failed"], Any]:
    """Do one job unless its files are as the journal says.

    Returns:
        The outcome, and the record of the journal, or a message if the job failed.
    """
    stats = [path.stat() for path in job.sources]
    details = zlib.crc32(json.dumps(job.details).encode())
    made_from = [details, [[stat.st_size, stat.st_mtime_ns] for stat in stats]]
    if (
        previous is not None
        and previous["made_from"] == made_from
        and previous["checksums"] == [_checksum(path) for path in job.outputs]
    ):
        return "kept", previous
    try:
        pixels, entry = make(job)
        for path, image in zip(job.outputs, pixels, strict=True):
            if not _holds(path, image):
                write_png(path, image)
    except WriteError:
        raise
    except (ValueError, OSError) as error:
        return "failed", str(error)
    return "made", {"made_from": made_from, "checksums": [_checksum(path) for path in job.outputs], "entry": entry}


def write_coco(
    path: Path, key: str, categories: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> None:
    """Write an annotation file in COCO's format.

    Args:
        path: The file.
        key: Key of the lists of annotations in `entries`: "panoptic", or "instances", which are numbered from 1.
        categories: Content of `categories`.
        entries: The parts of all images: `image`, and lists of annotations.
    """
    annotations = [annotation for entry in entries for annotation in entry[key]]
    if key == "instances":
        annotations = [{**annotation, "id": i} for i, annotation in enumerate(annotations, start=1)]
    images = [entry["image"] for entry in entries]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def _holds(path: Path, pixels: NDArray[Any]) -> bool:
    """Whether a PNG of another program, or of a run that was killed, has these pixels."""
    try:
        found = read_pixels(path)
    except ImageReadError:
        return False
    # Pillow reads files without their end; other programs do not.
    return _PNG_END in path.read_bytes()[-12:] and found.dtype == pixels.dtype and np.array_equal(found, pixels)


def _checksum(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None


def _group(missing: Sequence[Path]) -> list[str]:
    """One line per folder, which names a few of its files and counts the others."""
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(missing):
        folders.setdefault(path.parent, []).append(path)
    return [
        ", ".join(map(str, paths[:_NAMED])) + (f" and {len(paths) - _NAMED} more there" if len(paths) > _NAMED else "")
        for paths in folders.values()
    ]


def run_command(
    prepare: Callable[..., list[Summary]],
    description: str | None,
    arguments: Sequence[str] | None,
    tasks: Sequence[str] = (),
) -> int:
    """Run the command line of a preparation, print one line per kind of labels and split, and return the exit status.

    Args:
        prepare: Function like `prepare_coco`.
        description: Help text.
        arguments: Command line; None for that of the process.
        tasks: Values of the option --task, if there are several.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root",
        type=user_path,
        default=datasets_root(),
        metavar="FOLDER",
        help="parent folder of the data set's folder; default: DETECTRON2_DATASETS, or datasets",
    )
    parser.add_argument("--split", nargs="+", choices=SPLITS, default=SPLITS, help="default: both")
    if tasks:
        parser.add_argument("--task", nargs="+", choices=tasks, default=tasks, help="default: all")
    workers = default_workers()
    parser.add_argument(
        "--workers", type=int, default=workers, metavar="N", help=f"number of processes; default: {workers}"
    )
    options = parser.parse_args(arguments)
    chosen = {"tasks": options.task} if tasks else {}
    with report_errors(), report_interrupt("the same command continues where this one stopped"):
        for summary in prepare(options.root, options.split, workers=options.workers, **chosen):
            sys.stdout.write(f"{summary.name}: {summary.made} made, {summary.kept} kept\n")
    return 0
