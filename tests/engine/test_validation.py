"""Losses on images that are not trained on."""

import zlib

import numpy as np
import pytest
import torch

from mask2former.engine import NonFiniteLossError
from mask2former.engine.hooks import validation_losses

from .accumulating import config, images, untrained

PARTS = ("loss_ce", "loss_mask", "loss_dice")


@pytest.fixture(scope="module")
def model():
    return untrained(config("MODEL.MASK_FORMER.DROPOUT", "0.5", "MODEL.DINAT.DROP_PATH_RATE", "0.9"))


@pytest.fixture(scope="module")
def batches():
    return [[image] for image in images((3, 1, 0))]


def test_losses_are_means_over_single_images_without_dropout(model, batches):
    found = validation_losses(model.train(), batches)
    assert model.training
    assert found == validation_losses(model, batches)
    alone = [validation_losses(model, [batch]) for batch in batches]
    for name, value in found.items():
        assert value == pytest.approx(np.mean([losses[name] for losses in alone]))
    assert found.keys() == {"total_loss", *PARTS}
    # What the training computes of an image, but for dropout, with its points.
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(zlib.crc32(b"0.jpg"))
        expected = {name: float(loss) for name, loss in model.eval().losses(batches[0]).items()}
    assert alone[0] == pytest.approx({"total_loss": sum(expected.values()), **{n: expected[n] for n in PARTS}})
    assert validation_losses(model, []) == {}


def test_the_training_draws_as_if_nothing_had_been(model, batches):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    validation_losses(model, batches[:1])
    assert torch.rand(4).equal(expected)


def test_predictions_that_diverged_name_the_image(model, batches):
    broken = [{**batches[1][0], "image": torch.full((3, 64, 64), float("nan")), "file_name": "photo.jpg"}]
    with pytest.raises(NonFiniteLossError, match=r"validation loss: .*photo\.jpg"):
        validation_losses(model.train(), [batches[0], broken])
    assert model.training
