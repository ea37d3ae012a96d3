"""What can be wrong with a data set, and what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# Places of a problem that are kept as examples.
_EXAMPLES = 3


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        text: what it is, of many.
        cure: what to do about it.
        blocks: whether training or evaluation would stop at it or give wrong numbers.
    """

    text: str
    cure: str
    blocks: bool = True


class Found(NamedTuple):
    """A problem and where it is, in words."""

    problem: Problem
    where: str


@dataclass
class Findings:
    """Problems with how often they were found and the first places."""

    counts: dict[Problem, int] = field(default_factory=dict)
    examples: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, problem: Problem, where: str) -> None:
        """Count a problem once."""
        self.counts[problem] = self.counts.get(problem, 0) + 1
        examples = self.examples.setdefault(problem, [])
        if len(examples) < _EXAMPLES:
            examples.append(where)

    def __iter__(self) -> Iterator[tuple[Problem, int, list[str]]]:
        """Problems, count and first examples of each; those in the way first, then the most frequent."""
        for problem in sorted(self.counts, key=lambda p: (not p.blocks, -self.counts[p])):
            yield problem, self.counts[problem], self.examples[problem]

    @property
    def blocking(self) -> bool:
        """Whether any problem is in the way."""
        return any(problem.blocks for problem in self.counts)


_FIX_JSON = "correct the annotation file, or export it anew"

MISSING_IMAGE = Problem("missing images", "put the files there, or take their entries out of the annotations")
UNREADABLE_IMAGE = Problem("images that can't be read", "replace the files; most were cut off while being copied")
ANNOTATED_SIZE = Problem(
    "images of another size than annotated",
    "label the images as they are stored; images turned by their EXIF tag count upright",
)
MISSING_LABEL = Problem("missing label images", "put the files there, or take their entries out of the annotations")
WITHOUT_LABEL = Problem("images without a label image", "label them; until then they are left out", blocks=False)
WITHOUT_IMAGE = Problem("label images without an image", "add the images; until then they are left out", blocks=False)
UNREADABLE_LABEL = Problem(
    "label images that can't be read as such",
    "export them as PNG: numbers in one channel for instances, RGB for panoptic, either for semantic labels",
)
LABEL_SIZE = Problem("label images of another size than the image", "export the labels at the size of the images")
OUTSIDE_CLASSES = Problem(
    "ids or colours outside of the class list",
    "add classes with these ids or colours; void: --ignore-label N, or for a colour a class with the id of void",
)
NOTHING_LABELLED = Problem(
    "images on which nothing is labelled",
    "fine if nothing is there; of coco_instance, DATALOADER.FILTER_EMPTY_ANNOTATIONS False trains on them, too",
    blocks=False,
)

IMAGE_ID_TWICE = Problem("image ids that several images have", _FIX_JSON)
ANNOTATION_ID_TWICE = Problem("annotation ids that several annotations have", _FIX_JSON)
SEGMENT_ID_TWICE = Problem("segment ids that several segments of an image have", _FIX_JSON)
ANNOTATED_TWICE = Problem("images that have several panoptic annotations", _FIX_JSON)
UNKNOWN_IMAGE = Problem("annotations of images that the file does not list", _FIX_JSON)
NO_SEGMENTATION = Problem(
    "annotations without a mask", "export masks (polygons or RLE) instead of boxes, or delete these annotations"
)
FEW_POINTS = Problem("polygons with fewer than 3 points or an odd number of coordinates", "delete or redraw them")
POLYGON_OUTSIDE = Problem(
    "polygons that leave the image",
    "nothing if by little: what is outside is cut off; else they belong to another image or size",
    blocks=False,
)
EMPTY_MASK = Problem("annotations whose mask has no pixel", "delete or redraw them", blocks=False)
RLE_SIZE = Problem("run lengths (RLE) of another size than the image", "export the masks at the size of the images")
BAD_MASK = Problem("masks that are neither polygons nor run lengths (RLE)", _FIX_JSON)
BAD_FIELD = Problem("annotations with an impossible id, category, area, box or crowd flag", _FIX_JSON)
NO_LABEL_AT_ALL = Problem("splits without a single label", "label some images")
NOT_IN_JSON = Problem("segments in panoptic PNGs that segments_info lacks", "list them, or paint them black (void)")
NOT_IN_PNG = Problem("segments in segments_info that the panoptic PNG lacks", "take them out of segments_info")
OTHER_AREA = Problem(
    "segments of another area in segments_info than in the panoptic PNG", "nothing: `config` counts anew", blocks=False
)
NO_ISTHING = Problem(
    "classes that don't say whether they are things", 'give each category "isthing": 1 or 0, or a list with --classes'
)
UNNUMBERED = Problem(
    "things without an instance number", "number them; until then they count as crowds, which are ignored", blocks=False
)
SEVERAL_CLASSES = Problem(
    "instance numbers that span several classes",
    "number them apart; until then each class is an instance",
    blocks=False,
)

NEVER_USED = Problem("classes that training never sees", "label some, or take them out of the list", blocks=False)
IMBALANCE = Problem(
    "classes a hundred times rarer than the most frequent", "label more; see class imbalance in the docs", blocks=False
)
FEW_IMAGES = Problem("classes on fewer than 10 training images", "label more, or expect little of them", blocks=False)
LEAKAGE = Problem("images that are both in train and val", "take them out of one, or let `split` make both")
LEAKED_NAME = Problem(
    "names that are both in train and val", "nothing if the images differ, as pixels say they do", blocks=False
)
DUPLICATE = Problem("images that are there several times", "keep one of each", blocks=False)
