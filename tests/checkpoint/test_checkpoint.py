import itertools
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mask2former.checkpoint import (
    Checkpointer,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    read_checkpoint,
)


class Model(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(2, 4), "norm0": nn.LayerNorm(4)})
        self.head = nn.Linear(4, classes)
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(classes))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return Model().state_dict()


def trained(model, steps=2):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model.head(model.backbone["stem"](torch.ones(1, 2))).sum().backward()
        optimizer.step()
    return optimizer


def test_everything_of_a_training_comes_back(tmp_path):
    model = Model()
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    Checkpointer(model, str(tmp_path), optimizer=optimizer, scheduler=scheduler).save("model_0000001", iteration=1)

    other = Model()
    new_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    new_scheduler = torch.optim.lr_scheduler.StepLR(new_optimizer, 1)
    checkpointer = Checkpointer(other, str(tmp_path), optimizer=new_optimizer, scheduler=new_scheduler)
    rest = checkpointer.resume_or_load("", resume=True)

    assert rest == {"iteration": 1}
    assert same(other.state_dict(), model.state_dict())
    assert new_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(new_optimizer.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_write_that_breaks_off_leaves_the_last_checkpoint(tmp_path, monkeypatch, weights):
    model = Model()
    model.load_state_dict(weights)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("first")
    nn.init.zeros_(model.head.weight)

    def full_disk(content, file):
        file.write(b"PK\x03\x04 half of a file")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            checkpointer.save("second")

    assert {path.name for path in tmp_path.iterdir()} == {"first.pth", "last_checkpoint"}
    restored = Model()
    Checkpointer(restored, str(tmp_path)).resume_or_load("", resume=True)
    assert same(restored.state_dict(), weights)


def test_what_a_killed_write_left_does_not_hinder_the_next(tmp_path):
    (tmp_path / ".model.pth.tmp").write_bytes(b"half")
    (tmp_path / ".last_checkpoint.tmp").write_text("mod")
    checkpointer = Checkpointer(Model(), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "last_checkpoint"}


def wrapped(prefix):
    return lambda state: {prefix + name: value for name, value in state.items()}


def inside(state):
    """Parts of the model are wrapped, each in another way."""
    wrappers = {"backbone": "backbone.module", "stem": "stem._orig_mod", "head": "module._orig_mod.head"}
    return {".".join(wrappers.get(part, part) for part in name.split(".")): value for name, value in state.items()}


def mixed(state):
    prefixes = itertools.cycle(["", "module.", "_orig_mod.module.", "model."])
    return {prefix + name: value for prefix, (name, value) in zip(prefixes, state.items(), strict=False)}


def with_counters(state):
    return {**state, "backbone.norm0.num_batches_tracked": torch.tensor(7), "n_averaged": torch.tensor(3)}


RENAMES = {
    "plain": dict,
    "model": wrapped("model."),
    "module": wrapped("module."),
    "module.model": wrapped("module.model."),
    "compiled": wrapped("_orig_mod."),
    "compiled in parallel": wrapped("module._orig_mod."),
    "framework": wrapped("model._orig_mod.module.module."),
    "inside": inside,
    "mixed": mixed,
    "inside and outside": lambda state: wrapped("module._orig_mod.")(inside(state)),
    "counters": with_counters,
    "average": lambda state: wrapped("module.")(with_counters(state)),
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
@pytest.mark.parametrize("container", ["plain", "model", "state_dict", "nested", "safetensors"])
def test_accepted_forms_of_weight_files(tmp_path, weights, rename, container):
    state = rename(weights)
    path = tmp_path / ("weights.safetensors" if container == "safetensors" else "weights.pth")
    if container == "safetensors":
        save_file(state, path)
    else:
        contents = {
            "plain": state,
            "model": {"model": state, "iteration": 3},
            "state_dict": {"state_dict": state, "iteration": 3},
            "nested": {"model": {"state_dict": state}, "iteration": 3},
        }
        torch.save(contents[container], path)
    model = Model()
    rest = Checkpointer(model).load(path, checkpointables=[])
    assert same(model.state_dict(), weights)
    assert rest == ({} if container in ("plain", "safetensors") else {"iteration": 3})


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")])
def test_a_model_with_wrapped_parts_takes_plain_weights_and_gives_them_back(tmp_path, weights, wrap):
    model = Model()
    model.backbone["stem"] = wrap(model.backbone["stem"])
    torch.save(weights, tmp_path / "w.pth")
    Checkpointer(model, str(tmp_path)).load(tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights.values(), strict=True))
    Checkpointer(model, str(tmp_path)).save("again")
    plain = Model()
    Checkpointer(plain).load(tmp_path / "again.pth")
    assert same(plain.state_dict(), weights)


class Outer(nn.Module):
    """A model whose own modules have the names of wrappers."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"model": nn.Linear(2, 2), "module": nn.Linear(2, 2)})
        self.weight = nn.Parameter(torch.randn(3))


def test_a_model_with_modules_called_as_wrappers_gets_its_own_weights(tmp_path):
    model, other = Outer(), Outer()
    Checkpointer(model, str(tmp_path)).save("w")
    Checkpointer(other).load(tmp_path / "w.pth")
    assert same(model.state_dict(), other.state_dict())


def test_a_model_with_batch_norms_takes_weights_with_and_without_their_counters(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    counters = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    torch.save(counters, tmp_path / "w.pth")
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    Checkpointer(other).load(tmp_path / "w.pth")
    assert same(model.state_dict(), other.state_dict())


def test_two_weights_that_are_one_without_wrappers_are_not_chosen_from(tmp_path, weights):
    torch.save({**weights, "module.head.weight": torch.zeros(3, 4)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError, match=r"module\.head\.weight +3x4 +unknown"):
        Checkpointer(Model()).load(tmp_path / "w.pth")


def test_a_training_checkpoint_of_detectron2_is_read_without_running_it(tmp_path, weights):
    """Optimiser, scheduler and hooks beside the model, with NumPy's numbers among them."""
    states = {
        "iteration": 9,
        "scheduler": {"base_lrs": [1e-4], "last_epoch": 10},
        "trainer": {"best": np.float64(49.2)},
    }
    torch.save(
        {"model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": np.float32(0.1)}]}, **states},
        tmp_path / "w.pth",
    )
    model = Model()
    rest = Checkpointer(model).load(tmp_path / "w.pth", checkpointables=[])
    assert same(model.state_dict(), weights)
    assert rest["trainer"]["best"] == 49.2 and rest["iteration"] == 9


