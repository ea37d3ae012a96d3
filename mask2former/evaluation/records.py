"""Records of images on disk: a journal per process, gathered at the end, valid for one fingerprint."""

import hashlib
import pickle
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from torch import nn

from dinat_common.files import atomic_write
from mask2former.evaluation.metric import EvaluationError
from mask2former.utils.journal import Journal, Key

_FOLDER = "records"
_GATHERED = "gathered.jsonl"
# Bytes that each process sends at once; the main process holds that much of each.
_ROUND = 4 * 2**20

# Changes when records of older versions of this package can't be used any more.
_VERSION = 2
_SECTIONS = ("INPUT", "MODEL", "TEST")
# They change no prediction; of MODEL.WEIGHTS the weights themselves count.
_WITHOUT_EFFECT = (
    ("MODEL", "WEIGHTS"),
    ("TEST", "EVAL_PERIOD"),
    ("TEST", "EXPECTED_RESULTS"),
)
_GROUND_TRUTH = (
    "image_root",
    "image_dir",
    "json_file",
    "panoptic_json",
    "panoptic_root",
    "sem_seg_root",
    "gt_dir",
)

_T = TypeVar("_T")


class RecordStore:
    """Records of the images of a data set, in one folder per machine; machines may share a folder.

    All processes must call `start` and `gather` together.

    Attributes:
        folder: Folder of the files that records list; the records themselves are in `records/`.
        finished: Keys of the images that had a valid record at the start, in any process.
    """

    def __init__(self, folder: Path):
        """Set the folder. Nothing is read or written yet."""
        self.folder = folder
        self.finished: frozenset[Key] = frozenset()
        self._folder = folder / _FOLDER
        self._fingerprint: dict[str, Any] = {}
        self._journals: dict[Key, Journal] = {}  # where the records are that this process is responsible for
        self._own: Journal | None = None

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool, outputs: Sequence[str] = ()) -> list[str]:
        """Find the valid records, or remove all.

        Args:
            fingerprint: Everything that records depend on, serializable as JSON. If the records of one machine have
                another fingerprint, the records of all are removed.
            resume: Whether to keep valid records.
            outputs: Files and folders beside `records/` that are removed together with the records.

        Returns:
            Names of the entries in which the fingerprint differs from the ones that were found.
        """
        self.close()
        # No process removes files that another one still uses.
        comm.synchronize()
        self._fingerprint = comm.all_gather(dict(fingerprint))[0]
        self._journals = {}
        first_of_machine = comm.get_local_rank() == 0
        paths = sorted(self._folder.glob("*.jsonl")) if first_of_machine else []
        before = [Journal(path, self._fingerprint) for path in paths]
        differing = sorted(set().union(*comm.all_gather({name for journal in before for name in journal.differing})))
        if before and resume and not differing:
            for journal in before:
                for key, record in journal.items():
                    if all(self._has(name, size) for name, size in record["files"].items()):
                        self._journals[key] = journal
                journal.close()
        elif first_of_machine:
            shutil.rmtree(self._folder, ignore_errors=True)
            for path in (self.folder / name for name in outputs):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        # Of machines that share a folder, the first is responsible for its records. No process writes before all have
        # read or removed the old ones.
        found = comm.all_gather(list(self._journals))
        for key in set().union(*found[: comm.get_rank()]):
            self._journals.pop(key, None)
        self.finished = frozenset().union(*found)
        self._own = Journal(self._folder / f"rank{comm.get_rank()}.jsonl", self._fingerprint)
        return differing

    def append(self, key: Key, files: Iterable[Path], content: Mapping[str, Any]) -> None:
        """Keep the record of an image.

        Args:
            key: Key of the image.
            files: Complete files in the folder that belong to it.
            content: The record, serializable as JSON.

        Raises:
            EvaluationError: The image has a record already.
        """
        if self._own is None:
            raise RuntimeError("records are appended between start and gather")
        if key in self._journals or key in self.finished:
            raise EvaluationError(f"two images are called {key!r}: image_id, or folder and file name, must differ")
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        self._own.add(key, {"files": sizes, **content})
        self._journals[key] = self._own

    def gather(self) -> None:
        """Bring all records and files to the machine of the main process.

        Raises:
            EvaluationError: Two processes have a record of one image, or two images have a file of one name.
        """
        self.close()
        gathered = Journal(self._folder / _GATHERED, self._fingerprint)
        for key, record in gather_in_rounds(self.read()):  # on the main process
            if key in self._journals:
                raise EvaluationError(f"two processes predicted image {key!r}")
            gathered.add(key, record)
            self._journals[key] = gathered
        gathered.close()
        files = [file for _, record in self.read() for file in record["files"].items()]
        lacking: list[str] = []
        if comm.is_main_process():
            shared = [name for name, images in Counter(name for name, _ in files).items() if images > 1]
            if shared:
                raise EvaluationError(f"results are named after images, and several images share {shared[0]}")
            lacking = [name for name, size in files if not self._has(name, size)]
        # None, if all processes share a folder.
        missing = set(comm.all_gather(lacking)[0])
        contents = ((name, (self.folder / name).read_bytes()) for name, _ in files if name in missing)
        for name, content in gather_in_rounds(contents):
            with atomic_write(self.folder / name, "wb") as file:
                file.write(content)

    def read(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        """The records of this process in the order of their keys; on the main process, after `gather`, all records."""
        try:
            for key in sorted(self._journals, key=lambda key: (isinstance(key, str), key)):
                yield key, self._journals[key][key]
        finally:
            self.close()

    def close(self) -> None:
        """Close all files. Records can still be read."""
        for journal in (*{id(journal): journal for journal in self._journals.values()}.values(), self._own):
            if journal is not None:
                journal.close()
        self._own = None

    def _has(self, name: str, size: int) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == size


def gather_in_rounds(items: Iterable[_T], limit: int = _ROUND) -> Iterator[_T]:
    """Send items of all other processes to the main process, a few at a time.

    All processes must call it and iterate to the end.

    Args:
        items: Picklable items of this process; those of the main process are not sent.
        limit: Bytes that a process sends at once, but at least one item.

    Yields:
        On the main process the items of the others, in the order of ranks within each round; nothing on the others.
    """
    if comm.get_world_size() == 1:
        return
    waiting = iter(()) if comm.is_main_process() else map(pickle.dumps, items)
    more = True
    while more:
        part: list[bytes] = []
        while sum(map(len, part)) < limit and (item := next(waiting, None)) is not None:
            part.append(item)
        for received in comm.gather(part):
            yield from map(pickle.loads, received)
        more = any(comm.all_gather(bool(part)))


def evaluation_fingerprint(cfg: CfgNode, dataset_name: str, weights: str, *, augmented: bool) -> dict[str, Any]:
    """Describe an evaluation so that two with equal descriptions have equal predictions and results.

    Args:
        cfg: Config.
        dataset_name: Registered data set.
        weights: `weights_digest` of the model.
        augmented: Whether augmentation at test time (TEST.AUG) is used.

    Returns:
        Hashes of weights and config; path, time and size of the files and folders of the data set. Serializable as
        JSON.
    """
    metadata = MetadataCatalog.get(dataset_name)
    paths = [Path(metadata.get(key)) for key in _GROUND_TRUTH if metadata.get(key)]
    files = [[str(path.absolute()), path.stat().st_mtime_ns, path.stat().st_size] for path in paths if path.exists()]
    config = config_digest(cfg, augmented=augmented)
    return {"version": _VERSION, "data set": dataset_name, "ground truth": files, "config": config, "weights": weights}


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values in a model's state."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(cfg: CfgNode, *, augmented: bool) -> str:
    """SHA-256 of the config keys that predictions depend on; TEST.AUG is included if `augmented`."""
    cfg = cfg.clone()
    cfg.defrost()
    for section, key in _WITHOUT_EFFECT:
        cfg[section].pop(key, None)
    if not augmented:
        cfg.TEST.pop("AUG")
    # The first training set decides which classes are things; the config describes custom sets.
    parts = [f"{name}: {cfg[name].dump()}" for name in _SECTIONS] + [str(cfg.DATASETS.TRAIN)]
    parts += [f"{entry['name']}: {entry['classes']}" for entry in cfg.DATASETS.get("CUSTOM", ())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
