"""Images and label maps are paired by names or lists; where names do not match, the message says what to do."""

import os
from pathlib import Path

import pytest

from mask2former.data.datasets import AnnotationError
from mask2former.data.datasets.pairs import Names, explain_no_pairs, find_pairs, lossy_label, suggest_names
from mask2former.utils.input_files import files_below


def make(root, *names):
    """Empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def joined(pairs):
    """Names of the pairs that are complete."""
    return {(image.name, label.name) for image, label in pairs.values() if image and label}


# Names of images, names of label maps, and the options that join them.
DIFFERENT = [
    (["1.jpg", "2.jpg"], ["1_mask.png", "2_mask.png"], "--label-suffix _mask"),
    (["a b.jpg", "c d.jpg"], ["a b-L.png", "c d-L.png"], "--label-suffix=-L"),
    (["1.jpg", "2.jpg"], ["mask_1.png", "mask_2.png"], "--label-prefix mask_"),
    (["img1.png", "img2.png"], ["seg1.png", "seg2.png"], "--image-prefix im --label-prefix se"),
    (["ISIC_01.jpg", "ISIC_02.jpg"], ["ISIC_01_segmentation.png", "ISIC_02_segmentation.png"],
     "--label-suffix _segmentation"),
    (["21_training.tif", "22_training.tif"], ["21_manual1.gif", "22_manual1.gif"],
     "--image-suffix _training --label-suffix _manual1"),
    (["u/a_1_leftImg8bit.png", "u/a_2_leftImg8bit.png"],
     ["u/a_1_gtFine_labelIds.png", "u/a_1_gtFine_color.png", "u/a_2_gtFine_labelIds.png", "u/a_2_gtFine_color.png"],
     "--image-suffix _leftImg8bit --label-suffix _gtFine_labelIds"),
    (["x_rgb.jpg", "y_rgb.jpg"], ["x.png", "y.png"], "--image-suffix _rgb"),
    (["1.jpg"], ["1.seg.png"], "--label-suffix .seg"),
]  # fmt: skip


@pytest.mark.parametrize(("images", "labels", "options"), DIFFERENT, ids=[options for *_, options in DIFFERENT])
def test_the_message_gives_the_options_that_join_names(images, labels, options, tmp_path):
    photos, maps = make(tmp_path / "i", *images), make(tmp_path / "l", *labels)
    assert not joined(find_pairs(photos, maps))
    message = explain_no_pairs(photos, maps, None, Names())
    assert message == (
        "the names of images and label maps do not match, such as "
        f"{min(images)} and {min(labels)}; these join them: {options}"
    )
    words = options.replace("=", " ", options.count("=")).split()
    given = {key[2:].replace("-", "_"): part for key, part in zip(words[::2], words[1::2], strict=True)}
    assert len(joined(find_pairs(photos, maps, names=Names(**given)))) == len(images)


def test_names_without_anything_in_common(tmp_path):
    photos, maps = make(tmp_path / "i", "cat.jpg", "dog.jpg"), make(tmp_path / "l", "one.png", "six.png")
    message = explain_no_pairs(photos, maps, None, Names())
    assert message.startswith("the names of images and label maps do not match, such as cat.jpg and one.png; folders")
    assert suggest_names([], []) is None


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (["1.txt"], ["1.png"], r"i has no image \(.bmp, .*\), but 1 .txt"),
        ([], ["1.png"], r"i has no image .*but no file"),
        (["1.jpg"], ["1.jpg"], r"l has no label map .*but 1 .jpg; JPEG and WebP change ids, export PNGs"),
        (["1.jpg"], ["1.npy", "2.npy"], r"l has no label map .*but 2 .npy$"),
    ],
)
def test_folders_without_the_right_files(images, labels, message, tmp_path):
    photos, maps = make(tmp_path / "i", *images), make(tmp_path / "l", *labels)
    photos.mkdir(exist_ok=True)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(explain_no_pairs(photos, maps, None, Names()))


def test_both_kinds_in_one_folder(tmp_path):
    suffixed = make(tmp_path / "a", "1.png", "1_mask.png", "2.jpg", "2_mask.png", "b/3.png", "b/3_mask.png")
    pairs = find_pairs(suffixed, suffixed, names=Names(label_suffix="_mask"))
    assert joined(pairs) == {("1.png", "1_mask.png"), ("2.jpg", "2_mask.png"), ("3.png", "3_mask.png")}
    by_format = make(tmp_path / "b", "1.jpg", "1.png", "2.jpg", "3.png")
    pairs = find_pairs(by_format, by_format)
    assert joined(pairs) == {("1.jpg", "1.png")} and pairs["3"] == (by_format / "3.png", None)


def test_a_label_map_in_jpeg_is_found_and_told_apart(tmp_path):
    maps = make(tmp_path, "b/1_m.jpg")
    assert lossy_label(maps, "b/1", Names(label_suffix="_m")) == maps / "b/1_m.jpg"
    assert lossy_label(maps, "b/2") is None


def test_two_files_of_one_name(tmp_path):
    photos = make(tmp_path / "i", "1.jpg", "1.png")
    with pytest.raises(AnnotationError, match="two files for 1; their names differ only in their endings"):
        find_pairs(photos, make(tmp_path / "l", "1.png"))


# Content of a list of b/1.jpg and 2.jpg.
LISTS = {
    "names": "b/1.jpg\n2.jpg\n",
    "without endings": "b/1\n2\n",
    "byte order mark, CRLF, blanks": "\ufeff b/1.jpg \r\n\r\n2.jpg\r\n",
    "comments": "# of today\nb/1.jpg\n#2.jpg is fine\n2.jpg",
    "dots": "./b/1.jpg\n././2.jpg",
    "parent": "b/../b/1.jpg\n./b/../2.jpg",
    "folder": "photos/b/1.jpg\nphotos/2.jpg",
    "folders": "{root.name}/photos/b/1.jpg\n{root.name}/photos/2.jpg",
    "leading slash": "/photos/b/1.jpg\n/2.jpg",
    "absolute": "{root}/photos/b/1.jpg\n{root}/photos/2.jpg",
    "through a link": "{root}/link/b/1.jpg\n{root}/link/2.jpg",
    "backslashes": "b\\1.jpg\n.\\2.jpg",
    "another machine": "C:\\data\\photos\\b\\1.jpg\nC:\\data\\photos\\2.jpg",
    "quotes": "\"b/1.jpg\"\n'2.jpg'",
    "twice": "b/1.jpg\n2.jpg\nb/1.jpg",
    "from the list": "../photos/b/1.jpg\n../photos/2.jpg",
    "pairs": "b/1.jpg b/1.png\n2.jpg 2.png",
    "pairs with tabs": "b/1.jpg\tb/1.png\n2.jpg\t2.png",
    "pairs with commas": "b/1.jpg, b/1.png\n2.jpg,2.png",
    "pairs with semicolons": "b/1.jpg; b/1.png\n2.jpg;2.png",
    "pairs with folders": "photos/b/1.jpg maps/b/1.png\n/photos/2.jpg /maps/2.png",
    "quoted pairs": '"b/1.jpg" "b/1.png"\n"2.jpg","2.png"',
    "pairs without endings": "b/1 b/1\n2 2",
    "three columns": "b/1.jpg b/1.png 7\n2.jpg 2.png 8",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists(text, tmp_path):
    photos, maps = make(tmp_path / "photos", "b/1.jpg", "2.jpg", "3.jpg"), make(tmp_path / "maps", "b/1.png", "2.png")
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists/files.txt"
    listed.write_bytes(text.replace("{root.name}", tmp_path.name).replace("{root}", str(tmp_path)).encode())
    assert find_pairs(photos, maps, listed) == {
        "b/1": (photos / "b/1.jpg", maps / "b/1.png"),
        "2": (photos / "2.jpg", maps / "2.png"),
    }


def test_lists_from_the_working_directory(tmp_path, monkeypatch):
    make(tmp_path / "x/photos", "1.jpg")
    maps = make(tmp_path / "maps", "1.png")
    monkeypatch.chdir(tmp_path / "x")
    (tmp_path / "files.txt").write_text("./photos/1.jpg")
    assert joined(find_pairs(Path("photos"), maps, tmp_path / "files.txt")) == {("1.jpg", "1.png")}


def test_odd_names_in_lists(tmp_path):
    names = ["#1.jpg", "my photo.jpg", "a,b.jpg", "'q'.jpg", "v1.2.jpg"]
    photos, maps = make(tmp_path / "i", *names), make(tmp_path / "l", *(name[:-3] + "png" for name in names))
    (tmp_path / "keys.txt").write_text("\n".join(name[:-4] for name in names))
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "pairs.txt").write_text("\n".join(f"{name} {name[:-3]}png" for name in names))
    for listed in ("keys.txt", "names.txt", "pairs.txt"):
        assert len(joined(find_pairs(photos, maps, tmp_path / listed))) == len(names)


def test_a_pair_of_a_list_comes_before_the_names(tmp_path):
    photos, maps = make(tmp_path / "i", "1.jpg", "2.jpg"), make(tmp_path / "l", "1.png", "1_second.png", "other.png")
    (tmp_path / "f.txt").write_text("1.jpg 1_second.png\n2.jpg other.png")
    assert joined(find_pairs(photos, maps, tmp_path / "f.txt")) == {("1.jpg", "1_second.png"), ("2.jpg", "other.png")}
    (tmp_path / "f.txt").write_text("1.jpg 1_second.png\n1.jpg 1.png")
    with pytest.raises(AnnotationError, match=r"1 has two label maps, .*1_second.png and .*1.png"):
        find_pairs(photos, maps, tmp_path / "f.txt")


def test_what_a_list_has_and_the_folders_lack(tmp_path):
    photos, maps = make(tmp_path / "i", "1.jpg", "2.jpg"), make(tmp_path / "l", "1.png")
    (tmp_path / "f.txt").write_text("# all\n7.jpg\n2.jpg none.png")
    assert find_pairs(photos, maps, tmp_path / "f.txt") == {"7.jpg": (None, None), "2": (photos / "2.jpg", None)}
    (tmp_path / "f.txt").write_text("# all\n7.jpg")
    message = explain_no_pairs(photos, maps, tmp_path / "f.txt", Names())
    assert message.endswith("i: it has '7.jpg', the folder has '1.jpg'")
    (tmp_path / "f.txt").write_text("\n")
    assert explain_no_pairs(photos, maps, tmp_path / "f.txt", Names()).endswith("f.txt lists no image")


def test_links_end_and_folders_count_once(tmp_path):
    root = make(tmp_path / "root", "a/1.jpg", "b/c/2.jpg")
    outside = make(tmp_path / "outside", "3.jpg", "d/4.jpg")
    (root / "a/loop").symlink_to(root)
    (root / "a/self").symlink_to(root / "a")
    (root / "a/broken").symlink_to(root / "none")
    (root / "a/own").symlink_to(root / "a/own")
    (root / "0").symlink_to(root / "b")
    (root / "one").symlink_to(outside)
    (root / "two").symlink_to(outside)
    (outside / "back").symlink_to(root)
    (root / "5.jpg").symlink_to(outside / "3.jpg")
    found = [path.relative_to(root).as_posix() for path in files_below(root) if path.suffix]
    assert found == ["5.jpg", "a/1.jpg", "b/c/2.jpg", "one/3.jpg", "one/d/4.jpg"]
    (tmp_path / "link").symlink_to(root)
    assert len(files_below(tmp_path / "link")) == len(files_below(root)) == len(files_below(os.path.relpath(root)))
    assert files_below(tmp_path / "none") == []
