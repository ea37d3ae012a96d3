"""What a training can do, it can do with each architecture."""

import json
import shutil

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from mask2former.config import ConfigError
from mask2former.engine import Trainer
from mask2former.tasks import ARCHITECTURES
from tests.small_models import MODELS, drawn_data, inputs, require_equal_steps, step

EVERYTHING = {
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.DINAT.DROP_PATH_RATE": 0.2,
    "MODEL.DINAT.USE_CHECKPOINT": True,
    "SOLVER.ACCUMULATE_STEPS": 2,
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 3,
    "TEST.EVAL_PERIOD": 2,
    "TEST.VALIDATION_IMAGES": 2,
    "TEST.VALIDATION_LOSS": True,
}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    drawn_data(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_there_is_a_model_of_each_architecture():
    assert {model.cfg().MODEL.META_ARCHITECTURE for model in MODELS.values()} == set(ARCHITECTURES)


def train(name, folder, *, resume=False):
    """Trainer after a run with all options, and the weights before it."""
    settings = {**EVERYTHING, "OUTPUT_DIR": folder, "TEST.BEST_METRIC": MODELS[name].metrics[0]}
    trainer = Trainer(MODELS[name].cfg(*(word for pair in settings.items() for word in pair)))
    trainer.resume_or_load(resume=resume)
    before = {key: value.clone() for key, value in trainer._plain_model.state_dict().items()}
    trainer.train()
    return trainer, before


def test_all_options_together_and_a_resumed_run_ends_the_same(name, tmp_path, loggers_restored):
    """Freezing, checkpointing, bfloat16, accumulation, average, validation, the best weights, the curves."""
    trainer, before = train(name, tmp_path / "whole")
    model = trainer._plain_model
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    parts = (".patch_embed.", ".levels.0.", ".norm0.")
    assert any(".levels.0." in key for key in frozen) and all(any(p in key for p in parts) for key in frozen)
    moved = {key for key, parameter in model.named_parameters() if not parameter.equal(before[key])}
    # Biases of maps without a loss stay 0.
    still = {key for key, _ in model.named_parameters()} - frozen - moved
    assert not moved & frozen and len(still) <= 2, still
    names = {"model_final.pth", "model_final_ema.pth", "model_best.pth", "losses.png"}
    assert names <= {path.name for path in (tmp_path / "whole").iterdir()}
    best = torch.load(tmp_path / "whole" / "model_best.pth", weights_only=True)["best"]
    assert best["metric"] == MODELS[name].metrics[0]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.json").read_text().splitlines()]
    measured = [key for line in lines for key in line]
    # During the training and at its end.
    for key in (*MODELS[name].metrics, "validation/total_loss"):
        assert measured.count(key) == 2, key
    losses = {key for key in measured if key.startswith("loss_") and key.rpartition("_")[0] not in measured}
    # A single loss is only written as the total.
    assert len(losses) > 1 or name == "classifier"
    assert {f"validation/{key}" for key in losses} <= set(measured)

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000001.pth")
    for file in ("model_final.pth", "model_final_ema.pth"):
        (tmp_path / "parts" / file).unlink()
    train(name, tmp_path / "parts", resume=True)
    for file in ("model_final.pth", "model_final_ema.pth"):
        whole, parts = (
            torch.load(tmp_path / folder / file, weights_only=True)["model"] for folder in ("whole", "parts")
        )
        assert all(value.equal(parts[key]) for key, value in whole.items())


# Statistics of batch norms remain those of the part.
NO_BATCH_NORM = {"cascade": ("MODEL.ROI_BOX_HEAD.NORM", ""), "upernet": ("MODEL.SEM_SEG_HEAD.NORM", "GN")}


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if name != "mask2former"])
def test_small_batches_give_the_step_of_the_large_one(name):
    """For Mask2Former, whose points are drawn at random, see test_accumulation.py."""
    cfg = MODELS[name].cfg(*MODELS[name].not_random, *NO_BATCH_NORM.get(name, ()))
    cfg.MODEL.AUXILIARY_HEAD.NORM = cfg.MODEL.SEM_SEG_HEAD.NORM
    images = inputs(name, (2, 2, 2, 2))
    before, whole, losses = step(cfg, [images])
    assert any((value - before[key]).norm() > 1e-3 for key, value in whole.items())
    _, parts, losses_of_parts = step(cfg, [images[:2], images[2:]])
    require_equal_steps(before, whole, parts)
    assert losses_of_parts == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("name", ["mask-rcnn", "cascade", "upernet", "mask2former"])
@pytest.mark.parametrize("targets", [(0, 0), (2, 0)])
def test_every_weight_takes_part_in_every_loss(name, targets):
    """Otherwise processes would wait for the gradients of one without targets."""
    model = build_model(MODELS[name].cfg()).train()
    with EventStorage():
        sum(model(inputs(name, targets)).values()).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not without
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(name, monkeypatch):
    compile_module = nn.Module.compile
    compiled = []

    def without_code(module, **options):
        compiled.append(module)
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", without_code)
    images = inputs(name, (2, 2))
    before, plain, losses = step(MODELS[name].cfg(*MODELS[name].not_random), [images])
    assert not compiled
    _, other, losses_of_other = step(MODELS[name].cfg(*MODELS[name].not_random, "MODEL.COMPILE", True), [images])
    assert compiled
    require_equal_steps(before, plain, other, tolerance=1e-2)
    assert losses_of_other == pytest.approx(losses, rel=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if name not in ("mask2former", "upernet")])
def test_augmentation_without_a_way_to_average_is_refused_before_the_training(name, tmp_path):
    kind = MODELS[name].cfg().MODEL.META_ARCHITECTURE
    with pytest.raises(ConfigError, match=f"TEST.AUG.ENABLED is True, but {kind} has no test-time augmentation"):
        Trainer(MODELS[name].cfg("TEST.AUG.ENABLED", True, "OUTPUT_DIR", tmp_path))
