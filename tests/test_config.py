"""Contracts: the config keys and the eight published settings."""

from importlib.metadata import EntryPoint

import pytest
from detectron2.config import CfgNode

from dinat_backbone import add_dinat_config
from mask2former.config import READ_BY, ConfigError, flatten, setup_cfg
from mask2former.model_zoo import SETTINGS
from mask2former.tasks import ARCHITECTURES

from .conftest import ROOT, config_path, golden

# Keys that the published settings do not know; their defaults reproduce the published runs.
OWN_KEYS = {
    "DATASETS.CUSTOM": [],
    "INPUT.CROP.SHORT_EDGES": [400, 500, 600],
    "INPUT.DROP_EMPTY_TARGETS": False,
    "INPUT.RESIZE_WITH": "pillow",
    "INPUT.VALUE_RANGE": [],
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": 0.1,
    "MODEL.CLASSIFIER.NUM_CLASSES": 1000,
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.EPOCHS": 0,
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.WEIGHT_DECAY_EXEMPT": [],
    "SOLVER.EMA.DECAY": 0.9999,
    "SOLVER.EMA.ENABLED": False,
    "SOLVER.LR_REFERENCE_BATCH": 0,
    "SOLVER.WEIGHT_DECAY_BATCH_NORM": None,
    "SOLVER.WEIGHT_DECAY_RPB": None,
    "MODEL.DINAT.ATTENTION_BACKEND": "auto",
    "MODEL.DINAT.KERNEL_SIZES": [],
    "MODEL.DINAT.PATCH_SIZE": 16,
    "MODEL.DINAT.IMAGE_SIZE": 224,
    "MODEL.DINAT.LAYER_SCALE": None,
    "MODEL.DINAT.REL_POS_BIAS": True,
    "MODEL.DINAT.USE_CHECKPOINT": False,
    "MODEL.MASK_FORMER.IGNORE_VOID": False,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND": "auto",
    # Read by UPerNet alone.
    "MODEL.SEM_SEG_HEAD.DROPOUT": 0.1,
    "MODEL.SEM_SEG_HEAD.POOL_SIZES": [1, 2, 3, 6],
    "MODEL.COMPILE": False,
    "MODEL.FPN.BOTTOM_UP": "D2DiNAT",
    "MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS": [1.0, 0.5, 0.25],
    "TEST.AMP": False,
    "TEST.BEST_METRIC": "",
    "TEST.IMS_PER_BATCH": 1,
    "TEST.VALIDATION_IMAGES": 100,
    "TEST.VALIDATION_LOSS": False,
}
# Where a resolved setting differs from the published one, and why. (Nothing does.)
DEVIATIONS: dict[str, str] = {}


def read(path, *opts: str) -> CfgNode:
    return setup_cfg(path, opts)


def flat(node: CfgNode, prefix: str = "") -> dict:
    values = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = list(value) if isinstance(value, tuple) else value
    return values


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_resolves_to_the_published_one(setting):
    ours = flat(read(config_path(setting)))
    published = golden("config", setting)
    different = {key: (ours.get(key), value) for key, value in published.items() if ours.get(key) != value}
    assert {key: pair for key, pair in different.items() if key not in DEVIATIONS} == {}
    assert {key: ours[key] for key in OWN_KEYS} == OWN_KEYS
    own = "MODEL.DINAT.", "MODEL.MASK_FORMER.", "MODEL.SEM_SEG_HEAD."
    assert {key for key in ours if key.startswith(own) and key not in published} <= set(OWN_KEYS)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_file_is_read_with_safe_yaml_and_known_keys(path):
    assert read(path).VERSION == 2


