import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.engine import NonFiniteLossError, TrainLoop


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen = []

    def forward(self, batch):
        output = self.layer(torch.stack([sample["image"] for sample in batch]))
        self.seen.append(output.dtype)
        target = torch.stack([sample["target"] for sample in batch])
        return {"loss_a": (output - target).float().square().mean(), "loss_b": output.float().abs().mean()}


def sample(name, target=1.0):
    return {"image": torch.ones(4), "target": torch.full((4,), target), "file_name": name}


def steps(batches, amp=False):
    torch.manual_seed(0)
    model = Model()
    loop = TrainLoop(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), amp=amp)
    with EventStorage() as storage:
        for loop.iter in range(len(batches)):
            loop.run_step()
    return model, storage


@pytest.mark.parametrize(("amp", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_losses_fall_in_float32_and_bfloat16(amp, dtype):
    model, storage = steps([[sample("a.jpg"), sample("b.jpg")]] * 20, amp)
    history = [value for value, _ in storage.history("total_loss").values()]
    assert history[-1] < 0.5 * history[0]
    assert set(model.seen) == {dtype}
    assert model.layer.weight.dtype == torch.float32
    assert {"loss_a", "loss_b", "data_time"} <= storage.histories().keys()


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    batches = [[sample("a.jpg")], [sample("b.jpg", float("inf")), sample("c.jpg")]]
    torch.manual_seed(0)
    model = Model()
    loop = TrainLoop(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))
    with EventStorage():
        loop.iter = 0
        loop.run_step()
        weight = model.layer.weight.clone()
        loop.iter = 1
        with pytest.raises(
            NonFiniteLossError, match=r"iteration 1: loss not finite: loss_a = inf; images.*: b\.jpg, c\.jpg"
        ):
            loop.run_step()
    assert torch.equal(model.layer.weight, weight)


def test_what_the_model_finds_itself_is_reported_with_the_images():
    class Diverged(Model):
        def forward(self, batch):
            raise FloatingPointError("the dice cost is NaN")

    model = Diverged()
    loop = TrainLoop(model, [[sample("a.jpg")]], torch.optim.SGD(model.parameters()))
    loop.iter = 7
    with pytest.raises(NonFiniteLossError, match=r"iteration 7: the dice cost is NaN; images of the batch: a\.jpg"):
        loop.run_step()


class Drawing(Model):
    """Draws a number in each step."""

    def forward(self, batch):
        self.seen.append(float(torch.rand(1)))
        return {"loss": self.layer(torch.ones(4)).sum()}


def drawing_loop(loader, **settings):
    model = Drawing()
    return TrainLoop(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def run(loop, iterations):
    with EventStorage():
        for loop.iter in iterations:
            loop.run_step()
            torch.rand(7)
    return loop.model.seen


def test_draws_of_a_step_follow_from_seed_and_iteration():
    loader = [[sample("a.jpg")]] * 9
    drawn = run(drawing_loop(loader, seed=3), range(4))
    assert len(set(drawn)) == 4
    assert run(drawing_loop(loader, seed=3), range(2, 4)) == drawn[2:]
    assert run(drawing_loop(loader, seed=4), range(4)) != drawn
    first, again = drawing_loop(loader), drawing_loop(loader)
    again.load_state_dict(first.state_dict())
    assert run(again, range(4)) == run(first, range(4))
    # A seed that is given stays.
    given = drawing_loop(loader, seed=3)
    given.load_state_dict(first.state_dict())
    assert run(given, range(4)) == drawn


class Stateful(list):
    """A loader of a user with a place."""

    place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def test_the_place_of_a_loader_is_restored_and_the_log_tells_of_what_is_lacking(caplog):
    plain, stateful = drawing_loop([]), drawing_loop(Stateful())
    stateful.data_loader.place = 5
    again = drawing_loop(Stateful())
    again.load_state_dict(stateful.state_dict())
    assert again.data_loader.place == 5 and not caplog.text
    again.load_state_dict(plain.state_dict())
    assert "The checkpoint has no place in the order of images" in caplog.text
    plain.load_state_dict(stateful.state_dict())
    assert "The training loader (list) has no load_state_dict: it starts anew" in caplog.text
