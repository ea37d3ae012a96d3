"""A training resumed under other settings: the config decides, and state without a counterpart starts afresh."""

import math
import re
import shutil

import pytest
import torch
from torch import nn

from mask2former import setup_cfg
from mask2former.checkpoint import read_checkpoint
from mask2former.engine import Trainer
from mask2former.engine.resuming import config_differences, fit_optimizer_state, parameter_names, set_iteration
from mask2former.solver import build_lr_scheduler, build_optimizer, scale_learning_rate

from ..conftest import ROOT, load_script
from ..tiny import TINY

SHAPES = ROOT / "configs/shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml"
DONE = 3  # iterations of the training that is resumed
STEPS = {
    "SOLVER.MAX_ITER": 10,
    "SOLVER.STEPS": "(5,)",
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.WARMUP_FACTOR": 0.2,
    "SOLVER.CHECKPOINT_PERIOD": DONE,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": "()",
    "INPUT.IMAGE_SIZE": 64,
    "SEED": 3,
}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    load_script("datasets/prepare_shapes.py").prepare(root, train=2, val=1, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield


def config(**changes):
    given = {**STEPS, **{key.replace("__", "."): value for key, value in changes.items()}}
    return setup_cfg(SHAPES, [*TINY, *(str(word) for pair in given.items() for word in pair)])


def trainer_of(folder, **changes):
    return Trainer(config(OUTPUT_DIR=folder, **changes))


class Stopped(Exception):
    """Stands for a process that is killed."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a training that was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    trainer = trainer_of(folder)
    trainer.resume_or_load(resume=False)
    steps = trainer._trainer.run_step

    def run_step():
        if trainer.iter == DONE:
            raise Stopped
        steps()

    trainer._trainer.run_step = run_step
    with pytest.raises(Stopped):
        trainer.train()
    return folder


@pytest.fixture
def resumed(checkpoint, tmp_path, caplog):
    """Function that resumes a copy of the training under other settings."""

    def resumed(edit=None, **changes):
        folder = shutil.copytree(checkpoint, tmp_path / "copy")
        if edit:
            path = folder / "model_0000002.pth"
            content = torch.load(path, weights_only=True)
            edit(content["trainer"])
            torch.save(content, path)
        trainer = trainer_of(folder, **changes)
        caplog.clear()
        with caplog.at_level("INFO", logger="mask2former"):
            trainer.resume_or_load(resume=True)
        assert trainer.start_iter == DONE
        state = trainer.model.state_dict()
        saved = read_checkpoint(folder / "model_0000002.pth")["model"]
        assert all(torch.equal(state[name], value) for name, value in saved.items())
        return trainer

    return resumed


def states(trainer):
    """Optimiser state, and settings of the group, by parameter name."""
    optimizer = trainer._trainer.optimizer
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return {
        names[parameter]: (optimizer.state.get(parameter, {}), group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def saved_states(folder):
    loop = read_checkpoint(folder / "model_0000002.pth")["trainer"]
    return dict(zip(loop["parameter_names"], loop["_trainer"]["optimizer"]["state"].values(), strict=True))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def warnings(caplog):
    """Warnings about settings; the order of the images has its own."""
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in messages if message.startswith("Resumed with other settings")]


RATE = 0.001 * (0.2 + 0.8 * 3 / 4)  # in the warm-up
QUERIES, BACKBONE = "sem_seg_head.predictor.query_feat.weight", "backbone.levels.0.blocks.0.attn.qkv.weight"


def poly(iteration, last, warmup=1.0):
    return 0.001 * warmup * (1 - iteration / last) ** 0.9


class Small(nn.Module):
    """A backbone with a norm, and a head with an embedding and a position bias."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.head = nn.ModuleDict({"queries": nn.Embedding(2, 3), "out": nn.Linear(3, 2)})
        self.rpb = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.head["out"](self.backbone(x) + self.head["queries"].weight.sum(0) + self.rpb).sum()


def built(cfg, frozen=()):
    """Model, optimiser and schedule of a config, as a trainer builds them."""
    model = Small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen) or "nothing"))
    cfg = scale_learning_rate(cfg)
    optimizer = build_optimizer(cfg, model)
    return model, optimizer, build_lr_scheduler(cfg, optimizer)


@pytest.fixture(scope="module")
def small():
    """Optimiser state after three steps, and the names of its parameters."""
    model, optimizer, _ = built(config())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).backward()
        optimizer.step()
    return optimizer.state_dict(), parameter_names(model, optimizer)


def fitted(small, *, names=True, frozen=(), **changes):
    """State, group and notes of an optimiser of other settings, by parameter name."""
    model, optimizer, _ = built(config(**changes), frozen)
    state, notes = fit_optimizer_state(
        optimizer, parameter_names(model, optimizer), small[0], small[1] if names else None
    )
    optimizer.load_state_dict(state)
    found = {
        name: (optimizer.state.get(parameter, {}), group)
        for name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    return found, notes


@pytest.mark.parametrize(
    ("changes", "rate", "backbone"),
    [
        ({}, RATE, 1.0),
        ({"SOLVER__BASE_LR": 0.0001}, RATE / 10, 1.0),
        ({"SOLVER__BACKBONE_MULTIPLIER": 0.1}, RATE, 0.1),
        ({"SOLVER__LR_REFERENCE_BATCH": 8}, RATE / 4, 1.0),
        ({"SOLVER__WARMUP_ITERS": 3}, 0.001, 1.0),
        ({"SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": "(3,)"}, 0.0001, 1.0),
        ({"SOLVER__WARMUP_ITERS": 0, "SOLVER__STEPS": "(2, 3)", "SOLVER__GAMMA": 0.5}, 0.00025, 1.0),
        ({"SOLVER__WARMUP_METHOD": "constant"}, 0.0002, 1.0),
        ({"SOLVER__WARMUP_FACTOR": 1.0}, 0.001, 1.0),
        ({"SOLVER__MAX_ITER": 1000}, RATE, 1.0),
        ({"SOLVER__LR_SCHEDULER_NAME": "WarmupPolyLR", "SOLVER__WARMUP_ITERS": 0}, poly(3, 10), 1.0),
        ({"SOLVER__LR_SCHEDULER_NAME": "WarmupPolyLR", "SOLVER__MAX_ITER": 20}, poly(3, 20, 0.8), 1.0),
        (
            {"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER__WARMUP_ITERS": 0},
            0.0005 * (1 + math.cos(0.3 * math.pi)),
            1.0,
        ),
        (
            {"SOLVER__LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "SOLVER__WARMUP_ITERS": 0},
            0.0001,
            1.0,
        ),
    ],
    ids=lambda value: " ".join(f"{k[8:]}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_the_next_rate_is_that_of_the_config(changes, rate, backbone):
    """The rate after three iterations, which is also that of a training that was not interrupted."""
    *_, scheduler = built(config(**changes))
    rates = set_iteration(scheduler, DONE)
    assert min(rates) == pytest.approx(rate * backbone)
    assert max(rates) == pytest.approx(rate)
    _, whole, scheduler = built(config(**changes))
    for _ in range(DONE):
        whole.step()
        scheduler.step()
    assert [group["lr"] for group in whole.param_groups] == rates


def test_a_schedule_that_depends_on_earlier_rates_is_left_as_it_is():
    scheduler = torch.optim.lr_scheduler.ExponentialLR(built(config())[1], 0.9)
    assert set_iteration(scheduler, DONE) is None
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("WEIGHT_DECAY", "head.out.weight"),
        ("WEIGHT_DECAY_NORM", "backbone.1.weight"),
        ("WEIGHT_DECAY_EMBED", "head.queries.weight"),
        ("WEIGHT_DECAY_RPB", "rpb"),
    ],
)
def test_weight_decay_is_that_of_the_config_whatever_becomes_of_the_groups(small, key, name):
    found, notes = fitted(small, **{f"SOLVER__{key}": 0.25, "SOLVER__BACKBONE_MULTIPLIER": 0.3})
    assert found[name][1]["weight_decay"] == 0.25
    for index, name in enumerate(small[1]):
        assert equal(found[name][0], small[0]["state"][index])
    assert notes == []


def test_what_is_no_longer_trained_is_left_out_and_what_is_new_starts_afresh(small):
    found, notes = fitted(small, frozen=["backbone.0"])
    assert "backbone.0.weight" not in found
    assert equal(found["rpb"][0], small[0]["state"][small[1].index("rpb")])
    assert notes == ["optimiser state of 2 parameters that are not trained now is left out (backbone.0)"]
    less = small[0], [name.replace("backbone.0", "other") for name in small[1]]
    found, notes = fitted(less)
    assert found["backbone.0.weight"][0] == {}
    assert equal(found["rpb"][0], small[0]["state"][small[1].index("rpb")])
    assert notes[0] == "optimiser state starts afresh for 2 of 8 parameters (backbone.0)"


def test_another_shape_starts_afresh(small):
    state = {
        key: {k: v[..., :1] if v.ndim else v for k, v in value.items()} for key, value in small[0]["state"].items()
    }
    found, notes = fitted(({**small[0], "state": state}, small[1]))
    assert all(value == {} for value, _ in found.values())
    assert "8 of 8" in notes[0]


@pytest.mark.parametrize("names", [True, False])
def test_another_optimiser_starts_afresh(small, names):
    found, notes = fitted(small, names=names, SOLVER__OPTIMIZER="SGD", SOLVER__MOMENTUM=0.7)
    assert all(state == {} and group["momentum"] == 0.7 for state, group in found.values())
    assert notes == ["the checkpoint is of another SOLVER.OPTIMIZER: the optimiser starts afresh"]


def test_momentum_is_that_of_the_config():
    model, optimizer, _ = built(config(SOLVER__OPTIMIZER="SGD", SOLVER__MOMENTUM=0.5))
    model(torch.ones(1, 2)).backward()
    optimizer.step()
    small = optimizer.state_dict(), parameter_names(model, optimizer)
    found, notes = fitted(small, SOLVER__OPTIMIZER="SGD", SOLVER__MOMENTUM=0.7)
    assert all(group["momentum"] == 0.7 for _, group in found.values())
    assert all("momentum_buffer" in state for state, _ in found.values())
    assert notes == []


def test_checkpoints_without_names(small):
    found, notes = fitted(small, names=False, SOLVER__BASE_LR=0.0001)
    assert notes == [] and equal(found["rpb"][0], small[0]["state"][small[1].index("rpb")])
    for changes in ({"frozen": ["backbone.0"]}, {"SOLVER__WEIGHT_DECAY_RPB": 0.25}):
        found, notes = fitted(small, names=False, **changes)
        assert all(state == {} for state, _ in found.values())
        assert "no parameter names" in notes[0]
    for nothing in (None, {}, {"state": {}, "param_groups": []}):
        found, notes = fitted((nothing, None))
        assert all(state == {} for state, _ in found.values())
        assert notes == ["the checkpoint has no optimiser state: the optimiser starts afresh"]


def test_the_table_lists_what_differs():
    before, now = config(), config(SOLVER__BASE_LR=0.0001, SOLVER__STEPS="(6, 8)", SOLVER__WEIGHT_DECAY_RPB=0.02)
    lines = config_differences(before.dump(), now).splitlines()
    assert [line.split(maxsplit=2) for line in lines[2:]] == [
        ["SOLVER.BASE_LR", "0.001", "0.0001"],
        ["SOLVER.STEPS", "[5]", "[6, 8]"],
        ["SOLVER.WEIGHT_DECAY_RPB", "None", "0.02"],
    ]
    assert config_differences(before.dump(), before) == ""
    older = config_differences(before.dump().replace("DECAY: 0.9999", "D: 1"), before)
    assert re.search(r"SOLVER\.EMA\.DECAY +\(no such key\) +0\.9999", older)


def test_what_the_config_leaves_alone_is_equal_to_the_bit(resumed, checkpoint, caplog):
    """Clipping and accumulation have no state."""
    saved = read_checkpoint(checkpoint / "model_0000002.pth")["trainer"]["_trainer"]["optimizer"]
    changes = {"SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 1e-3, "SOLVER__ACCUMULATE_STEPS": 2, "SOLVER__IMS_PER_BATCH": 1}
    trainer = resumed(**changes)
    optimizer = trainer.optimizer.state_dict()
    assert optimizer["param_groups"] == saved["param_groups"]
    assert optimizer["state"].keys() == saved["state"].keys()
    assert all(equal(optimizer["state"][key], saved["state"][key]) for key in saved["state"])
    assert warnings(caplog) == []
    assert re.search(r"SOLVER\.CLIP_GRADIENTS\.CLIP_VALUE +\S+ +0\.001", caplog.text)

    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    assert float(torch.stack([p.grad.norm() for p in parameters]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_freezing_and_averaging_on_and_off(resumed, checkpoint, caplog):
    trainer = resumed(MODEL__BACKBONE__FREEZE_AT=2, SOLVER__EMA__ENABLED=True, SOLVER__BASE_LR=0.0001)
    average = {name: value.clone() for name, value in trainer._average.module.state_dict().items()}
    assert all(torch.equal(value, average[name]) for name, value in trainer.model.state_dict().items())
    found, before = states(trainer), saved_states(checkpoint)
    assert BACKBONE not in found
    assert all(equal(state, before[name]) for name, (state, _) in found.items())
    assert found[QUERIES][1]["lr"] == pytest.approx(RATE / 10)
    (message,) = warnings(caplog)
    assert f"{len(before) - len(found)} parameters that are not trained now" in message
    assert "the average (SOLVER.EMA) starts from the weights" in message
    trainer.max_iter = DONE + 1
    trainer.train()
    assert not torch.equal(trainer.model.state_dict()[QUERIES], average[QUERIES])

    folder = trainer.cfg.OUTPUT_DIR
    trainer.checkpointer.save("model_0000003")
    thawed = trainer_of(folder)
    caplog.clear()
    thawed.resume_or_load(resume=True)
    found = states(thawed)
    assert found[BACKBONE][0] == {} and found[QUERIES][0]["step"] == DONE + 1
    (message,) = warnings(caplog)
    assert "starts afresh for" in message and "backbone.levels.0" in message
    assert "average of the checkpoint (SOLVER.EMA) is left out" in message
    caplog.clear()
    again = trainer_of(folder, SOLVER__EMA__ENABLED=True, MODEL__BACKBONE__FREEZE_AT=2)
    again.resume_or_load(resume=True)
    assert int(again._average.n_averaged) == 1
    assert warnings(caplog) == []


def old(trainer):
    del trainer["parameter_names"], trainer["config"]


def from_detectron2(trainer):
    old(trainer)
    del trainer["_trainer"]


@pytest.mark.parametrize(("edit", "fresh"), [(old, False), (from_detectron2, True)])
def test_old_checkpoints_and_fewer_iterations_than_were_trained(resumed, caplog, edit, fresh):
    """Beyond its end, DeepLab's schedule has no value."""
    trainer = resumed(edit, SOLVER__MAX_ITER=2, SOLVER__LR_SCHEDULER_NAME="WarmupPolyLR", SOLVER__WARMUP_ITERS=0)
    assert all((state == {}) == fresh for state, _ in states(trainer).values())
    assert len(warnings(caplog)) == fresh
    with caplog.at_level("INFO"):
        trainer.train()
    assert "evaluating only" in caplog.text


def test_no_iterations_evaluate_and_end(tmp_path, caplog):
    trainer = trainer_of(tmp_path, SOLVER__MAX_ITER=0, SOLVER__EMA__ENABLED=True)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with caplog.at_level("INFO"):
        trainer.train()
    assert "evaluating only" in caplog.text
    after = read_checkpoint(tmp_path / "model_final_ema.pth")["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)
