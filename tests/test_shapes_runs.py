"""Proof that detectors and UPerNet learn: training from scratch on drawn shapes, in a process per core."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT, load_script

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder for DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("drawn")
    load_script("datasets/prepare_shapes.py").prepare(root)
    return root


@pytest.mark.parametrize(
    ("config", "lowest"),
    [
        ("detection/dinat/maskrcnn_dinat_pico_shapes.yaml", {("bbox", "AP"): 40, ("segm", "AP"): 35}),
        ("semantic-segmentation/dinat/upernet_dinat_pico_shapes.yaml", {("sem_seg", "mIoU"): 75}),
    ],
)
def test_shapes_are_learnt_from_scratch(config, lowest, drawn, tmp_path, monkeypatch):
    """Each takes about five minutes on two cores."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(drawn))
    words = ["--config-file", f"configs/shapes/{config}", "MODEL.DEVICE", "cpu", "SEED", "1", "OUTPUT_DIR", tmp_path]
    subprocess.run([sys.executable, "-W", "ignore", "train_net.py", *map(str, words)], cwd=ROOT, check=True)
    (found,) = json.loads((tmp_path / "inference" / "metrics.json").read_text()).values()
    reached = {(task, name): found[task][name] for task, name in lowest}
    assert all(reached[key] >= value for key, value in lowest.items()), reached
