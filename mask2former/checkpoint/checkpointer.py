"""Checkpoints of a run: always complete on disk, loaded by exact name."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from dinat_common.download import fetch, is_url
from dinat_common.files import atomic_write, check_folder, user_path
from dinat_common.weights import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    StateDict,
    read_checkpoint,
)
from mask2former.checkpoint.names import LoadReport, compare, compare_backbone, holds_backbone_only
from mask2former.checkpoint.openmmlab_names import from_openmmlab
from mask2former.checkpoint.published import FileClasses, fitting_models
from mask2former.model_zoo import PublishedModel

# Key under which a checkpoint keeps the state of `torch.optim.swa_utils.AveragedModel` (SOLVER.EMA).
AVERAGE_KEY = "ema"
# Number of class names in a message.
_NAMES_SHOWN = 5


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes and without its heuristics for names.

    After a run is killed at any moment, `last_checkpoint` names a complete file or does not exist. A file whose names
    or shapes differ from the model's is refused unless `allow_partial` is set.

    Attributes:
        report: Account of the names in the file that was loaded last.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_partial: bool = False,
        allow_pickle: bool = False,
        starts_training: bool = False,
        prefer_average: bool = False,
        **checkpointables: Any,
    ):
        """Initialize the checkpointer.

        Args:
            model: Model to load and save, possibly in a DistributedDataParallel.
            save_dir: Folder of the run's checkpoints; only the main process writes there.
            allow_partial: Whether to load the weights that fit from a file that does not fit exactly.
            allow_pickle: Whether to open `.pkl` files, which can execute arbitrary code.
            starts_training: Whether a training starts from the file. Such a file may hold the backbone alone, as an
                ImageNet classifier does, or have another number of classes: the class head then keeps its initial
                weights. Another number of classes is never accepted when a training is resumed.
            prefer_average: Whether to load the average of the weights (SOLVER.EMA) if the checkpoint has one.
            checkpointables: Objects with `state_dict` and `load_state_dict`, by name.
        """
        super().__init__(model, os.path.expanduser(save_dir), **checkpointables)
        self.logger = logging.getLogger(__name__)
        self.allow_partial = allow_partial
        self.allow_pickle = allow_pickle
        self.starts_training = starts_training
        self.prefer_average = prefer_average
        self.report: LoadReport | None = None

    def check_space(self, optimizer: torch.optim.Optimizer) -> None:
        """Check before a training that the folder has space for one more checkpoint.

        Args:
            optimizer: Optimiser of the training, whose state is part of checkpoints.

        Raises:
            WriteError: The folder can't be written, or has less space.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        copies = 2 if AVERAGE_KEY in self.checkpointables else 1
        size = copies * sum(value.nbytes for value in self.model.state_dict().values())
        for group in optimizer.param_groups:
            # Running means of gradients and of their squares, or one momentum.
            states = 2 if "betas" in group else int(bool(group.get("momentum")))
            size += states * sum(weight.nbytes for weight in group["params"])
        check_folder(self.save_dir, size)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `save_dir/name.pth` and make it the last checkpoint.

        Args:
            name: File name without folder and extension.
            kwargs: Further content of the file: weights, numbers, strings and containers of these.
        """
        if self.save_dir and self.save_to_disk:
            states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
            self.save_weights(name, self.model, **states, **kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module, **kwargs: Any) -> None:
        """Write the weights of a model to `save_dir/name.pth`, which does not become the last checkpoint.

        Args:
            name: File name without folder and extension.
            model: Model of the same kind as the one being trained.
            kwargs: Further content of the file.
        """
        if self.save_dir and self.save_to_disk:
            path = os.path.join(self.save_dir, f"{name}.pth")
            self.logger.info("Saving checkpoint to %s", path)
            with atomic_write(path, "wb", durable=True) as file:
                torch.save({"model": model.state_dict(), **kwargs}, file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of `save_dir` the one that `resume_or_load` resumes from."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), durable=True) as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint completely if `resume` is set and it exists, otherwise the weights of `path`.

        Raises:
            CheckpointError: The file can't be used; see `load`.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        found = comm.all_gather(self.has_checkpoint())
        if not any(found):
            self.logger.info("No checkpoint to resume from in %s: starting from MODEL.WEIGHTS", self.save_dir)
            return self.load(path, checkpointables=[])
        tag = os.path.join(self.save_dir, "last_checkpoint")
        if not all(found):
            raise CheckpointNotFoundError(
                f"{tag} is missing on some machines; to resume there, copy it and the checkpoint that it names"
            )
        return self._load_named(tag, self.get_checkpoint_file(), None)

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Load weights and the states of other objects.

        Args:
            path: Local file (see `read_checkpoint`) or URL (see `fetch`). If it is empty, the model keeps its initial
                weights.
            checkpointables: Names of the objects to load in addition to the model. None means all, and the file must
                have all of them except the average of the weights (SOLVER.EMA), which stays as it is if the file has
                none that fits.

        Returns:
            The remaining content of the file.

        Raises:
            CheckpointNotFoundError: The file does not exist on this or on another machine.
            CheckpointMismatchError: Names or shapes differ from the model's.
            CheckpointError: The file is not a checkpoint or lacks the state of an object, or a download failed.
        """
        if not path:
            self.logger.info("MODEL.WEIGHTS is empty: the model starts from random weights")
            return {}
        if is_url(str(path)):
            error = ""
            try:
                path = str(fetch(path))
            except CheckpointError as failure:
                error = str(failure)
            # All processes must fail together, even if only some machines lack a connection.
            if errors := [failure for failure in comm.all_gather(error) if failure]:
                raise CheckpointError(f"MODEL.WEIGHTS: {errors[0]}")
        return self._load_named("MODEL.WEIGHTS", str(user_path(path)), checkpointables)

    def _load_named(self, named_by: str, path: str, checkpointables: Sequence[str] | None) -> dict[str, Any]:
        found = comm.all_gather(os.path.isfile(path))
        if not all(found):
            where = f" on ranks {[rank for rank, has in enumerate(found) if not has]}" if any(found) else ""
            raise CheckpointNotFoundError(
                f"{named_by}: no file {path}{where} (working directory {os.getcwd()}); "
                "see the section Weights of README.md"
            )
        self.logger.info("Loading %s", path)
        checkpoint = read_checkpoint(path, allow_pickle=self.allow_pickle)
        states = self.checkpointables if checkpointables is None else checkpointables
        if AVERAGE_KEY in states and not self._fits_average(checkpoint.get(AVERAGE_KEY)):
            states = [key for key in states if key != AVERAGE_KEY]
        if lacking := [key for key in states if key not in checkpoint]:
            raise CheckpointError(f"{path}: not a checkpoint to resume from; it lacks {', '.join(lacking)}")
        weights = checkpoint.pop("model")
        if self.prefer_average and AVERAGE_KEY in checkpoint:
            self.logger.info("Loading the average of the weights (SOLVER.EMA)")
            prefix = "module."
            average = checkpoint[AVERAGE_KEY]
            weights = {name.removeprefix(prefix): v for name, v in average.items() if name.startswith(prefix)}
        self._load_weights(weights, path, FileClasses.of(checkpoint), other_classes=self.starts_training and not states)
        for key in states:
            self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def _fits_average(self, saved: StateDict | None) -> bool:
        expected = self.checkpointables[AVERAGE_KEY].state_dict()
        return saved is not None and {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in expected.items()}

    def _load_weights(self, state: StateDict, path: str, classes: FileClasses | None, *, other_classes: bool) -> None:
        model_state = self.model.state_dict()
        state = from_openmmlab(state)
        backbone_only = holds_backbone_only(state, model_state)
        if backbone_only and self.starts_training:
            weights, report = compare_backbone(state, model_state)
            self.logger.info("%s holds a backbone: %s", path, report.backbone_summary())
        else:
            weights, report = compare(state, model_state, other_classes=other_classes)
        if not report.exact:
            if not self.allow_partial or not weights:
                hint = (
                    "It holds only a backbone, which can start a training.\n"
                    if backbone_only
                    else _hint(report, classes)
                )
                if not hint and (fitting := fitting_models(state, path)):
                    raise CheckpointMismatchError(f"{path} {of_models(fitting)} ({report.summary()})")
                raise CheckpointMismatchError(
                    f"{path} is a checkpoint of another setting: {report.summary()}\n{report.mismatches()}\n{hint}"
                    "Use the config it was trained with, or --allow-partial to load what fits."
                )
            self.logger.warning("%s is loaded in part: %s", path, report.summary())
        self.model.load_state_dict(weights, strict=False)
        self.report = report
        self.logger.info("Loaded %d of %d weights:\n%s", len(weights), len(model_state), report.text())
        if report.reinitialised and report.classes is not None:
            self.logger.info(
                "%s has %d classes, the model has %d: only the class head starts from random weights",
                path,
                *report.classes,
            )


