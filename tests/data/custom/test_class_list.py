"""Lists of classes are taken as what they mean, or refused with the file and the entry."""

import json

import pytest

from mask2former.data.custom.class_list import SourceError, read_class_file

ROAD_CAR = [(0, "road"), (1, "car")]
LISTS = {
    "lines": ("c.txt", "road\ncar\n", ROAD_CAR),
    "byte order mark, CRLF, blanks": ("c.txt", "\ufeff road \r\n\r\ncar", ROAD_CAR),
    "comments": ("c.txt", "# mine\nroad\n#nothing\ncar", ROAD_CAR),
    "ids": ("c.txt", "0 road\n1 car", ROAD_CAR),
    "ids from 1": ("c.txt", "1: road\n2: car", [(1, "road"), (2, "car")]),
    "ids with commas": ("c.csv", "0, road\n1,car", ROAD_CAR),
    "ids with dots": ("c.txt", "0. road\n1. car", ROAD_CAR),
    "ids with gaps": ("c.txt", "7\troad\n11\tcar", [(7, "road"), (11, "car")]),
    "a name that begins with a number": ("c.txt", "4 wheeler", [(0, "4 wheeler")]),
    "some begin with numbers": ("c.txt", "road\n2 wheeler", [(0, "road"), (1, "2 wheeler")]),
    "measures": ("c.txt", "0.5 mm\n1.5 mm", [(0, "0.5 mm"), (1, "1.5 mm")]),
    "numbers": ("c.txt", "7\n8", [(0, "7"), (1, "8")]),
    "colours": ("c.txt", "#7b01ce\n#00ff00", [(0, "#7b01ce"), (1, "#00ff00")]),
    "other scripts": ("c.txt", "Straße\n道路", [(0, "Straße"), (1, "道路")]),
    "JSON names": ("c.json", '["road", "car"]', ROAD_CAR),
    "JSON numbers": ("c.json", "[7, 8]", [(0, "7"), (1, "8")]),
    "JSON byte order mark": ("c.json", '\ufeff["road", "car"]', ROAD_CAR),
    "JSON ids as text": ("c.json", '[{"id": "0", "name": "road"}, {"id": "1", "name": "car"}]', ROAD_CAR),
    "JSON ids to names": ("c.json", '{"0": "road", "1": "car"}', ROAD_CAR),
    "JSON names to ids": ("c.json", '{"road": 0, "car": 1}', ROAD_CAR),
    "JSON of a model": (
        "c.json",
        '{"id2label": {"0": "road", "1": "car"}, "label2id": {"road": 0, "car": 1}}',
        ROAD_CAR,
    ),
    "JSON of COCO": ("c.json", '{"categories": [{"id": 3, "name": "car", "supercategory": null}]}', [(3, "car")]),
    "YAML names": ("c.yaml", "- road\n- car", ROAD_CAR),
    "YAML words": ("c.yaml", "- no\n- yes\n- on", [(0, "no"), (1, "yes"), (2, "on")]),
    "YAML numbers": ("c.yml", "- 007\n- 1:30\n- 1e3", [(0, "007"), (1, "1:30"), (2, "1e3")]),
    "YAML colours": ("c.yaml", "- '#7b01ce'\n- {name: '#00ff00'}", [(0, "#7b01ce"), (1, "#00ff00")]),
    "YAML ids": ("c.yaml", "- {id: 4, name: road}\n- {id: '5', name: 6}", [(4, "road"), (5, "6")]),
    "YAML of another tool": ("c.yaml", "path: data\nnames:\n  0: road\n  1: car", ROAD_CAR),
}


@pytest.mark.parametrize(("name", "text", "classes"), LISTS.values(), ids=LISTS)
def test_lists(name, text, classes, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    found = read_class_file(tmp_path / name, first_id=0)
    assert [(category.id, category.name) for category in found.categories] == classes


BAD = {
    "UTF-16": ("c.txt", "road\ncar".encode("utf-16"), r"c\.txt: not a text file in UTF-8 .*; save it as UTF-8"),
    "Latin-1": ("c.txt", "Straße".encode("latin-1"), r"c\.txt: not a text file in UTF-8"),
    "UTF-16 JSON": ("c.json", '["road"]'.encode("utf-16"), r"c\.json: not a text file in UTF-8"),
    "empty": ("c.txt", b"\n", r"c\.txt: expected a list"),
    "comments only": ("c.txt", b"# road\n", r"c\.txt: expected a list"),
    "twice": ("c.txt", b"road\nroad", r"c\.txt: two classes have the name 'road'"),
    "YAML comment": ("c.yaml", b"- road\n- #7b01ce", r"c\.yaml\[1\]: the name is '' \(str\)"),
    "JSON flag": ("c.json", b'["road", true]', r"c\.json\[1\]: the name is True \(bool\)"),
    "JSON null": ("c.json", b"[null]", r"c\.json\[0\]: the name is None \(NoneType\)"),
    "JSON list": ("c.json", b'[["road", 0]]', r"c\.json\[0\]: the name is \['road', 0\] \(list\)"),
    "bad id": ("c.json", b'[{"id": "one", "name": "a"}]', r"c\.json\[0\]: id is 'one' \(str\)"),
    "id with a fraction": ("c.json", b'[{"id": 1.5, "name": "a"}]', r"c\.json\[0\]: id is 1\.5 \(float\)"),
    "bad colour": ("c.yaml", b"- {name: a, color: '#7b01c'}", r"c\.yaml\[0\]: color is '#7b01c' \(str\)"),
    "other keys": ("c.json", b'{"a": "b"}', r"c\.json: expected a list of classes, a mapping .* found the keys a"),
    "no YAML": ("c.yaml", b"- {a", r"c\.yaml: not a list of classes: while parsing a flow mapping"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_bad_lists(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        read_class_file(tmp_path / name, first_id=0)
    assert "\n" not in str(error.value)


def test_what_a_list_says(tmp_path):
    def read(content):
        (tmp_path / "c.json").write_text(json.dumps(content))
        found = read_class_file(tmp_path / "c.json", first_id=1)
        return found.says_ids, found.says_things, found.says_colors

    assert read(["a", "b"]) == (False, False, False)
    assert read([{"id": 1, "name": "a", "isthing": "true"}, {"id": 2, "name": "b", "color": "#7b01ce"}]) == (
        True,
        False,
        True,
    )
    assert read([{"name": "a", "isthing": 1}, {"name": "b", "isthing": 0}]) == (False, True, False)
