"""Problems that the files of a data set can have: one vocabulary for published data sets and for a user's own."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Number of places that are kept as examples of a problem.
_EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        text: Description, in the plural.
        cure: Advice for the user.
        blocks: Whether training or evaluation would fail, or give wrong results.
    """

    text: str
    cure: str
    blocks: bool = True


class Found(NamedTuple):
    """A problem and a description of its place."""

    problem: Problem
    where: str


@dataclass
class Findings:
    """Problems, with the number of times that each was found and the first places."""

    counts: dict[Problem, int] = field(default_factory=dict)
    examples: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem, where: str) -> None:
        """Count a problem once."""
        self.counts[problem] = self.counts.get(problem, 0) + 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _EXAMPLES:
            examples.append(where)

    def __iter__(self) -> Iterator[tuple[Problem, int, list[str]]]:
        """Each problem with its count and first places: blocking problems first, then the most frequent."""
        for problem in sorted(self.counts, key=lambda p: (not p.blocks, -self.counts[p])):
            yield problem, self.counts[problem], self.examples[problem]

    @property
    def blocking(self) -> bool:
        """Whether any problem prevents training or evaluation."""
        return any(problem.blocks for problem in self.counts)

    def messages(self, *, blocks: bool) -> list[str]:
        """One line per problem that prevents training or evaluation (`blocks`), or that does not."""
        return [
            f"{problem.text}{f' ({count})' if count > 1 else ''}: "
            + "; ".join([*examples, *(["..."] if count > len(examples) else [])])
            for problem, count, examples in self
            if problem.blocks == blocks
        ]


def segment_areas(ids: NDArray[np.integer]) -> dict[int, int]:
    """Number of pixels by segment id of a panoptic segmentation [H, W], without 0, which is void."""
    values, counts = np.unique(ids, return_counts=True)
    areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
    areas.pop(0, None)
    return areas


def compare_segments(
    found: Mapping[int, int], listed: Mapping[int, int | None], hidden: Collection[int] = ()
) -> Iterator[Found]:
    """Compare the segments of a panoptic PNG with those in its JSON; `where` names the ids.

    Args:
        found: `segment_areas` of the PNG.
        listed: Area by segment id in the JSON.
        hidden: Ids of segments that may be smaller than the JSON says, or absent.
    """
    if more := found.keys() - listed.keys():
        yield Found(NOT_IN_JSON, f"ids {few(more)}")
    if lacking := listed.keys() - found.keys() - set(hidden):
        yield Found(NOT_IN_PNG, f"ids {few(lacking)}")
    if other := [i for i in found.keys() & listed.keys() if listed[i] != found[i] and i not in hidden]:
        yield Found(OTHER_AREA, f"ids {few(other)}")


def few(values: Collection[Any]) -> str:
    """The smallest five values as text, separated by commas."""
    return ", ".join(map(str, sorted(values)[:5])) + (", ..." if len(values) > 5 else "")


def size_text(size: Sequence[int]) -> str:
    """Height and width as text, width first."""
    return f"{size[1]} x {size[0]}"


_note = partial(Problem, blocks=False)
_FIX_JSON = "correct the annotation file, or export it again"

MISSING_IMAGE = Problem("missing images", "put the files in place, or remove their entries from the annotations")
UNREADABLE_IMAGE = Problem("unreadable images", "replace the files; most were truncated while being copied")
ANNOTATED_SIZE = Problem(
    "images whose size differs from the annotations", "annotate images upright, with their EXIF orientation applied"
)
MISSING_LABEL = Problem("missing label images", "put the files in place, or remove their entries from the annotations")
WITHOUT_LABEL = _note("images without a label image", "label them; until then they are ignored")
WITHOUT_IMAGE = _note("label images without an image", "add the images; until then they are ignored")
UNREADABLE_LABEL = Problem(
    "unreadable label images",
    "export PNGs: numbers in one channel for instances, RGB for panoptic labels, either for semantic labels",
)
LOSSY_LABEL = Problem(
    "label images in a format that changes ids", "export PNGs; values that JPEG or WebP changed can't be restored"
)
LABEL_SIZE = Problem("label images whose size differs from the image", "export the labels at the size of the images")
OUTSIDE_CLASSES = Problem(
    "ids or colours that are not in the class list",
    "add classes with these ids or colours, or give their class with --map VALUE=ID; for void: --ignore-label N, or a "
    "class called void with this id and the colour",
)
NOTHING_LABELLED = _note(
    "images without any annotation",
    "nothing if they are empty; DATALOADER.FILTER_EMPTY_ANNOTATIONS False also trains on such images of coco_instance",
)

