import numpy as np
import pytest
from PIL import Image

from examples import results
from mask2former.tasks import ARCHITECTURES, TASKS
from tests.kinds import KINDS


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_has_its_lines(name, weights_of, tmp_path, capsys, deterministic, monkeypatch):
    kind, opts = KINDS[name], weights_of(name)
    weights = opts[opts.index("MODEL.WEIGHTS") + 1]
    monkeypatch.setattr("mask2former.prediction.predictor._INSTANCE_THRESHOLD", 0.0)
    picture = deterministic.image("example", 48, 80).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "photo.png")
    keys = ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0"]
    results.main([str(kind.config), weights, str(tmp_path / "photo.png"), *opts, *keys])
    first, *lines = capsys.readouterr().out.splitlines()
    assert lines and all("%" in line for line in lines)
    assert first == f"{kind.task}, 80 x 48 pixels"
    assert all(("box [" in line) == ARCHITECTURES[kind.architecture].boxes for line in lines)
    assert all(("of the pixels" in line) == (TASKS[kind.task].name == "semantic") for line in lines)


def test_a_wrong_command_line_is_told_the_right_one():
    with pytest.raises(SystemExit, match="CONFIG WEIGHTS PHOTO"):
        results.main(["config.yaml"])