def test_overrides_come_last():
    cfg = read(config_path("coco-panoptic"), "SOLVER.MAX_ITER", "7", "DATASETS.TEST", "('a', 'b')")
    assert cfg.SOLVER.MAX_ITER == 7
    assert cfg.DATASETS.TEST == ("a", "b")
    assert not cfg.is_frozen()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {MASK_FORMER: {NHEAD: 8}}", r"MODEL\.MASK_FORMER\.NHEAD.*did you mean MODEL\.MASK_FORMER\.NHEADS"),
        ("SOLVER: {MAX_ITER: [1, 2]}", "MAX_ITER"),
        ("A: !!python/object/apply:os.getcwd []", "only safe YAML"),
        ("_BASE_: nowhere.yaml", r"not found: .*nowhere\.yaml \(a _BASE_ of"),
        ("{", "not a YAML config file"),
        ("- 1", "not a YAML config file|expected a mapping"),
        ("VERSION: 1", "VERSION is 1, expected 2"),
    ],
)
def test_bad_file_is_named_with_what_was_expected(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read(path)
    assert "bad.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITERS", "1"], r"SOLVER\.MAX_ITERS \(did you mean SOLVER\.MAX_ITER\?\)"),
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER many: expected a whole number"),
        (["SOLVER.MAX_ITER=5", "x"], r"SOLVER\.MAX_ITER=5: write KEY VALUE"),
        (["SOLVER.MAX_ITER=5"], "SOLVER.MAX_ITER=5"),
        (["SOLVER.BASE_LR", "nan"], "SOLVER.BASE_LR nan: expected a number"),
        (["SOLVER", "x"], "unknown config key SOLVER"),
    ],
)
def test_bad_override_is_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        read(config_path("coco-panoptic"), *opts)