def test_texts_of_safetensors_come_back(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors", metadata={"setting": "coco-panoptic"})
    assert read_checkpoint(tmp_path / "w.safetensors")["metadata"] == {"setting": "coco-panoptic"}


@pytest.mark.parametrize("new_format", [True, False])
def test_shapes_alone_are_read_from_any_file(tmp_path, weights, new_format):
    path = tmp_path / "w.pth"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(path, shapes_only=True)["model"]
    assert {name: value.shape for name, value in read.items()} == {n: v.shape for n, v in weights.items()}
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"w\.pth: "):
        read_checkpoint(path, shapes_only=True)


def test_pickles_are_opened_only_when_allowed(tmp_path, weights):
    path = tmp_path / "weights.pkl"
    content = {"model": {name: value.numpy() for name, value in weights.items()}, "__author__": "someone"}
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        CheckpointError, match=r"weights\.pkl: opening a \.pkl can execute arbitrary code.*--allow-pickle"
    ):
        Checkpointer(Model()).load(path)
    model = Model()
    Checkpointer(model, allow_pickle=True).load(path)
    assert same(model.state_dict(), weights)


class Payload:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_torch_file_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"a": Payload()}}, "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: .*GLOBAL \S+$"):
        read_checkpoint("evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["torn.pth", "torn.safetensors", "empty.pth", "text.pth"])
def test_damaged_files_are_named(tmp_path, weights, name):
    path = tmp_path / name
    torch.save(weights, path)
    content = {"torn": path.read_bytes()[:-500], "empty": b"", "text": b"not a checkpoint"}[path.stem]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"epoch": 1, "state_dict": {}}, {"model": {"a": 1}}, {}, [1, 2]])
