"""The order of training images: endless, the same in all processes, and continued from any place of it.

Nothing is drawn from a generator that has a history. The images of an epoch are shuffled by seed and epoch, and the
augmentation of an image is drawn by seed, epoch and its place in the epoch, whichever process or worker reads it;
that of a batch as a whole, by the place of its first image.
"""

import logging
import os
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinat_common.errors import ConfigError
from mask2former.data.image_io import ImageReadError, image_size
from mask2former.utils.randomness import drawn_seed, draws_of

_logger = logging.getLogger(__name__)

# Images that are tried in place of one for which the mapper returns None.
_ATTEMPTS = 100

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]
BatchMapper = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]

# Part of the key of the draws of a whole batch, which tells them from those of its first image.
_BATCH = 1


class Place(NamedTuple):
    """One use of an image: epoch, place in the epoch, and index of the image."""

    epoch: int
    offset: int
    image: int


class ImageOrder:
    """Endless sequence of images, cut into batches.

    An epoch is a random order of all images. With factors that are not whole, each epoch rounds them up or down at
    random. Batches take images in this order; with `is_wide`, each holds either wide or other images, and images wait
    until a batch of their kind is full (Detectron2's aspect ratio grouping).
    """

    def __init__(
        self,
        factors: Tensor,
        seed: int,
        is_wide: Callable[[int], bool] | None = None,
        multiple_of: int = 1,
    ):
        """Initialize the order at its beginning.

        Args:
            factors: Mean number of times that each image is shown per epoch, [number of images].
            seed: Seed of all draws.
            is_wide: Function that returns whether an image is wider than high; None for batches of any images.
            multiple_of: Number that the length of an epoch is a multiple of: the last images of its order are left out.
        """
        self._factors = factors
        self._seed = seed
        self._is_wide = is_wide
        self._multiple_of = multiple_of
        self._epoch, self._epoch_seed, self._offset = 0, seed, 0
        self._images: list[int] | None = None  # those of the epoch, once they are needed
        self._waiting: tuple[list[Place], list[Place]] = ([], [])

    def take(self, count: int) -> list[Place]:
        """The next batch of `count` images."""
        while True:
            for waiting in self._waiting:
                if len(waiting) >= count:
                    batch = waiting[:count]
                    del waiting[:count]
                    return batch
            self._wait(self._next())

    def seen(self) -> int:
        """Number of images that batches have taken from the current epoch."""
        return self._offset - sum(place.epoch == self._epoch for waiting in self._waiting for place in waiting)

    def fork(self) -> "ImageOrder":
        """A copy that continues from the same place independently."""
        other = ImageOrder(self._factors, self._seed, self._is_wide, self._multiple_of)
        other.load_state_dict(self.state_dict(), own_seed=False, same_images=True)
        return other

    def state_dict(self) -> dict[str, Any]:
        """The place in the order: a few numbers, whatever the number of images."""
        waiting = sorted([*self._waiting[0], *self._waiting[1]])
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "epoch_seed": self._epoch_seed,
            "offset": self._offset,
            "waiting": [list(place) for place in waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any], *, own_seed: bool, same_images: bool) -> None:
        """Go to a place in the order.

        Args:
            state: Result of `state_dict`.
            own_seed: Whether to keep the seed of this order, which then shuffles the next epochs; otherwise the seed
                of `state` is taken over.
            same_images: Whether `state` is about the same images. Otherwise the next epoch starts.
        """
        if not own_seed:
            self._seed = state["seed"]
        self._images = None
        self._waiting = ([], [])
        if same_images:
            self._epoch, self._epoch_seed, self._offset = state["epoch"], state["epoch_seed"], state["offset"]
            for place in state["waiting"]:
                self._wait(Place(*place))
        else:
            self._epoch, self._epoch_seed, self._offset = state["epoch"] + 1, self._seed, 0

    @property
    def factors(self) -> Tensor:
        """Mean number of times that each image is shown per epoch, [number of images]."""
        return self._factors

    @property
    def seed(self) -> int:
        """Seed of the draws."""
        return self._seed

    def _next(self) -> Place:
        if self._images is None:
            self._images = self._shuffled()
        while self._offset >= len(self._images):
            self._epoch, self._epoch_seed, self._offset = self._epoch + 1, self._seed, 0
            self._images = self._shuffled()
        place = Place(self._epoch, self._offset, self._images[self._offset])
        self._offset += 1
        return place

    def _shuffled(self) -> list[int]:
        images = epoch_images(self._factors, self._epoch_seed, self._epoch)
        return images[: len(images) // self._multiple_of * self._multiple_of]

    def _wait(self, place: Place) -> None:
        self._waiting[int(self._is_wide is not None and self._is_wide(place.image))].append(place)


def epoch_images(factors: Tensor, seed: int, epoch: int) -> list[int]:
    """Indices of the images of an epoch in random order, each as often as its factor says on average."""
    generator = torch.Generator().manual_seed(drawn_seed(seed, epoch))
    whole = factors.floor()
    times = whole + (torch.rand(len(factors), generator=generator) < factors - whole)
    images = torch.arange(len(factors)).repeat_interleave(times.long())
    return images[torch.randperm(len(images), generator=generator)].tolist()


class TrainingLoader:
    """Endless loader of this process's training batches, whose place in the order can be saved and restored.

    Only batches that were handed out count, and not those that workers have prepared. A new iteration continues
    where the last one stopped.
    """

    def __init__(
        self,
        images: Any,
        mapper: Mapper,
        *,
        batch_size: int,
        factors: Tensor | None = None,
        seed: int | None = None,
        group_by_shape: bool = False,
        workers: int = 0,
        batch_mapper: BatchMapper | None = None,
        multiple_of: int = 1,
    ):
        """Initialize the loader at the beginning of the order.

        Args:
            images: Dicts in Detectron2's format, the same in all processes; a list, or a PyTorch data set that keeps
                them in less memory.
            mapper: Function that makes the input of the model of a dict. If it returns None, another image that is
                drawn at random takes its place.
            batch_size: Number of images per batch, over all processes.
            factors: Mean number of times that each image is shown per epoch, [len(images)]. Default: once.
            seed: Seed of order and augmentation. By default one is drawn; a restored state brings its own.
            group_by_shape: Whether a batch has either wide images only or none. Where `images` have no width and
                height, the headers of the files are read.
            workers: Number of worker processes; 0 reads images in this process.
            batch_mapper: Function that augments the mapped images of a batch of this process together, with draws
                that the place of the batch decides.
            multiple_of: Number that the length of an epoch is a multiple of, to drop its last partial batch.

        Raises:
            ConfigError: Processes can't share a batch evenly, or there are fewer images than `multiple_of`.
        """
        processes = comm.get_world_size()
        if batch_size < processes or batch_size % processes:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}, expected a multiple of the number of processes, {processes}"
            )
        if len(images) < multiple_of:
            raise ConfigError(
                f"{len(images)} training images make no step of {multiple_of}: lower SOLVER.IMS_PER_BATCH or "
                "SOLVER.ACCUMULATE_STEPS"
            )
        factors = torch.ones(len(images)) if factors is None else factors
        self._own_seed = seed is not None
        self._mapper = mapper
        self._batch_mapper = batch_mapper
        self._workers = workers
        self._multiple_of = multiple_of
        self._images = images if isinstance(images, Dataset) else DatasetFromList(list(images), copy=False)
        # A batch of one is never mixed.
        grouped = group_by_shape and batch_size > processes
        self._order = ImageOrder(
            factors,
            comm.shared_random_seed() if seed is None else seed,
            _Shapes(images).is_wide if grouped else None,
            multiple_of,
        )
        names = [os.path.basename(str(image.get("file_name", ""))) for image in images]
        contents = zlib.crc32("\n".join(names).encode(), zlib.crc32(factors.numpy().tobytes()))
        self._layout: dict[str, Any] = {
            "processes": processes,
            "batch_size": batch_size,
            "images": [len(images), contents],
        }

    def images_per_epoch(self) -> int:
        """Mean number of images of an epoch."""
        total = int(self._order.factors.sum())
        return total // self._multiple_of * self._multiple_of

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        images = _AugmentedImages(self._images, self._mapper, self._order.seed, self._batch_mapper)
        batches = _Batches(self._order.fork(), self._layout["batch_size"])
        # The generator keeps the loader from drawing from the global one.
        loader = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),
        )
        handed_out = iter(_Batches(self._order, self._layout["batch_size"]))
        for batch in loader:
            next(handed_out)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, for all processes."""
        return {**self._order.state_dict(), **self._layout}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a place, possibly of another number of processes or images per batch, before the iteration."""
        same_images = list(state["images"]) == self._layout["images"]
        other_seed = self._own_seed and state["seed"] != self._order.seed
        self._order.load_state_dict(state, own_seed=self._own_seed, same_images=same_images)
        where = f"{self._order.seen()} images of epoch {state['epoch']} were seen before and are skipped"
        if not same_images:
            _logger.warning("The training images differ from those of the checkpoint: a new epoch starts")
        elif any(state[key] != self._layout[key] for key in ("processes", "batch_size")):
            _logger.warning(
                "The checkpoint is of %d process(es) and %d images per batch, this run has %d and %d: the order of "
                "images differs from that of an uninterrupted run; %s",
                *(part[key] for part in (state, self._layout) for key in ("processes", "batch_size")),
                where,
            )
        else:
            _logger.info("The order of training images continues: %s", where)
        if other_seed:
            _logger.warning(
                "SEED is %d, the checkpoint has %d: the results differ from those of an uninterrupted run",
                self._order.seed,
                state["seed"],
            )


