import pytest
from detectron2.config import get_cfg

from mask2former.config import add_maskformer2_config

from ..conftest import load_script

SHAPES = {"train": 10, "val": 3, "size": 64, "seed": 3}


@pytest.fixture(scope="session")
def prepare_shapes():
    return load_script("datasets/prepare_shapes.py")


@pytest.fixture(scope="session")
def shapes_root(prepare_shapes, tmp_path_factory):
    """A folder with a small shapes data set."""
    root = tmp_path_factory.mktemp("datasets")
    prepare_shapes.prepare(root, **SHAPES)
    return root


@pytest.fixture
def shapes(shapes_root, monkeypatch):
    """The same, where DETECTRON2_DATASETS points."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))
    return shapes_root / "shapes"


@pytest.fixture
def cfg():
    """A config for shapes of 64 x 64 pixels, loaded in this process."""
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = 48
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 64, 90)
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.SIZE_DIVISIBILITY = 64
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [50, 60]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg
