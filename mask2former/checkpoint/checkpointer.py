"""Checkpoints of a run: always complete on disk, loaded by exact name."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from mask2former.checkpoint.download import fetch, is_url
from mask2former.checkpoint.names import LoadReport, holds_backbone_only, match, match_backbone
from mask2former.checkpoint.reading import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    StateDict,
    read_checkpoint,
)
from mask2former.engine.averaging import AVERAGE_KEY, averaged_weights
from mask2former.utils.files import atomic_write


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and without its name-matching heuristics.

    A run killed at any moment leaves `last_checkpoint` naming a complete file, or no `last_checkpoint`. A file whose
    names or shapes are not the model's is refused unless `allow_partial` is set.

    Attributes:
        report: what became of the names of the file that was loaded last.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        allow_partial: bool = False,
        allow_pickle: bool = False,
        accept_backbone: bool = False,
        accept_other_classes: bool = False,
        prefer_average: bool = False,
        **checkpointables: Any,
    ):
        """Set the model and what else is saved with it.

        Args:
            model: loaded and saved; of a DistributedDataParallel, the module inside.
            save_dir: the folder of the run's checkpoints.
            save_to_disk: whether `save` writes; by default on the main process only.
            allow_partial: load what fits of a file that does not fit exactly.
            allow_pickle: open `.pkl` files, which can run any code.
            accept_backbone: a file may hold the backbone alone (an ImageNet classifier, say), as a training starts
                from it.
            accept_other_classes: weights may be of another number of classes, as a training starts from them: the class
                head alone then stays as it was initialised. Never so where the states of other objects are loaded,
                too, as on resuming.
            prefer_average: where a training's checkpoint has the average of the weights, load that.
            checkpointables: objects with `state_dict` and `load_state_dict`.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self.allow_partial = allow_partial
        self.allow_pickle = allow_pickle
        self.accept_backbone = accept_backbone
        self.accept_other_classes = accept_other_classes
        self.prefer_average = prefer_average
        self.report: LoadReport | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `save_dir/name.pth` and make it the last checkpoint.

        Args:
            name: without folder and ending.
            kwargs: what else to put into the file; weights, numbers, strings and containers of these.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        self.save_weights(name, self.model, **states, **kwargs)
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module, **kwargs: Any) -> None:
        """Write the weights of a model to `save_dir/name.pth`, which does not become the last checkpoint.

        Args:
            name: without folder and ending.
            model: of the same kind as the one that is trained.
            kwargs: see `save`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb", durable=True) as file:
            torch.save({"model": model.state_dict(), **kwargs}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of `save_dir` the one that `resume_or_load` resumes from."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), durable=True) as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint with all it holds if `resume` is set and there is one, else the weights of `path`.

        Raises:
            CheckpointError: as `load`.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        found = comm.all_gather(self.has_checkpoint())
        if not any(found):
            self.logger.info("No checkpoint to resume from in %s: starting from MODEL.WEIGHTS", self.save_dir)
            return self.load(path, checkpointables=[])
        if not all(found):
            raise CheckpointNotFoundError(
                f"{os.path.join(self.save_dir, 'last_checkpoint')} is missing on some machines; "
                "to resume there, copy it and the checkpoint that it names"
            )
        last = self.get_checkpoint_file()
        self._require_file(last, named_by=os.path.join(self.save_dir, "last_checkpoint"))
        return self.load(last)

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Load weights, and the states of other objects.

        Args:
            path: a local file (see `read_checkpoint`), or a URL (see `fetch`); empty: leave the model as it was
                initialised.
            checkpointables: names of the objects to load besides the model; None: all, which must be in the file.

        Returns:
            What else the file holds.

        Raises:
            CheckpointNotFoundError: no such file on this or another machine.
            CheckpointMismatchError: other names or shapes than the model's.
            CheckpointError: not a checkpoint, or it lacks the state of an object; a URL that can't be downloaded.
        """
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: the model starts from random weights")
            return {}
        path = self._downloaded(path) if is_url(str(path)) else str(path)
        self._require_file(path, named_by="MODEL.WEIGHTS")
        self.logger.info("Loading %s", path)
        checkpoint = read_checkpoint(path, allow_pickle=self.allow_pickle)
        states = self.checkpointables if checkpointables is None else checkpointables
        lacking = [key for key in states if key not in checkpoint]
        if lacking:
            hint = "; resume with SOLVER.EMA.ENABLED False, as it was trained" if lacking == [AVERAGE_KEY] else ""
            raise CheckpointError(f"{path}: not a checkpoint to resume from; it lacks {', '.join(lacking)}{hint}")
        weights = checkpoint.pop("model")
        if self.prefer_average and AVERAGE_KEY in checkpoint:
            self.logger.info("The average of the weights (SOLVER.EMA) is taken")
            weights = averaged_weights(checkpoint[AVERAGE_KEY])
        self._load_weights(weights, path, starting=not states)
        for key in states:
            self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    @staticmethod
    def _downloaded(url: str) -> str:
        path, error = "", ""
        try:
            path = str(fetch(url))
        except CheckpointError as failure:
            error = str(failure)
        # All end together, where some machines have no connection.
        errors = [failure for failure in comm.all_gather(error) if failure]
        if errors:
            raise CheckpointError(f"MODEL.WEIGHTS: {errors[0]}")
        return path

    @staticmethod
    def _require_file(path: str, named_by: str) -> None:
        found = comm.all_gather(os.path.isfile(path))
        if not all(found):
            where = "" if not any(found) else f" on ranks {[rank for rank, has in enumerate(found) if not has]}"
            raise CheckpointNotFoundError(
                f"{named_by}: no file {path}{where} (working directory {os.getcwd()}); "
                "README.md, Weights, says what it can be"
            )

    def _load_weights(self, state: StateDict, path: str, *, starting: bool) -> None:
        model_state = self.model.state_dict()
        backbone_only = holds_backbone_only(state, model_state)
        if backbone_only and self.accept_backbone:
            weights, report = match_backbone(state, model_state)
            self.logger.info("%s holds a backbone: the rest of the model starts from random weights", path)
        else:
            weights, report = match(state, model_state, other_classes=self.accept_other_classes and starting)
        if not report.exact:
            if not self.allow_partial or not weights:
                hint = "It holds a backbone alone, which can start a training.\n" if backbone_only else _hint(report)
                raise CheckpointMismatchError(
                    f"{path} is a checkpoint of another setting: {report.summary()}\n{report.mismatches()}\n{hint}"
                    "Give the config it was trained with; --allow-partial loads what fits."
                )
            self.logger.warning("%s is loaded in part: %s", path, report.summary())
        self.model.load_state_dict(weights, strict=False)
        self.report = report
        self.logger.info("Loaded %d of %d weights:\n%s", len(weights), len(model_state), report.text())
        if report.reinitialised and report.classes is not None:
            self.logger.info(
                "%s knows %d classes, the model %d: the class head alone starts from random weights",
                path,
                *report.classes,
            )


def _hint(report: LoadReport) -> str:
    """What to do about the two differences that a setting of another data set usually has."""
    hints = []
    if report.classes is not None:
        in_file, in_model = report.classes
        hints.append(
            f"It knows {in_file} classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is {in_model}: a training can start from it "
            "with a new class head, but nothing can be evaluated or resumed with it.\n"
        )
    queries = report.differing.get("sem_seg_head.predictor.query_feat.weight")
    if queries is not None:
        hints.append(
            f"It has {queries[0][0]} queries: set MODEL.MASK_FORMER.NUM_OBJECT_QUERIES {queries[0][0]} to use it.\n"
        )
    return "".join(hints)
