import itertools
import json
import logging
import random
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from PIL import Image

from mask2former.config import ConfigError
from mask2former.data.training_order import ImageOrder, TrainingLoader, epoch_images


def records(count, seed=0):
    """Dicts of images, of which some are wide."""
    rng = np.random.default_rng(seed)
    wide = rng.random(count) < rng.choice([0, 0.2, 0.5, 1])
    return [
        {"file_name": f"{i}.jpg", "index": i, "width": 20 if is_wide else 10, "height": 15}
        for i, is_wide in enumerate(wide)
    ]


def mapper(record):
    return {**record, "draws": [random.random(), np.random.rand(), float(torch.rand(1))]}


def loaders(images, batch_size, processes, **settings):
    """The loaders of all processes."""
    built = []
    for rank in range(processes):
        with (
            mock.patch("detectron2.utils.comm.get_world_size", return_value=processes),
            mock.patch("detectron2.utils.comm.get_rank", return_value=rank),
        ):
            loader = TrainingLoader(images, mapper, batch_size=batch_size, **{"seed": 3, **settings})
            built.append(_Ranked(loader, processes, rank))
    return built


class _Ranked:
    """A loader that iterates as a process of a group."""

    def __init__(self, loader, processes, rank):
        self.loader, self.processes, self.rank = loader, processes, rank

    def batches(self, count):
        with (
            mock.patch("detectron2.utils.comm.get_world_size", return_value=self.processes),
            mock.patch("detectron2.utils.comm.get_rank", return_value=self.rank),
        ):
            return list(itertools.islice(self.loader, count))


def of_all(processes, steps):
    """Samples of so many steps in all processes, step by step."""
    found = [loader.batches(steps) for loader in processes]
    return [[sample for rank in found for sample in rank[step]] for step in range(steps)]


def indices(steps):
    return [sample["index"] for step in steps for sample in step]


def saved(loader):
    """The state after it went through a file."""
    return json.loads(json.dumps(loader.loader.state_dict()))


# Images, images per batch of a process, processes, whether batches are grouped, and batches before the interruption.
VARIETY = [
    (1, 1, 1, False, 0),
    (2, 3, 2, True, 1),
    (5, 2, 1, True, 3),
    (7, 1, 3, False, 7),
    (12, 4, 2, True, 4),
    (30, 2, 4, False, 9),
    (31, 3, 2, True, 20),
]


@pytest.mark.parametrize(("images", "per_process", "processes", "grouped", "before"), VARIETY)
def test_a_restored_loader_goes_on_with_the_batches_that_would_have_come(
    images, per_process, processes, grouped, before
):
    settings = {"batch_size": per_process * processes, "processes": processes, "group_by_shape": grouped}
    whole = of_all(loaders(records(images), **settings), before + 10)
    first = loaders(records(images), **settings)
    of_all(first, before)
    # All processes have the same state, and that of the main process is enough.
    states = [saved(loader) for loader in first]
    assert all(state == states[0] for state in states)
    again = loaders(records(images), **settings)
    for loader in again:
        loader.loader.load_state_dict(states[0])
    assert of_all(again, 10) == whole[before:]


@pytest.mark.parametrize(("images", "per_process", "processes", "grouped", "before"), VARIETY)
@pytest.mark.parametrize("other", [(1, 1), (2, 2), (3, 1)])
def test_another_number_of_processes_skips_the_images_that_were_seen(
    images, per_process, processes, grouped, before, other, caplog
):
    settings = {"group_by_shape": grouped}
    first = loaders(records(images), per_process * processes, processes, **settings)
    seen = indices(of_all(first, before))
    per_process_before, (per_process, now) = per_process, other
    again = loaders(records(images), per_process * now, now, **settings)
    with caplog.at_level(logging.INFO):
        for loader in again:
            loader.loader.load_state_dict(saved(first[0]))
    shown = Counter(seen + indices(of_all(again, images)))
    # Only images that wait for others of their shape are behind.
    waiting = Counter(place[2] for place in saved(again[0])["waiting"])
    assert max((shown + waiting).values()) - min((shown + waiting)[i] for i in range(images)) <= 1
    differs = (processes, per_process_before * processes) != (now, per_process * now)
    assert ("the order of images differs" in caplog.text) == differs


def test_each_epoch_shows_all_images_in_another_order():
    steps = indices(of_all(loaders(records(6), 2, 2), 6))
    epochs = [steps[first : first + 6] for first in (0, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]
    assert indices(of_all(loaders(records(6), 2, 2, seed=4), 6)) != steps


def test_images_are_repeated_by_their_factors():
    factors = torch.tensor([1.0, 1.5, 2.25, 0.5, 0.0])
    counts = Counter(image for epoch in range(400) for image in epoch_images(factors, 1, epoch))
    assert [counts[image] / 400 for image in range(5)] == pytest.approx(factors.tolist(), abs=0.1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_are_grouped_as_detectron2_does(seed, size):
    images = records(11, seed)
    order = ImageOrder(torch.ones(11), 5, lambda i: images[i]["width"] > images[i]["height"])
    stream = (images[i] for epoch in range(9) for i in epoch_images(torch.ones(11), 5, epoch))
    expected = [[image["index"] for image in batch] for batch in AspectRatioGroupedDataset(stream, size)]
    assert [[place.image for place in order.take(size)] for _ in expected] == expected


def test_shapes_that_dicts_lack_are_read_from_the_files(tmp_path):
    sizes = [(20, 10), (10, 20), (20, 10), (10, 20)]
    images = [{"file_name": str(tmp_path / f"{i}.png"), "index": i} for i in range(5)]
    for image, size in zip(images, sizes, strict=False):
        Image.new("L", size).save(image["file_name"])
    # A missing file is left to the mapper.
    for step in of_all(loaders(images, 2, 1, group_by_shape=True), 20):
        assert len({sample["index"] in (0, 2) for sample in step}) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_draws_depend_neither_on_workers_nor_on_what_was_drawn_before(workers):
    here = loaders(records(5), 2, 1)[0].batches(6)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(3).tolist()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert loaders(records(5), 2, 1)[0].batches(6) == here
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected
    with_workers = loaders(records(5), 2, 1, workers=workers)[0]
    assert with_workers.batches(3) == here[:3]
    # Workers have prepared more batches than were handed out.
    again = loaders(records(5), 2, 1)[0]
    again.loader.load_state_dict(saved(with_workers))
    assert again.batches(3) == here[3:]
    draws = [draw for batch in here for sample in batch for draw in sample["draws"]]
    assert len(set(draws)) == len(draws)


def test_a_seed_that_was_drawn_comes_back_and_one_that_was_given_wins(caplog):
    first = loaders(records(8), 2, 1, seed=None)[0]
    before = indices(first.batches(3))
    rest = first.batches(6)
    expected = loaders(records(8), 2, 1, seed=first.loader.state_dict()["seed"])[0]
    assert indices(expected.batches(3)) == before
    restored = loaders(records(8), 2, 1, seed=None)[0]
    restored.loader.load_state_dict(saved(expected))
    assert restored.batches(6) == rest
    given = loaders(records(8), 2, 1, seed=77)[0]
    given.loader.load_state_dict(saved(expected))
    other = given.batches(6)
    # The epoch is completed in its order, with other augmentation.
    assert indices(other[:1]) == indices(rest[:1]) and other[0] != rest[0]
    assert indices(other[1:]) != indices(rest[1:])
    assert "SEED is 77, the checkpoint has" in caplog.text


def test_other_images_begin_an_epoch(caplog):
    first = loaders(records(8), 2, 1)[0]
    first.batches(3)
    for images in (records(7), [{**image, "file_name": "new" + image["file_name"]} for image in records(8)]):
        other = loaders(images, 1, 1)[0]
        other.loader.load_state_dict(saved(first))
        assert sorted(indices(other.batches(len(images)))) == list(range(len(images)))
    assert caplog.text.count("a new epoch starts") == 2


def test_a_mapper_may_leave_out_an_image():
    def only_even(record):
        return mapper(record) if record["index"] % 2 == 0 else None

    loader = TrainingLoader(records(6), only_even, batch_size=1, seed=3)
    found = list(itertools.islice(loader, 12))
    assert {sample["index"] for (sample,) in found} == {0, 2, 4}
    assert list(itertools.islice(TrainingLoader(records(6), only_even, batch_size=1, seed=3), 12)) == found
    with pytest.raises(ValueError, match="the mapper returned None for 100 images"):
        next(iter(TrainingLoader(records(6), lambda _: None, batch_size=1)))


def test_processes_share_a_batch_evenly():
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH is 3, expected a multiple of the number of processes, 2"):
        loaders(records(4), 3, 2)