CIRCLES = {
    "itself": {"a.yaml": "_BASE_: a.yaml"},
    "itself by another name": {"a.yaml": "_BASE_: ./x/../a.yaml", "x/b.yaml": "{}"},
    "two": {"a.yaml": "_BASE_: b.yaml", "b.yaml": "_BASE_: a.yaml"},
    "list": {"a.yaml": "_BASE_: [c.yaml, b.yaml]", "b.yaml": "_BASE_: [c.yaml, a.yaml]", "c.yaml": "VERSION: 2"},
    "behind": {"a.yaml": "_BASE_: b.yaml", "b.yaml": "_BASE_: c.yaml", "c.yaml": "_BASE_: b.yaml"},
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_files_that_are_based_on_themselves_are_one_line(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: _BASE_ goes in a circle: .* -> ") as error:
        read(tmp_path / "a.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_is_no_config(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: .")
    for path in (tmp_path, tmp_path / "a.yaml"):
        with pytest.raises(ConfigError, match=r"not a YAML config file.*: Is a directory"):
            read(path)


def test_a_file_may_be_a_base_twice_and_the_last_value_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "common.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}")
    (tmp_path / "left.yaml").write_text("_BASE_: ~/common.yaml\nSOLVER: {BASE_LR: 0.25}")
    (tmp_path / "right.yaml").write_text("_BASE_: common.yaml\nSOLVER: {GAMMA: 0.75}\nMODEL:\n")
    (tmp_path / "top.yaml").write_text("_BASE_: [left.yaml, right.yaml]\nSOLVER:\n  # nothing\nTEST: {AMP: true}")
    solver = read("~/top.yaml").SOLVER
    assert (solver.BASE_LR, solver.GAMMA, solver.MAX_ITER) == (0.5, 0.75, 7)


def test_the_file_of_a_wrong_value_is_named_and_not_the_one_that_is_based_on_it(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: soon}")
    (tmp_path / "top.yaml").write_text("_BASE_: base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml: SOLVER\.MAX_ITER is soon, expected a whole number"):
        read(tmp_path / "top.yaml")
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITERS: 3}")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown config key:\n  SOLVER\.MAX_ITERS"):
        read(tmp_path / "top.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n\n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"SOLVER:\n  BASE_LR: 0.1\nSOLVER:\n  MAX_ITER: 5\n", "line 3: SOLVER is given twice"),
        (b"SOLVER: {MAX_ITER: 5, GAMMA: 0.1, MAX_ITER: 5}", "line 1: MAX_ITER is given twice"),
        (b"_BASE_: x.yaml\n_BASE_: y.yaml\n", "line 2: _BASE_ is given twice"),
        (b"SOLVER:\n\tMAX_ITER: 5\n", "line 2: .*indent with spaces"),
        (b"OUTPUT_DIR: Stra\xdfe", "save it as UTF-8"),
        ("VERSION: 2".encode("utf-16"), "save it as UTF-8"),
        (b"MODEL: x", r"MODEL is x, expected a section"),
        (b"MODEL: [1]", r"MODEL is \[1\], expected a section"),
        (b"SOLVER: {MAX_ITER: {A: 1}}", r"SOLVER\.MAX_ITER is \{'A': 1\}, expected a whole number"),
        (b"SOLVER.MAX_ITER: 5", r"SOLVER\.MAX_ITER: write one section per part of the key"),
        (b"solver: {max_iter: 5}", r"solver\.max_iter \(did you mean SOLVER\.MAX_ITER\?\)"),
        (b"1: 2", "the key 1 is not a text"),
        (b"yes: 2", "the key True is not a text"),
        (b"[1, 2]", "expected a mapping of keys, found list"),
        (b"text", "expected a mapping of keys, found str"),
        (b"A: &a [*a]", "not a YAML config file: line 1: found unconstructable recursive node"),
        (b"A: &a {B: *a}", "not a YAML config file: line 1: found unconstructable recursive node"),
        (b"VERSION: 2\n---\nVERSION: 2\n", "line 2: but found another document"),
        (b"A: *missing", "line 1: found undefined alias"),
        (b"\x00", "not a YAML config file"),
        (b"A: !!python/name:os.system", "only safe YAML"),
        (b"A: !own 1", "only safe YAML"),
        (b"_BASE_:", "_BASE_ is None, expected the name of a file"),
        (b"_BASE_: 5", "_BASE_ is 5, expected the name of a file"),
        (b"_BASE_: [a.yaml, 5]", r"_BASE_ is \['a\.yaml', 5\], expected the name of a file"),
        (b"_BASE_: {A: 1}", "expected the name of a file"),
        (b"_BASE_: detectron2://Base.yaml", "download it first"),
        (b"SOLVER: {BASE_LR: .nan}", r"SOLVER\.BASE_LR is nan, expected a number"),
        (b"SOLVER: {BASE_LR: true}", r"SOLVER\.BASE_LR is True, expected a number"),
        (b"SOLVER: {MAX_ITER: 1.5}", r"SOLVER\.MAX_ITER is 1\.5, expected a whole number"),
        (b"SOLVER: {MAX_ITER: 12:30}", r"SOLVER\.MAX_ITER is 12:30, expected a whole number"),
        (b"SOLVER: {MAX_ITER: 010}", r"SOLVER\.MAX_ITER is 010, expected a whole number"),
        (b"SOLVER: {MAX_ITER: }", r"SOLVER\.MAX_ITER is None, expected a whole number"),
        (b"SOLVER: {AMP: {ENABLED: 2}}", r"SOLVER\.AMP\.ENABLED is 2, expected True or False"),
        (b"SOLVER: {STEPS: [10, x]}", r"SOLVER\.STEPS is \[10, 'x'\], expected a list such as \(30000,\)"),
        (b"SOLVER: {STEPS: soon}", r"SOLVER\.STEPS is soon, expected a list"),
        (b"OUTPUT_DIR: 2024", r"OUTPUT_DIR is 2024, expected a text; write it in quotes"),
        (b"OUTPUT_DIR:", r"OUTPUT_DIR is None, expected a text, such as \./output"),
        (b"OUTPUT_DIR: [a]", r"OUTPUT_DIR is \['a'\], expected a text"),
        (b"DATASETS: {TRAIN: 5}", r"DATASETS\.TRAIN is 5, expected a list of names"),
        (b"DATASETS: {TRAIN: [a, 5]}", r"DATASETS\.TRAIN is \['a', 5\], expected a list of names"),
        (b"DATASETS: {TEST: ''}", r"DATASETS\.TEST is '', expected a list of names.*\(\) for none"),
        (b"DATASETS: {TEST: }", r"DATASETS\.TEST is None, expected a list of names"),
        (b"DATASETS: {CUSTOM: mine}", r"DATASETS\.CUSTOM is mine, expected a list"),
    ],
)  # fmt: skip
def test_faults_of_a_file_are_one_line_with_file_and_key(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"bad\.yaml: (unknown|{message}|.*{message})") as error:
        read(path)
    assert "unknown config key" in str(error.value) or len(str(error.value).splitlines()) == 1