IMAGE_ID_TWICE = Problem("image ids that are used more than once", _FIX_JSON)
ANNOTATION_ID_TWICE = _note(
    "annotation ids that are used more than once",
    "nothing if the annotations differ, as their ids are not used; otherwise delete the copies",
)
SEGMENT_ID_TWICE = Problem("segment ids that are used more than once in an image", _FIX_JSON)
ANNOTATED_TWICE = Problem("images with more than one panoptic annotation", _FIX_JSON)
UNKNOWN_IMAGE = Problem("annotations of images that the file does not list", _FIX_JSON)
NO_SEGMENTATION = Problem(
    "annotations without a mask", "export masks (polygons or RLE) instead of boxes, or delete these annotations"
)
FEW_POINTS = Problem("polygons with fewer than 3 points or an odd number of coordinates", "delete or redraw them")
POLYGON_OUTSIDE = _note(
    "polygons that extend beyond the image",
    "nothing if it is a few pixels, which are cut off; otherwise they belong to another image or size",
)
EMPTY_MASK = _note("annotations with an empty mask", "delete or redraw them")
RLE_SIZE = Problem("run lengths (RLE) whose size differs from the image", "export the masks at the size of the images")
BAD_MASK = Problem("masks that are neither valid polygons nor valid run lengths (RLE)", _FIX_JSON)
BAD_FIELD = Problem("annotations with an invalid image, category, segment id or crowd flag", _FIX_JSON)
ODD_FIELD = _note(
    "areas, boxes and ignore flags that can't be understood",
    "nothing: areas are computed from the masks, boxes are not used, and the annotations are not ignored",
)
NO_LABEL_AT_ALL = Problem("splits without any label", "label some images")
ONLY_CROWDS = Problem(
    "splits with nothing to learn: all annotations are crowds or to be ignored",
    "label single objects, with iscrowd and ignore 0; crowds are no targets and are not evaluated",
)
NOT_IN_JSON = Problem("segments in panoptic PNGs that segments_info lacks", "list them, or paint them black (void)")
NOT_IN_PNG = Problem("segments in segments_info that the panoptic PNG lacks", "remove them from segments_info")
OTHER_AREA = _note(
    "segments whose area in segments_info differs from the panoptic PNG", "nothing: `config` computes areas again"
)
NO_ISTHING = Problem(
    "classes that are not marked as things or stuff",
    'give each category "isthing": 1 or 0, or use a list with --classes',
)
UNNUMBERED = _note(
    "things without an instance number", "number them; until then they are treated as crowds, which are ignored"
)
SEVERAL_CLASSES = _note(
    "instance numbers that span several classes", "use separate numbers; until then each class counts as one instance"
)

VANISHED = Problem(
    "classes without a pixel, where pixels have values that no class has",
    "say what the values mean: --map VALUE=ID for a class, --ignore-label VALUE for void",
)
SHIFTED = Problem(
    "classes without a pixel, where 0 is void and the list has no ids",
    "give the classes their ids (lines such as '1 road'): with --ignore-label 0, a list without ids begins with 1",
)
SINGLE_CLASS = _note(
    "a single class, and void everywhere else",
    "make the rest a class (--map VALUE=ID); training ignores void, so the model will predict the class everywhere",
)
NEVER_USED = _note("classes that do not occur in training", "label some, or remove them from the list")
IMBALANCE = _note(
    "classes that are over 100 times rarer than the most frequent one",
    "label more; see class imbalance in the documentation",
)
FEW_IMAGES = _note("classes on fewer than 10 training images", "label more, or expect poor results")
LEAKAGE = Problem("images that are in both train and val", "remove them from one, or let `split` make both")
LEAKED_NAME = _note("file names that are in both train and val", "nothing: the pixels of these images differ")
DUPLICATE = _note("images that occur more than once", "keep one of each")
