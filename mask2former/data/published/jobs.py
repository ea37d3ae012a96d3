"""Run one job per image in several processes, show progress, and take up what was interrupted.

What a journal has of an earlier run is kept where the image's files are still as its line says; the rest is made.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mask2former.data.datasets import MissingDatasetError
from mask2former.data.image_io import ImageReadError, read_pixels
from mask2former.data.published.journal import open_journal, read_journal
from mask2former.utils.errors import UserError
from mask2former.utils.files import atomic_write
from mask2former.utils.parallel import processes, report_interval

# Counts up when the same sources give other files than before.
_VERSION = 1
_JOURNAL_FOLDER = ".preparation"
# How many of many like things a message names.
_NAMED = 5
_PNG_END = b"IEND"

Outcome = Literal["made", "kept", "failed"]


class PreparationError(UserError):
    """Labels can't be prepared; the message names the files and says why."""


@dataclass(frozen=True)
class Job:
    """What one image needs.

    Attributes:
        key: its name in the journal.
        sources: files it is made from.
        outputs: PNGs to make.
        details: what else it is made from; can be written as JSON.
    """

    key: str
    sources: tuple[Path, ...]
    outputs: tuple[Path, ...] = ()
    details: Any = None


# Gives the pixels of the outputs, and the image's part of the annotation file (which can be written as JSON).
Make = Callable[[Job], tuple[Sequence[NDArray[Any]], Any]]


@dataclass(frozen=True)
class Part:
    """One kind of labels of one split.

    Attributes:
        name: for messages and for the journal.
        jobs: one per image.
        make: does a job; a function of a module, so that other processes find it.
        finish: gets all parts of the annotation file in the order of the jobs, and writes it.
        missing: files and folders that even the jobs can't be listed without.
    """

    name: str
    jobs: Sequence[Job]
    make: Make
    finish: Callable[[Sequence[Any]], None] | None = None
    missing: Sequence[Path] = ()


@dataclass(frozen=True)
class Summary:
    """How many images of a part were made, and how many were there already."""

    name: str
    made: int
    kept: int


@dataclass(frozen=True)
class _Result:
    outcome: Outcome
    # The line of the journal; of a failure the message.
    record: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def run_parts(folder: Path, parts: Sequence[Part], *, source: str, workers: int) -> list[Summary]:
    """Prepare all parts of a data set.

    Args:
        folder: the data set's; the journals are kept in it.
        parts: what to make.
        source: where the data come from, for the message about missing files.
        workers: number of processes; 1 uses none but this one.

    Raises:
        MissingDatasetError: files to prepare from are missing; the message lists those of all parts.
        PreparationError: files are damaged; everything else is finished, but annotation files that need them are not.
    """
    missing = [path for part in parts for path in part.missing]
    # Of a folder that is missing, the files need not be listed.
    missing += [path if path.parent.exists() else path.parent for path in _sources(parts) if not path.exists()]
    if missing:
        listed = "\n".join(f"  {line}" for line in _group(missing))
        raise MissingDatasetError(f"missing to prepare {folder}:\n{listed}\n{source}")
    return [_run_part(folder / _JOURNAL_FOLDER, part, workers) for part in parts]


def _run_part(journals: Path, part: Part, workers: int) -> Summary:
    journal = journals / f"{part.name.replace(' ', '_')}.jsonl"
    records = read_journal(journal)
    previous = [records.get(job.key) for job in part.jobs]
    counts: Counter[Outcome] = Counter()
    entries, failures = [], []
    with processes(workers) as run, open_journal(journal) as file:
        results = run(partial(_do, part.make), part.jobs, previous)
        for result in tqdm(results, part.name, len(part.jobs), unit="image", mininterval=report_interval()):
            counts[result.outcome] += 1
            if result.outcome == "failed":
                failures.append(result.message)
                continue
            entries.append(result.record["entry"])
            if result.outcome == "made":
                file.write(json.dumps(result.record) + "\n")
                file.flush()
    if failures:
        listed = "\n".join(f"  {line}" for line in _shorten(failures))
        raise PreparationError(f"{part.name}: {len(failures)} of {len(part.jobs)} images failed:\n{listed}")
    if part.finish is not None:
        part.finish(entries)
    return Summary(part.name, made=counts["made"], kept=counts["kept"])


def _do(make: Make, job: Job, previous: Mapping[str, Any] | None) -> _Result:
    """Do one job, unless its files are as the journal says."""
    fingerprint = _fingerprint(job)
    if previous is not None and previous["made_from"] == fingerprint:
        checksums = [_checksum(path) for path in job.outputs]
        if checksums == previous["checksums"]:
            return _Result("kept", dict(previous))
    try:
        pixels, entry = make(job)
        for path, image in zip(job.outputs, pixels, strict=True):
            _write_unless_equal(path, image)
    except (ValueError, OSError) as error:
        return _Result("failed", message=str(error))
    checksums = [_checksum(path) for path in job.outputs]
    return _Result("made", {"key": job.key, "made_from": fingerprint, "checksums": checksums, "entry": entry})


def _write_unless_equal(path: Path, pixels: NDArray[Any]) -> None:
    """Write a PNG; one with the same pixels, of another program or of a run that was killed, stays."""
    try:
        found = read_pixels(path)
        # Pillow does not mind where the end was cut off; others do.
        whole = _PNG_END in path.read_bytes()[-12:]
        if whole and found.dtype == pixels.dtype and np.array_equal(found, pixels):
            return
    except ImageReadError:
        pass
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def _fingerprint(job: Job) -> list[Any]:
    """What a job's files depend on, in short."""
    stats = [path.stat() for path in job.sources]
    details = zlib.crc32(json.dumps(job.details).encode())
    return [_VERSION, details, [[stat.st_size, stat.st_mtime_ns] for stat in stats]]


def _checksum(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None


def _sources(parts: Sequence[Part]) -> Iterable[Path]:
    """All sources once, in order."""
    return dict.fromkeys(path for part in parts for job in part.jobs for path in job.sources)


def _group(missing: Sequence[Path]) -> list[str]:
    """One line per folder; many files of one are counted."""
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(missing):
        folders.setdefault(path.parent, []).append(path)
    lines = []
    for paths in folders.values():
        more = f" and {len(paths) - _NAMED} more there" if len(paths) > _NAMED else ""
        lines.append(", ".join(map(str, paths[:_NAMED])) + more)
    return lines


def _shorten(lines: Sequence[str]) -> list[str]:
    rest = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"... and {rest} more"] if rest > 0 else [])]