MEANT = [
    ("SOLVER.STEPS", "[10, 20]", (10, 20)),
    ("SOLVER.STEPS", "(10, 20)", (10, 20)),
    ("SOLVER.STEPS", "(1e1, 20.0)", (10, 20)),
    ("SOLVER.STEPS", "10", (10,)),
    ("SOLVER.STEPS", "()", ()),
    ("SOLVER.STEPS", "[]", ()),
    ("SOLVER.BASE_LR", "1e-4", 0.0001),
    ("SOLVER.BASE_LR", "1.e-4", 0.0001),
    ("SOLVER.BASE_LR", "1", 1.0),
    ("SOLVER.MAX_ITER", "1e3", 1000),
    ("SOLVER.MAX_ITER", "1_000", 1000),
    ("SOLVER.MAX_ITER", "8.0", 8),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", ".inf", float("inf")),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "2", 2.0),
    ("SOLVER.AMP.ENABLED", "yes", True),
    ("SOLVER.AMP.ENABLED", "true", True),
    ("SOLVER.AMP.ENABLED", "'False'", False),
    ("SOLVER.AMP.ENABLED", "off", False),
    ("SOLVER.AMP.ENABLED", "1", True),
    ("SOLVER.WEIGHT_DECAY_RPB", "1e-3", 0.001),
    ("SOLVER.WEIGHT_DECAY_RPB", "null", None),
    ("SOLVER.WEIGHT_DECAY_RPB", "None", None),
    ("DATASETS.TRAIN", "mine_train", ("mine_train",)),
    ("DATASETS.TRAIN", "a, b", ("a", "b")),
    ("DATASETS.TRAIN", "[a, b]", ("a", "b")),
    ("DATASETS.TRAIN", "('a',)", ("a",)),
    ("DATASETS.TRAIN", "()", ()),
    ("MODEL.WEIGHTS", "None", ""),
    ("MODEL.WEIGHTS", "null", ""),
    ("MODEL.WEIGHTS", "''", ""),
    ("MODEL.WEIGHTS", "a b.pth", "a b.pth"),
    ("OUTPUT_DIR", "'2024'", "2024"),
    ("OUTPUT_DIR", "2024-01-02", "2024-01-02"),
    ("OUTPUT_DIR", "12:30", "12:30"),
    ("INPUT.CROP.SIZE", "[512, 1024]", [512, 1024]),
    ("MODEL.PIXEL_MEAN", "(1, 2.5, 3)", [1, 2.5, 3]),
    ("MODEL.DINAT.DILATIONS", "[[1], [1, 2]]", [[1], [1, 2]]),
    ("MODEL.DINAT.KERNEL_SIZES", "[7, 7]", [7, 7]),
]


@pytest.mark.parametrize("place", ["file", "command line"])
@pytest.mark.parametrize(("key", "text", "expected"), MEANT, ids=[f"{key} {text}" for key, text, _ in MEANT])
def test_what_people_write_means_what_is_meant(tmp_path, place, key, text, expected):
    path = tmp_path / "a.yaml"
    *sections, name = key.split(".")
    lines = [f"{'  ' * level}{section}:" for level, section in enumerate(sections)]
    path.write_text("\n".join([*lines, f"{'  ' * len(sections)}{name}: {text}"]) if place == "file" else "VERSION: 2")
    found = read(path, *([] if place == "file" else [key, text]))
    for part in key.split("."):
        found = found[part]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["2024", "1.10", "007", "True", "None", "1e3"])
def test_a_text_on_the_command_line_stays_as_it_is(tmp_path, text):
    cfg = read(config_path("coco-panoptic"), "OUTPUT_DIR", text)
    assert text == cfg.OUTPUT_DIR


def test_values_from_python_need_not_be_texts(tmp_path):
    opts = ["SOLVER.MAX_ITER", 7, "DATASETS.TEST", ["a"], "SOLVER.AMP.ENABLED", True, "OUTPUT_DIR", tmp_path]
    cfg = setup_cfg(config_path("coco-panoptic"), opts)
    assert (cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST, cfg.SOLVER.AMP.ENABLED) == (7, ("a",), True)
    assert str(tmp_path) == cfg.OUTPUT_DIR


def test_tuples_that_older_programs_wrote_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("DATASETS:\n  TRAIN: !!python/tuple [a]\n  TEST: !!python/tuple\n  - b\n")
    assert read(path).DATASETS.TRAIN == ("a",)
    assert read(path).DATASETS.TEST == ("b",)


