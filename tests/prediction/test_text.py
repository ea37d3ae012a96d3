"""Text in pictures: scripts that DejaVu Sans lacks, and names that no one would give a class."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw, features

from mask2former.data.classes import ClassTable
from mask2former.prediction import text
from mask2former.prediction.drawing import (
    Label,
    draw_instances,
    draw_labels,
    draw_panoptic,
    draw_semantic,
    side_by_side,
)
from mask2former.prediction.text import TextLine, clean

LATIN = {"猫": "Mao", "가": "Ga", "ね": "ne", "ก": "k", "अ": "a", "🦊": ":fox:"}


@pytest.fixture
def fonts(monkeypatch, tmp_path):
    """A function that sets which characters the only font of the system has."""

    def system_has(characters, name="NotoSansTest-Regular"):
        found = []
        if characters:
            pen = TTGlyphPen(None)
            for x, y in ((0, 0), (0, 700), (900, 700), (900, 0)):
                (pen.lineTo if (x, y) != (0, 0) else pen.moveTo)((x, y))
            pen.closePath()
            names = [f"u{ord(c):05X}" for c in characters]
            builder = FontBuilder(1000)
            builder.setupGlyphOrder([".notdef", *names])
            builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names, strict=True)})
            builder.setupGlyf(dict.fromkeys([".notdef", *names], pen.glyph()))
            builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
            builder.setupHorizontalHeader(ascent=800, descent=-200)
            builder.setupOS2()
            builder.setupPost()
            builder.save(tmp_path / f"{name}.ttf")
            found.append(str(tmp_path / f"{name}.ttf"))
        monkeypatch.setattr(text, "findSystemFonts", lambda: found)

    monkeypatch.setitem(
        sys.modules, "anyascii", SimpleNamespace(anyascii=lambda s: "".join(LATIN.get(c, "") for c in s))
    )
    caches = (text._drawable, text._has, text._system_fonts)
    for cached in caches:
        cached.cache_clear()
    text._missing.clear()
    yield system_has
    for cached in caches:
        cached.cache_clear()
    text._missing.clear()


def drawn(line):
    """The characters of a line and the names of their fonts."""
    return [(part, path.rsplit("/")[-1]) for part, path in line._runs]


@pytest.mark.parametrize("character", LATIN)
def test_a_font_of_the_system_is_taken(character, fonts, caplog):
    fonts(character)
    line = TextLine(f"a {character} 90%", 20)
    assert drawn(line) == [
        ("a ", "DejaVuSans.ttf"),
        (f"{character} ", "NotoSansTest-Regular.ttf"),
        ("90%", "DejaVuSans.ttf"),
    ]
    assert not caplog.text
    assert line.image((0, 0, 0))[:, :, 3].mean() > 50, "the font has a filled box for it"


@pytest.mark.parametrize(
    ("character", "package"),
    [
        ("猫", "install fonts-noto-cjk"),
        ("가", "install fonts-noto-cjk"),
        ("ね", "install fonts-noto-cjk"),
        ("ก", "install fonts-noto-core"),
        ("अ", "install fonts-noto-core"),
        ("🦊", "install fonts-symbola"),
    ],
)
def test_without_a_font_there_are_latin_letters_and_one_warning(character, package, fonts, caplog):
    fonts("")
    assert drawn(TextLine(f"{character} 90%", 20)) == [(f"{LATIN[character]} 90%", "DejaVuSans.ttf")]
    for other in LATIN:
        TextLine(other, 20)
    assert len(caplog.records) == 1 and package in caplog.text and character in caplog.text


def test_fonts_of_placeholders_and_without_the_character_are_passed_over(fonts):
    fonts("猫", name="LastResort")
    assert drawn(TextLine("猫", 20)) == [("Mao", "DejaVuSans.ttf")]


def test_code_points_stand_in_where_nothing_else_does(fonts, monkeypatch):
    fonts("")
    monkeypatch.setitem(sys.modules, "anyascii", None)
    assert drawn(TextLine("猫", 20)) == [("U+732B", "DejaVuSans.ttf")]


@pytest.mark.parametrize("name", ["кошка", "γάτα", "חתול", "قطة", "été", "😀", "x̂"])
def test_what_dejavu_has_needs_no_other_font(name, fonts, caplog):
    fonts("")
    if not features.check("raqm"):
        pytest.skip("Pillow draws from left to right alone")
    assert len(drawn(TextLine(name, 20))) == 1 and not caplog.text


def test_without_fribidi_right_to_left_is_latin(fonts, monkeypatch, caplog):
    fonts("")
    monkeypatch.setattr(text.features, "check", lambda name: False)
    monkeypatch.setitem(sys.modules, "anyascii", SimpleNamespace(anyascii=lambda s: "q"))
    assert drawn(TextLine("قطة", 20)) == [("qqq", "DejaVuSans.ttf")] and "install libfribidi0" in caplog.text


def test_letters_stay_with_their_marks_and_joiners():
    assert list(text._clusters("x\u0302y👩\u200d👧!")) == ["x\u0302", "y", "👩\u200d👧", "!"]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a\nb", "a b"),
        ("a\r\n\tb\x00c", "a b c"),
        ("  a\u2028b ", "a b"),
        ("e\u0301", "é"),
        ("\ud800a", "?a"),
        ("\n", ""),
    ],
)
def test_names_become_one_line(name, cleaned):
    assert clean(name) == cleaned


def test_long_texts_lose_their_middle():
    line = TextLine(200 * "x" + " #3 97%", 20, 300)
    ((shown, _),) = line._runs
    assert shown.startswith("xxx") and "…" in shown and shown.endswith("x #3 97%") and 250 < line.width <= 300
    assert not TextLine("x", 20, 3) and TextLine("x", 20, 3).width == 0


NAMES = ["", "\n", "a\nb", 200 * "name ", "猫", "قطة", "\ud800", "$5 and $6", "e\u0301", "🦊", "{}%s"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 700), (90, 60)])
@pytest.mark.parametrize("enlarge", [True, False])
def test_every_picture_of_every_name_is_drawn(size, enlarge, fonts):
    fonts("")
    classes = ClassTable(names=NAMES)
    image = np.full((*size, 3), 128, np.uint8)
    count = len(NAMES)
    masks = np.ones((count, *size), bool)
    shape = draw_instances(image, masks, range(count), [0.5] * count, classes, enlarge=enlarge).shape
    ids = np.arange(size[0] * size[1]).reshape(size) % count
    infos = [{"id": i, "category_id": i, "isthing": True, "score": 0.5, "track_id": 7} for i in range(count)]
    assert draw_panoptic(image, ids, infos, classes, enlarge=enlarge).shape == shape
    assert draw_semantic(image, ids, classes, enlarge=enlarge).shape == shape
    nothing = draw_instances(image, masks[:0], [], [], classes, enlarge=enlarge)
    assert nothing.shape == shape and (nothing == 128).all()
    assert side_by_side(dict.fromkeys(NAMES[1:], image)).shape[2] == 3


def test_a_label_higher_than_the_picture_is_left_out():
    empty = np.zeros((3, 900, 3), np.uint8)
    assert not draw_labels(empty, [Label("label", (200, 0, 0), (450, 1), 1)]).any()


def test_lines_grow_with_high_letters(fonts):
    fonts("")
    plain, high = TextLine("Ag", 40), TextLine("A\u0302\u0302\u0302\u0302", 40)
    assert high.up > plain.up
    canvas = Image.new("RGB", (200, 200))
    high.draw(ImageDraw.Draw(canvas), 20, 100, (255, 255, 255))
    rows = np.nonzero(np.array(canvas).any((1, 2)))[0]
    assert 100 - (high.up + high.down) / 2 - 1 <= rows.min() and rows.max() <= 100 + (high.up + high.down) / 2 + 1