class _Batches:
    """Endless batches of this process; the order advances by the batches of all processes at once."""

    def __init__(self, order: ImageOrder, batch_size: int):
        self._order = order
        self._processes, self._rank = comm.get_world_size(), comm.get_rank()
        self._size = batch_size // self._processes

    def __iter__(self) -> Iterator[list[Place]]:
        while True:
            yield [self._order.take(self._size) for _ in range(self._processes)][self._rank]


class _AugmentedImages(Dataset):
    """Mapped images by their place in the order, which alone decides the random draws of the mapper."""

    def __init__(self, images: Dataset, mapper: Mapper, seed: int, batch_mapper: BatchMapper | None):
        self._images: Any = images
        self._mapper = mapper
        self._batch_mapper = batch_mapper
        self._seed = seed

    def __getitems__(self, places: list[Place]) -> list[dict[str, Any]]:
        """The images of a batch."""
        batch = [self[place] for place in places]
        if self._batch_mapper is None:
            return batch
        with draws_of(self._seed, places[0].epoch, places[0].offset, _BATCH):
            return self._batch_mapper(batch)

    def __getitem__(self, index: Place) -> dict[str, Any]:
        epoch, offset, image = index
        with draws_of(self._seed, epoch, offset):
            for _ in range(_ATTEMPTS):
                mapped = self._mapper(self._images[image])
                if mapped is not None:
                    return mapped
                image = random.randrange(len(self._images))
        raise ValueError(f"the mapper returned None for {_ATTEMPTS} images in a row")


class _Shapes:
    """Which images are wider than high, from their dicts or the headers of their files, which are read once."""

    def __init__(self, images: Sequence[Mapping[str, Any]]):
        self._files = {index: image["file_name"] for index, image in enumerate(images) if "width" not in image}
        known = (image.get("width", 0) > image.get("height", 0) for image in images)
        self._wide = np.fromiter(known, bool, len(images))

    def is_wide(self, image: int) -> bool:
        if file := self._files.pop(image, None):
            # The mapper reports a file that can't be read.
            with suppress(ImageReadError):
                height, width = image_size(file)
                self._wide[image] = width > height
        return bool(self._wide[image])