def test_a_config_that_was_written_is_read_back(tmp_path):
    cfg = read(config_path("coco-panoptic"), "SOLVER.WEIGHT_DECAY_RPB", "0.1", "SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert read(tmp_path / "config.yaml") == cfg


def test_the_home_folder_in_paths_that_no_shell_has_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    path = tmp_path / "a.yaml"
    path.write_text("MODEL: {WEIGHTS: ~/a.pth}\nOUTPUT_DIR: '~'")
    cfg = read(path)
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == ("/home/somebody/a.pth", "/home/somebody")
    assert read(path, "OUTPUT_DIR", "~/b").OUTPUT_DIR == "/home/somebody/b"


def test_missing_file():
    with pytest.raises(ConfigError, match=r"config file not found: no/such\.yaml"):
        read("no/such.yaml")


def test_keys_of_a_backbone_come_with_its_package(monkeypatch):
    path = config_path("coco-panoptic")
    with pytest.raises(ConfigError, match=r"(?s)MODEL\.DINAT\.EMBED_DIM.*'mask2former\.config': is it installed"):
        setup_cfg(path, extend=())
    assert setup_cfg(path, extend=[add_dinat_config]) == setup_cfg(path)
    broken = EntryPoint("broken", "dinat_backbone:nothing", "mask2former.config")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [broken])
    with pytest.raises(ConfigError, match=r"'broken' \(dinat_backbone:nothing\) can't be loaded"):
        setup_cfg(path)


def test_readme_has_the_published_numbers():
    readme = (ROOT / "README.md").read_text()
    for setting in SETTINGS.values():
        numbers = ", ".join(f"{metric} {value}" for metric, value in setting.published.items())
        folder = f"`{setting.dataset}/{setting.task}-segmentation` (`{setting.schedule}`)"
        scales = " (ms)" if setting.multi_scale else ""
        assert f"| {folder} | {numbers}{scales} | `{setting.checkpoint}` |" in readme


def test_architectures_of_keys_exist_and_their_keys_too():
    known = flatten(setup_cfg(config_path("coco-panoptic")))
    assert {name for readers in READ_BY.values() for name in readers} <= set(ARCHITECTURES)
    assert all(any(f"{key}.".startswith(f"{section}.") for key in known) for section in READ_BY)


def warnings_of(monkeypatch, config_file, *opts):
    found = []
    monkeypatch.setattr("mask2former.config._warn_once", found.append)
    setup_cfg(config_file, opts)
    return [message.split(" has no effect")[0] for message in found]


@pytest.mark.parametrize(
    ("config", "key", "value", "read"),
    [
        ("coco/detection/nat/nat_mini_maskrcnn.yaml", "MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE", "[512,512]", False),
        ("coco/detection/nat/nat_mini_maskrcnn.yaml", "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.5", False),
        ("coco/detection/nat/nat_mini_maskrcnn.yaml", "MODEL.RPN.NMS_THRESH", "0.5", True),
        ("ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml", "MODEL.SEM_SEG_HEAD.MASK_DIM", "7", False),
        ("ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml", "MODEL.SEM_SEG_HEAD.POOL_SIZES", "[1]", True),
        ("ade20k/semantic-segmentation/dinat/upernet_dinat_mini.yaml", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "7", True),
        ("imagenet/classification/nat/nat_mini.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", False),
        ("imagenet/classification/nat/nat_mini.yaml", "INPUT.CLASSIFICATION.SIZE", "64", True),
        ("shapes/panoptic-segmentation/dinat/maskformer2_dinat_pico_shapes.yaml", "MODEL.CLASSIFIER.LABEL_SMOOTHING",
         "0.5", False),
    ],
)  # fmt: skip
def test_a_key_that_the_model_does_not_read_is_named(config, key, value, read, tmp_path, monkeypatch):
    file = ROOT / "configs" / config
    assert warnings_of(monkeypatch, file, key, value) == ([] if read else [key])
    # The same in a file of one's own; what a run records is not the user's choice.
    *sections, name = key.split(".")
    text = f"_BASE_: {file}\n" + "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(sections))
    own, record = tmp_path / "own.yaml", tmp_path / "config.yaml"
    own.write_text(f"{text}{'  ' * len(sections)}{name}: {value}\n")
    assert warnings_of(monkeypatch, own) == ([] if read else [key])
    record.write_text(setup_cfg(own).dump())
    assert warnings_of(monkeypatch, record) == []


def test_no_config_of_the_project_has_such_keys(monkeypatch):
    # One of each folder; they differ in the backbone.
    files = {file.parent: file for file in (ROOT / "configs").rglob("*.yaml") if "_base_" not in file.parts}
    assert not [key for file in files.values() for key in warnings_of(monkeypatch, file)]
