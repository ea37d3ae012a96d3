"""With MODEL.COMPILE, backbone and head become one graph each, in prediction and in training."""

import pytest
import torch
from detectron2.modeling import build_model

from .conftest import example


@pytest.fixture
def compiled(train_cfg, monkeypatch):
    """A compiled model, with a backend that builds graphs without generating code."""
    compile_module = torch.nn.Module.compile

    def without_code(module, **options):
        compile_module(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_code)
    train_cfg.MODEL.COMPILE = True
    train_cfg.MODEL.DINAT.DROP_PATH_RATE = 0.0  # stochastic depth would draw other numbers
    yield build_model(train_cfg)
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_model_predicts_and_learns_the_same(compiled, train_cfg):
    train_cfg.MODEL.COMPILE = False
    plain = build_model(train_cfg)
    plain.load_state_dict(compiled.state_dict())
    inputs = [example([0, 1, 2])]
    with torch.no_grad():
        for model in (plain, compiled):
            model.eval()
        expected, got = (model.predict(inputs)[0] for model in (plain, compiled))
    torch.testing.assert_close(got.masks, expected.masks, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    losses = []
    for model in (plain, compiled):
        model.train()
        torch.manual_seed(0)
        total = sum(model(inputs).values())
        total.backward()
        losses.append(total.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)
    gradients = ({n: p.grad for n, p in model.named_parameters()} for model in (plain, compiled))
    for (name, a), (_, b) in zip(*(g.items() for g in gradients), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-2, atol=1e-4 * max(1.0, float(a.abs().max())), msg=name)