def test_files_of_another_kind_are_explained(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: (expected|holds no weights)"):
        read_checkpoint(tmp_path / "other.pth")


def test_another_setting_is_refused_with_a_table_and_nothing_is_loaded(tmp_path, weights):
    state = {name: value for name, value in weights.items() if name != "backbone.stem.bias"}
    state["decoder.extra"] = torch.zeros(7, 2)
    torch.save(state, tmp_path / "w.pth")
    model = Model(classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError) as error:
        Checkpointer(model).load(tmp_path / "w.pth")
    rows = [line.split() for line in str(error.value).splitlines()]
    assert ["head.weight", "3x4", "5x4"] in rows
    assert ["backbone.stem.bias", "missing", "4"] in rows
    assert ["decoder.extra", "7x2", "unknown"] in rows
    assert "--allow-partial" in str(error.value)
    assert same(model.state_dict(), before)


def test_a_long_table_is_cut(tmp_path):
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(500)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError, match=r"\.\.\. and 470 more") as error:
        Checkpointer(Model()).load(tmp_path / "w.pth")
    assert len(str(error.value).splitlines()) < 60


def test_what_fits_is_loaded_when_asked(tmp_path, weights, caplog):
    torch.save(weights, tmp_path / "w.pth")
    model = Model(classes=5)
    head = model.head.weight.clone()
    with caplog.at_level("INFO"):
        Checkpointer(model, allow_partial=True).load(tmp_path / "w.pth")
    assert torch.equal(model.backbone["stem"].weight, weights["backbone.stem.weight"])
    assert torch.equal(model.head.weight, head)
    assert "head.weight" in caplog.text
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError):
        Checkpointer(model, allow_partial=True).load(tmp_path / "w.pth")


def test_names_are_never_compared_by_suffix(tmp_path, weights):
    torch.save({"encoder." + name: value for name, value in weights.items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError):
        Checkpointer(Model()).load(tmp_path / "w.pth")


def test_buffers_made_from_the_config_may_be_absent_or_extra(tmp_path, weights):
    state = {name: value for name, value in weights.items() if name != "criterion.empty_weight"}
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    model = Model()
    Checkpointer(model).load(tmp_path / "w.pth")
    assert torch.equal(model.head.weight, weights["head.weight"])


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone._orig_mod.", "_orig_mod."])
def test_a_backbone_can_start_a_training(tmp_path, weights, prefix, caplog):
    stem = {f"{prefix}stem.{name}": weights[f"backbone.stem.{name}"] for name in ("weight", "bias")}
    torch.save(stem, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError):
        Checkpointer(Model()).load(tmp_path / "w.pth")
    model = Model()
    with caplog.at_level("INFO"):
        Checkpointer(model, starts_training=True).load(tmp_path / "w.pth")
    assert torch.equal(model.backbone["stem"].weight, weights["backbone.stem.weight"])
    assert "the rest of the model starts from random weights" in caplog.text
    del stem[f"{prefix}stem.bias"]
    torch.save(stem, tmp_path / "w.pth")
    with pytest.raises(CheckpointMismatchError):
        Checkpointer(Model(), starts_training=True).load(tmp_path / "w.pth")


def test_missing_files_say_who_names_them(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"MODEL\.WEIGHTS: no file .*absent\.pth"):
        Checkpointer(Model()).load(str(tmp_path / "absent.pth"))
    with pytest.raises(CheckpointError, match="begins with http"):
        Checkpointer(Model()).load("detectron2://w.pth")
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    with pytest.raises(CheckpointNotFoundError, match=r"last_checkpoint: no file .*gone\.pth"):
        Checkpointer(Model(), str(tmp_path)).resume_or_load("", resume=True)


def test_resuming_without_a_checkpoint_starts_from_the_weights_and_says_so(tmp_path, weights, caplog):
    torch.save(weights, tmp_path / "w.pth")
    model = Model()
    with caplog.at_level("INFO"):
        Checkpointer(model, str(tmp_path / "run")).resume_or_load(str(tmp_path / "w.pth"), resume=True)
    assert same(model.state_dict(), weights)
    assert "No checkpoint to resume from" in caplog.text


def test_empty_weights_leave_the_initialisation_and_say_so(weights, caplog):
    model = Model()
    model.load_state_dict(weights)
    with caplog.at_level("INFO"):
        assert Checkpointer(model).load("") == {}
    assert same(model.state_dict(), weights)
    assert "random weights" in caplog.text


def test_a_file_of_only_weights_can_not_be_resumed(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    (tmp_path / "last_checkpoint").write_text("w.pth")
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="lacks optimizer"):
        Checkpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)


def test_numpy_weights_become_tensors(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"a": np.ones((2, 3), np.float32)}))
    assert torch.equal(read_checkpoint(path, allow_pickle=True)["model"]["a"], torch.ones(2, 3))
