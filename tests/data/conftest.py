import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from mask2former.config import add_maskformer2_config
from mask2former.data.datasets import dataset_metadata

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


def check_cityscapes_dicts(name):
    """Compare the dicts of a Cityscapes data set with those of Detectron2's own loaders."""
    from detectron2.data.datasets import cityscapes as theirs
    from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic

    metadata = dataset_metadata(name)
    if metadata.get("panoptic_json"):
        paths = metadata.image_root, metadata.panoptic_root, metadata.panoptic_json
        expected = load_cityscapes_panoptic(*paths, metadata.as_dict())
    elif metadata.evaluator_type == "cityscapes_sem_seg":
        expected = theirs.load_cityscapes_semantic(metadata.image_dir, metadata.gt_dir)
    else:
        try:
            expected = theirs.load_cityscapes_instances(metadata.image_dir, metadata.gt_dir)
        except ModuleNotFoundError as error:
            pytest.skip(f"this Detectron2 can't read Cityscapes: {error}")
    assert DatasetCatalog.get(name) == sorted(expected, key=lambda record: record["file_name"])


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