def of_models(fitting: Sequence[PublishedModel]) -> str:
    """Part of a message: the published models that have the names and shapes of a file, and their configs."""
    names = " or ".join(model.name for model in fitting)
    return f"holds the weights of {names}: use {' or '.join(str(model.config_file) for model in fitting)}"


def _listed(classes: FileClasses | None) -> str:
    names = () if classes is None else classes.names
    return f" ({', '.join(names[:_NAMES_SHOWN])}{', ...' if len(names) > _NAMES_SHOWN else ''})" if names else ""


def _hint(report: LoadReport, classes: FileClasses | None) -> str:
    """Advice about the two most common differences between settings."""
    hints = []
    if report.classes is not None:
        in_file, in_model = report.classes
        hints.append(
            f"The checkpoint has {in_file} classes, {report.classes_key} is {in_model}: a training can start "
            "from it with a new class head, but it can't be evaluated or resumed. To predict its own classes"
            f"{_listed(classes)}, set {report.classes_key} {in_file}.\n"
        )
    queries = report.differing.get("sem_seg_head.predictor.query_feat.weight")
    if queries is not None:
        hints.append(
            f"The checkpoint has {queries[0][0]} queries: set MODEL.MASK_FORMER.NUM_OBJECT_QUERIES {queries[0][0]}.\n"
        )
    return "".join(hints)
