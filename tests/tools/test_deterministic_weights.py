import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.conftest import config_path
from tests.tiny import TINY


def test_numbers_are_the_published_stream(deterministic):
    assert deterministic.draw("golden", (3,)) == pytest.approx([-0.02161467, 0.11103647, 0.72605354], abs=1e-7)
    picture = deterministic.image("golden", 40, 50)
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
def test_weights_follow_their_names(deterministic, name, shape, scale, offset):
    value = deterministic.weight(name, shape)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, offset + scale * deterministic.draw(name, shape), rtol=1e-6, atol=1e-7)


def test_variances_are_positive(deterministic):
    value = deterministic.weight("bn.running_var", (64,))
    np.testing.assert_allclose(value, 1 + 0.1 * np.abs(deterministic.draw("bn.running_var", (64,))), rtol=1e-6)


def test_models_are_filled_by_name_and_saved(deterministic, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_buffer("kept", torch.full((2,), 7.0))
    model.register_buffer("counter", torch.tensor(3))
    deterministic.load_weights(model, skip=("kept",))
    path = tmp_path / "new" / "model.safetensors"
    deterministic.save(model, path)
    saved = load_file(path)
    assert saved.keys() == model.state_dict().keys()
    np.testing.assert_array_equal(saved["0.weight"].numpy(), deterministic.weight("0.weight", (4, 3)))
    np.testing.assert_array_equal(saved["1.weight"].numpy(), deterministic.weight("1.weight", (4,)))
    assert saved["kept"].tolist() == [7, 7] and saved["counter"] == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_command_writes_a_checkpoint_of_the_whole_model(deterministic, tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    arguments = ["--config-file", str(config_path("coco-panoptic")), "--output", str(path), "--class-embed-scale", "6"]
    assert deterministic.main([*arguments, *TINY]) == 0
    assert "million parameters" in capsys.readouterr().out
    saved = load_file(path)
    name = deterministic.CLASS_EMBED
    np.testing.assert_allclose(saved[name].numpy(), 6 * deterministic.weight(name, saved[name].shape), rtol=1e-6)
    rpb = "backbone.levels.0.blocks.0.attn.rpb"
    np.testing.assert_array_equal(saved[rpb].numpy(), deterministic.weight(rpb, (1, 5, 5)))
    assert saved["criterion.empty_weight"][-1] == pytest.approx(0.1), "follows from the config"


def test_wrong_names_are_reported(deterministic, tmp_path, capsys):
    arguments = ["--config-file", str(config_path("coco-panoptic")), "--output", str(tmp_path / "x.safetensors")]
    with pytest.raises(SystemExit, match="2"):
        deterministic.main([*arguments, "MODEL.NONSENSE", "1"])
    assert "MODEL.NONSENSE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        deterministic.main([*arguments[:3], str(tmp_path / "x.pth")])
