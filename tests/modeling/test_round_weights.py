"""Weights that are kept in bfloat16 for predictions in bfloat16."""

import dataclasses

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mask2former import Predictor, setup_cfg
from mask2former.data.datasets import dataset_metadata
from mask2former.modeling.meta_arch.base import LossesOrResults, round_weights
from tests.kinds import KINDS


def build(kind, amp: bool) -> nn.Module:
    cfg = setup_cfg(kind.config, [*kind.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "TEST.AMP", str(amp)])
    for name in cfg.DATASETS.TRAIN:
        dataset_metadata(name)  # it says which classes are things
    torch.manual_seed(0)
    return build_model(cfg).eval()


def raw_output(model, size=(64, 96)):
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # in inference mode a dispatch mode sees other operators
        (output,) = model.predict([{"image": image}])
    return output


def tensors(output):
    """Tensors of a raw output; one of a detector holds Instances."""
    values = vars(output).values() if dataclasses.is_dataclass(output) else output
    fields = [x.get_fields().values() if hasattr(x, "get_fields") else [x] for x in values]
    return [x for part in fields for x in part if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_outputs_stay_equal_to_the_last_bit(kind):
    model = build(kind, amp=True)
    expected = tensors(raw_output(model))
    before = sum(parameter.nbytes for parameter in model.parameters())
    round_weights(model)
    after = sum(parameter.nbytes for parameter in model.parameters())
    got = tensors(raw_output(model))
    assert len(expected) == len(got) >= 1
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert after < 0.8 * before


class CastsOfWeights(TorchDispatchMode):
    """Counts the casts of parameters, or of parts of them, to bfloat16."""

    def __init__(self, model):
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16:
            self.count += args[0].untyped_storage().data_ptr() in self.weights
        return result


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_prediction_casts_no_weights(kind):
    model = build(kind, amp=True)
    with CastsOfWeights(model) as before:
        raw_output(model)
    round_weights(model)
    with CastsOfWeights(model) as after:
        raw_output(model)
    assert before.count > 20 and after.count == 0


def test_norms_inside_layers_and_the_pixel_decoder_stay_in_float32():
    model = build(KINDS["mask2former"], amp=True)
    round_weights(model)
    assert all(p.dtype == torch.float32 for p in model.sem_seg_head.pixel_decoder.parameters())
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.Embedding):
            assert module.weight.dtype == torch.float32, name
    assert model.sem_seg_head.predictor.transformer_self_attention_layers[0].self_attn.in_proj_weight.dtype == (
        torch.bfloat16
    )


def test_a_norm_of_a_convolution_stays_in_float32():
    """Detectron2's convolutions have a norm inside."""

    class Model(LossesOrResults):
        bfloat16_inference = True

        def __init__(self):
            super().__init__()
            self.conv = Conv2d(3, 4, 1, norm=nn.GroupNorm(2, 4))

    model = Model()
    round_weights(model)
    assert model.conv.weight.dtype == torch.bfloat16 and model.conv.norm.weight.dtype == torch.float32


class Foreign(nn.Module):
    """A part of somebody else's, which computes in float32."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


def test_parts_from_other_packages_may_compute_in_float32():
    class Model(LossesOrResults):
        bfloat16_inference = True

        def __init__(self):
            super().__init__()
            self.backbone, self.head = Foreign(), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.backbone(x))

    model = Model()
    round_weights(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(1, 4)).dtype == torch.bfloat16
    assert model.head.weight.dtype == torch.bfloat16 and model.backbone.layer.weight.dtype == torch.float32


def test_a_model_that_predicts_in_float32_is_left_alone():
    model = build(KINDS["classifier"], amp=False)
    round_weights(model)
    round_weights(nn.Linear(2, 2))  # not one of our models
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("amp", [False, True])
def test_a_predictor_rounds_after_loading(amp):
    kind = KINDS["classifier"]
    predictor = Predictor.from_config(kind.config, opts=[*kind.opts, "MODEL.WEIGHTS", "", "TEST.AMP", str(amp)])
    assert predictor.model.head.weight.dtype == (torch.bfloat16 if amp else torch.float32)
