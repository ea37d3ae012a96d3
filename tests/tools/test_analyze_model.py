"""tools/analyze_model.py: costs, receptive fields and other dilations of configs and published models."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dinat_backbone import create_classifier
from mask2former.analysis import DilationError, parse_dilations
from mask2former.checkpoint import Checkpointer
from mask2former.config import setup_cfg
from mask2former.engine import Trainer
from tests.conftest import config_path, load_script
from tests.tiny import TINY

script = load_script("tools/analyze_model.py")
TRAINED = [[1, 8, 1], [1, 4, 1, 4]]


def test_costs_of_a_published_model(tmp_path, capsys):
    assert script.main(["--model", "dinat_mini", "--json", str(tmp_path / "costs.json")]) == 0
    assert "dinat_mini: 20M and 2.7G; published are 20M parameters and 2.7G FLOPs\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["parameters"] == 19984174
    assert content["published"]["flops"] == "2.7G" and content["size"] == [224, 224]


def test_costs_of_a_config_with_changed_keys(tmp_path, capsys):
    words = ["--config-file", str(config_path("coco-panoptic")), "--size", "64", "96", *TINY]
    assert script.main([*words, "--json", str(tmp_path / "costs.json")]) == 0
    assert "published" not in json.loads((tmp_path / "costs.json").read_text())
    assert "deformable attention" in capsys.readouterr().out


def test_receptive_fields_as_picture_and_numbers(tmp_path, capsys):
    picture, numbers = tmp_path / "field.png", tmp_path / "field.json"
    words = ["--config-file", str(config_path("coco-panoptic")), "--size", "64", "96", *TINY]
    words += ["MODEL.DINAT.DILATIONS", "[[2],[1],[1],[1]]", "--receptive-field", str(picture), "--compare"]
    photograph = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)).save(photograph)
    assert script.main([*words, "--json", str(numbers), "--images", str(photograph)]) == 0
    assert Image.open(picture).size[0] > 800
    networks = json.loads(numbers.read_text())["networks"]
    assert [len(network["effective"]) for network in networks] == [4, 4, 0]
    first = [network["theoretical"][2] for network in networks]
    # At the first level: a kernel of 3 with and without dilation, and windows of 3, over cells that see 7 pixels.
    assert [(layer["dilation"], layer["extent"][0]) for layer in first] == [(2, 23), (1, 15), (1, 15)]
    assert all(0 < network["effective"][0]["area_above"]["0.01"] < 1 for network in networks[:2])
    assert "shifted windows (Swin)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("default", TRAINED),
        ("nat", [[1, 1, 1], [1, 1, 1, 1]]),
        ("2", [[1, 16, 1], [1, 8, 1, 8]]),
        ("6,3", [[1, 6, 1], [1, 3, 1, 3]]),
        ("[[1,2,3],[4,5,6,7]]", [[1, 2, 3], [4, 5, 6, 7]]),
    ],
)
def test_settings_of_dilations(text, expected):
    assert parse_dilations(text, TRAINED) == expected


@pytest.mark.parametrize("text", ["1,2,3", "0", "-1", "2.5", "[[1,2],[1]]", "nothing", "[2]", "[[1,2,3],[4,5,6,true]]"])
def test_wrong_settings_of_dilations(text):
    with pytest.raises(DilationError, match="expected default, nat, a factor such as 2, 2 numbers"):
        parse_dilations(text, TRAINED)


def test_a_checkpoint_runs_with_other_dilations(tmp_path):
    """Also with those that are too large for a map, which is then padded."""
    config_file = config_path("ade20k-semantic")
    torch.manual_seed(0)
    model = Trainer.build_model(setup_cfg(config_file, TINY))
    Checkpointer(model, str(tmp_path)).save("model")
    image = {"image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)}
    results = []
    for dilations in ("[[1],[1],[1],[1]]", "[[3],[2],[1],[1]]", "[[99],[50],[20],[10]]"):
        cfg = setup_cfg(config_file, [*TINY, "MODEL.DINAT.DILATIONS", dilations])
        changed = Trainer.build_model(cfg).eval()
        loader = Checkpointer(changed)
        loader.load(str(tmp_path / "model.pth"))
        assert loader.report is not None and loader.report.exact
        with torch.no_grad():
            results.append(changed([image])[0]["sem_seg"])
    assert all(result.shape == results[0].shape and result.isfinite().all() for result in results)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_a_classifier_runs_with_other_dilations(tmp_path):
    sizes = {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 1, 2, 2], "num_classes": 5}
    file = tmp_path / "model.pth"
    torch.save(create_classifier("dinat_mini", dilations=[[1, 2], [1], [1], [1]], **sizes).state_dict(), file)
    changed = create_classifier("dinat_mini", file, dilations=[[1, 40], [30], [1], [2]], **sizes)
    assert changed.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


class TestSweep:
    @pytest.fixture
    def words(self, tmp_path, monkeypatch) -> list[str]:
        """Command line of a sweep, whose evaluations only write what train_net.py would."""
        (tmp_path / "model.pth").write_text("weights")
        self.commands: list[list[str]] = []
        self.failing = ""

        def evaluate(command, check):
            self.commands.append(command)
            dilations = command[command.index("MODEL.DINAT.DILATIONS") + 1]
            folder = Path(command[command.index("OUTPUT_DIR") + 1]) / "inference"
            folder.mkdir(parents=True, exist_ok=True)
            metrics = {"set": {"sem_seg": {"mIoU": 10.0 + len(self.commands), "fwIoU": 1.0, "IoU-sky": 3.0}}}
            (folder / "metrics.json").write_text(json.dumps(metrics))
            return SimpleNamespace(returncode=int(dilations == self.failing))

        monkeypatch.setattr(script.subprocess, "run", evaluate)
        words = ["--config-file", str(config_path("ade20k-semantic")), "--output", str(tmp_path / "out")]
        return [*words, "MODEL.WEIGHTS", str(tmp_path / "model.pth"), "--sweep-dilations"]

    def test_table_chart_and_kept_results(self, words, tmp_path, capsys):
        assert script.main([*words, "default", "nat", "2", "14,7,3,1"]) == 0
        assert len(self.commands) == 4
        assert self.commands[1][2:4] == ["--eval-only", "--resume"]
        content = json.loads((tmp_path / "out" / "dilations.json").read_text())["evaluations"]
        assert [entry["metrics"] for entry in content] == [{"sem_seg mIoU": 11.0 + index} for index in range(4)]
        assert "| 14,7,3,1" in (tmp_path / "out" / "dilations.md").read_text()
        assert Image.open(tmp_path / "out" / "dilations.png").size[1] > 300
        # The same settings are kept, whatever their names; other weights are evaluated again.
        assert script.main([*words, "default", "1", "nat"]) == 0
        assert len(self.commands) == 4
        (tmp_path / "model.pth").write_text("other weights")
        assert script.main([*words, "nat"]) == 0
        assert len(self.commands) == 5

    def test_a_failed_evaluation_is_reported_and_repeated(self, words, tmp_path, capsys):
        self.failing = str([[1] * depth for depth in (3, 4, 18, 5)])
        assert script.main([*words, "nat", "default"]) == 1
        assert "exit status 1" in capsys.readouterr().out
        self.failing = ""
        assert script.main([*words, "nat", "default"]) == 0
        assert len(self.commands) == 3


@pytest.mark.slow
def test_a_sweep_evaluates(tmp_path, trees, deterministic, monkeypatch, capfd):
    """Real evaluations on miniature data, one with padded maps."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trees))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config, weights = str(config_path("ade20k-semantic")), str(tmp_path / "model.safetensors")
    deterministic.main(["--config-file", config, "--output", weights, *TINY])
    words = ["--config-file", config, "--output", str(tmp_path / "out"), *TINY, "MODEL.WEIGHTS", weights]
    assert script.main([*words, "--sweep-dilations", "default", "[[40],[1],[1],[1]]"]) == 0, capfd.readouterr().err
    content = json.loads((tmp_path / "out" / "dilations.json").read_text())["evaluations"]
    assert [entry["status"] for entry in content] == ["done", "done"]
    assert all(0 <= entry["metrics"]["sem_seg mIoU"] <= 100 for entry in content)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model", "dinat_huge"], 2, "--model dinat_huge: expected one of nat_mini, "),
        (["--model", "dinat_mini", "MODEL.DEVICE", "cpu"], 2, "KEY VALUE pairs need --config-file"),
        (["--model", "dinat_mini", "--size", "0", "3"], 2, "--size: expected two positive numbers"),
        (["--config-file", "x.yaml", "--weights", "w.pth"], 2, "--weights is for --model"),
        (["--config-file", "absent.yaml"], 1, "config file not found: absent.yaml"),
        (["--model", "coco-panoptic", "--sweep-dilations", "nat"], 1, "MODEL.WEIGHTS is empty"),
    ],
)
def test_wrong_calls_are_explained(capsys, words, status, message):
    with pytest.raises(SystemExit) as end:
        script.main(words)
    assert end.value.code == status
    assert message in capsys.readouterr().err
