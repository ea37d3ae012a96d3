"""Contracts: the config keys and the eight published settings."""

from importlib.metadata import EntryPoint

import pytest
from detectron2.config import CfgNode

from dinat_backbone import add_dinat_config
from mask2former.config import ConfigError, setup_cfg
from mask2former.model_zoo import SETTINGS

from .conftest import ROOT, config_path, golden

# Keys that the published settings do not know; their defaults reproduce the published runs.
OWN_KEYS = {
    "DATASETS.CUSTOM": [],
    "INPUT.DROP_EMPTY_TARGETS": False,
    "INPUT.VALUE_RANGE": [],
    "SOLVER.ACCUMULATE_STEPS": 1,
    "SOLVER.EMA.DECAY": 0.9999,
    "SOLVER.EMA.ENABLED": False,
    "SOLVER.LR_REFERENCE_BATCH": 0,
    "SOLVER.WEIGHT_DECAY_RPB": None,
    "MODEL.DINAT.ATTENTION_BACKEND": "auto",
    "MODEL.DINAT.KERNEL_SIZES": [],
    "MODEL.DINAT.LAYER_SCALE": None,
    "MODEL.DINAT.REL_POS_BIAS": True,
    "MODEL.DINAT.USE_CHECKPOINT": False,
    "MODEL.MASK_FORMER.IGNORE_VOID": False,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_ATTENTION_BACKEND": "auto",
    "MODEL.COMPILE": False,
    "TEST.AMP": False,
    "TEST.BEST_METRIC": "",
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
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER many"),
    ],
)
def test_bad_override_is_named(opts, message):
    with pytest.raises(ConfigError, match=message):
        read(config_path("coco-panoptic"), *opts)


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
