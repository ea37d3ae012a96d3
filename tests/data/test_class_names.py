"""Files with names of classes, as `demo.py --class-names` reads them."""

import json

import pytest

from mask2former import ConfigError, Predictor
from mask2former.data.classes import ClassTable, read_class_names
from tests.conftest import ROOT
from tests.kinds import KINDS

NAMES = ["tench", "goldfish, Carassius auratus", "Süßwasserhai", "鲨鱼"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(NAMES)),
        ("a.txt", "\r\n".join(NAMES) + "\r\n\r\n"),
        ("a.names", "\ufeff" + "\n".join(f"  {name}\t" for name in NAMES) + "\n"),
        ("a.json", json.dumps(NAMES)),
        ("a.JSON", json.dumps({str(i): name for i, name in reversed(list(enumerate(NAMES)))}, ensure_ascii=False)),
        ("imagenet_class_index.json", json.dumps({str(i): [f"n{i:08d}", name] for i, name in enumerate(NAMES)})),
    ],
)
def test_names_in_the_order_of_the_ids(name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert read_class_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"tench\n\nshark\n", "entry 2 is ''"),
        ("a.txt", "Süß".encode("latin-1"), "UTF-8"),
        ("a.json", b"[1, 2]", "entry 1 is 1"),
        ("a.json", b'["a", []]', r"entry 2 is \[\]"),
        ("a.json", b'{"0": "a", "2": "b"}', "without gaps"),
        ("a.json", b'"tench"', "found str"),
        ("a.json", b"tench\nshark\n", "one name per line, or JSON"),
        (".", b"", "can't be read"),
        ("none/a.txt", None, "can't be read"),
    ],
)
def test_what_is_no_list_of_names_is_refused_in_one_line(name, content, message, tmp_path):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_class_names(tmp_path / name)
    assert str(error.value).startswith(f"class names {tmp_path / name}: ") and "\n" not in str(error.value)


def test_imagenet_22k_gets_names(tmp_path, deterministic):
    """It has none of its own; and messages do not list all 21841."""
    kind = KINDS["classifier"]
    config = ROOT / "configs/imagenet/classification/dinat/dinat_large_21k.yaml"
    plain = Predictor.from_config(config, "", kind.opts)
    image = deterministic.image("names", 40, 60).transpose(1, 2, 0)
    best = plain(image).top(1)[0]
    assert best.name == f"class {best.category_id}"
    (tmp_path / "names.txt").write_text("".join(f"synset {i}\n" for i in range(21841)))
    named = Predictor.from_config(config, "", kind.opts, class_names=tmp_path / "names.txt")
    assert all(row.name == f"synset {row.category_id}" for row in named(image).top())
    with pytest.raises(ConfigError) as error:
        named(image).filter(classes="unicorn")
    assert "synset 149 and 21691 more" in str(error.value) and len(str(error.value)) < 3000
    (tmp_path / "names.txt").write_text("".join(f"synset {i}\n" for i in range(21843)))
    with pytest.raises(ConfigError, match=r"^21843 class names, but MODEL.CLASSIFIER.NUM_CLASSES is 21841: one name"):
        Predictor.from_config(config, "", kind.opts, class_names=tmp_path / "names.txt")


def test_few_names_are_listed_as_they_are():
    assert ClassTable(names=("a", "b")).listed() == "a, b" and ClassTable().listed() == ""
