import numpy as np
import pytest
import torch
from deterministic_weights import draw, image, load_weights, save, weight
from safetensors.torch import load_file
from torch import nn


def test_numbers_are_the_published_stream():
    assert draw("golden", (3,)) == pytest.approx([-0.02161467, 0.11103647, 0.72605354], abs=1e-7)
    picture = image("golden", 40, 50)
    assert picture.shape == (3, 40, 50) and picture.dtype == np.uint8
    assert picture[:, 0, 0].tolist() == [170, 19, 113] and picture.astype(int).sum() == 736776


@pytest.mark.parametrize(
    ("name", "shape", "scale", "offset"),
    [
        ("a.rpb", (4, 5, 5), 1, 0),
        ("a.sampling_offsets.bias", (64,), 2, 0),
        ("norm.weight", (64,), 0.1, 1),
        ("norm.bias", (64,), 0.1, 0),
        ("linear.weight", (8, 16), 1 / 4, 0),
        ("conv.weight", (4, 4, 3, 3), 1 / 6, 0),
    ],
)
def test_weights_follow_their_names(name, shape, scale, offset):
    value = weight(name, shape)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, offset + scale * draw(name, shape), rtol=1e-6, atol=1e-7)


def test_models_are_filled_by_name_and_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_buffer("kept", torch.full((2,), 7.0))
    load_weights(model, skip=("kept",))
    path = tmp_path / "new" / "model.safetensors"
    save(model, path)
    saved = load_file(path)
    assert saved.keys() == model.state_dict().keys()
    np.testing.assert_array_equal(saved["0.weight"].numpy(), weight("0.weight", (4, 3)))
    np.testing.assert_array_equal(saved["1.weight"].numpy(), weight("1.weight", (4,)))
    assert saved["kept"].tolist() == [7, 7]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
