"""Look at every file of a data set, and report whether it can be used."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from mask2former.data import problems
from mask2former.data.custom.models import serving
from mask2former.data.custom.scan import Scan, Scanner
from mask2former.data.custom.source import LabelledImage, Source, Split, SplitContent, read_source
from mask2former.data.datasets.registry import AnnotationError, Category
from mask2former.data.label_maps import is_color, label_text
from mask2former.data.problems import Findings
from mask2former.utils.parallel import processes, report_interval

_RARE = 100
_FEW_IMAGES = 10
# Share of a class's pixels with instance numbers above which it counts as a thing.
_THING_SHARE = 0.5
# Widths of the columns of the table; paths stay whole, so that they can be copied.
_WIDTHS = (44, None, None, 44)
# Starting processes takes longer than opening fewer files than this.
_MANY_IMAGES = 100


@dataclass(frozen=True)
class InspectedSplit:
    """A split with the content of its files.

    Attributes:
        content: Its classes and images.
        scans: Content of the files of each image.
    """

    content: SplitContent
    scans: tuple[Scan, ...]

    def pairs(self) -> "zip[tuple[LabelledImage, Scan]]":
        """The images with their scans."""
        return zip(self.content.images, self.scans, strict=True)

    def total(self, what: str) -> Counter[int]:
        """Sum over the images of "pixels", "segments", "crowds" or "numbered" by category id, or "others" by value."""
        total: Counter[int] = Counter()
        for scan in self.scans:
            total.update(getattr(scan, what))
        return total

    def images(self) -> Counter[int]:
        """Number of images with each category, by category id."""
        return Counter(category for scan in self.scans for category in scan.segments)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the readable images."""
        return [scan.size for scan in self.scans if scan.size]


@dataclass(frozen=True)
class Inspection:
    """Content and problems of all splits."""

    splits: Mapping[Split, InspectedSplit]
    findings: Mapping[Split, Findings]

    @property
    def usable(self) -> bool:
        """Whether no problem prevents training or evaluation."""
        return not any(findings.blocking for findings in self.findings.values())

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, which all splits share."""
        return next(iter(self.splits.values())).content.categories

    @property
    def has_things(self) -> bool:
        """Whether an image for training has an annotated thing that is no crowd."""
        segments = self.train.total("segments")
        return any(segments[category.id] for category in self.categories if category.isthing)

    @property
    def train(self) -> InspectedSplit:
        """The split for training."""
        return self.splits["train"]


def inspect_sources(sources: Sequence[Source], workers: int) -> Inspection:
    """Read and check splits of a data set.

    Args:
        sources: Files of the split for training, and optionally of one for evaluation.
        workers: Number of processes that open files.

    Raises:
        AnnotationError: An annotation file is not in COCO's format, the splits have different classes, or there are no
            images.
        SourceError: A list of classes can't be used.
    """
    contents = [read_source(source) for source in sources]
    classes = [[(category.id, category.name) for category in content.categories] for content in contents]
    if classes[0] != classes[-1]:
        different = sorted({*classes[0]} ^ {*classes[-1]})[:5]
        details = ", ".join(f"{identity} {name}" for identity, name in different) or "their order"
        raise AnnotationError(f"train and val have different classes: {details}")
    splits = [InspectedSplit(content, _scan_all(content, workers)) for content in contents]
    if contents[0].derive_things:
        pixels, numbered = (sum((split.total(what) for split in splits), Counter()) for what in ("pixels", "numbered"))
        categories = tuple(
            replace(c, isthing=numbered[c.id] > _THING_SHARE * pixels[c.id]) for c in contents[0].categories
        )
        splits = [replace(split, content=replace(split.content, categories=categories)) for split in splits]
    if contents[0].source.format == "semantic_instance":
        for split in splits:
            _count_unnumbered(split)
    inspection = Inspection(
        {split.content.source.split: split for split in splits},
        {split.content.source.split: split.content.findings for split in splits},
    )
    for name, split in inspection.splits.items():
        _collect(split, inspection.findings[name])
    _check_values(inspection)
    _check_balance(inspection)
    if len(splits) > 1:
        _check_leakage(inspection)
    return inspection


def _scan_all(content: SplitContent, workers: int) -> tuple[Scan, ...]:
    source, count = content.source, len(content.images)
    ids = frozenset(category.id for category in content.categories)
    scanner = Scanner(source.format, ids, content.void, content.code, source.value_range)
    with processes(workers if count > _MANY_IMAGES else 1) as run_all:
        scans = run_all(scanner, content.images)
        return tuple(
            tqdm(scans, f"reading {source.split}", count, unit="image", mininterval=report_interval(), delay=1)
        )


def _count_unnumbered(split: InspectedSplit) -> None:
    """Count things without an instance number as crowds."""
    for category in split.content.categories:
        for scan in split.scans:
            if category.isthing and category.id in scan.segments and not scan.numbered[category.id]:
                scan.crowds[category.id] = scan.segments.pop(category.id)


def _collect(split: InspectedSplit, findings: Findings) -> None:
    """Add the problems of single images and copies of images."""
    copies: defaultdict[str, list[str]] = defaultdict(list)
    things = {c.id: c.name for c in split.content.categories if c.isthing}
    combines = split.content.source.format == "semantic_instance"
    for image, scan in split.pairs():
        for problem, where in scan.found:
            findings.add(problem, where)
        if scan.digest:
            copies[scan.digest].append(image.path.name)
        for category in things.keys() & scan.pixels.keys() if combines else ():
            if scan.numbered[category] < scan.pixels[category]:
                findings.add(problems.UNNUMBERED, f"{image.numbers}: {things[category]}")
    if not split.total("segments"):
        problem = problems.ONLY_CROWDS if split.total("crowds") else problems.NO_LABEL_AT_ALL
        findings.add(problem, split.content.source.split)
    for names in copies.values():
        if len(names) > 1:
            findings.add(problems.DUPLICATE, " = ".join(names[:3]))


def _check_values(inspection: Inspection) -> None:
    """Add classes without a pixel, if pixels have values that neither the user nor the list explains."""
    splits = inspection.splits
    main, first = next((name, split.content) for name, split in splits.items())
    if not first.source.labels:
        return
    unexplained = {name: _unexplained(split) for name, split in splits.items()}
    used = {name: {*split.total("pixels")} for name, split in splits.items()}
    everywhere = set().union(*used.values())
    values = sorted(set().union(*unexplained.values()))
    unused = [category for category in inspection.categories if category.id not in everywhere]
    findings = inspection.findings[main]
    if unused and values:
        findings.add(problems.VANISHED, _ways_out(unused, values, first))
    elif unused and first.shifted and unused[-1] == inspection.categories[-1]:
        findings.add(problems.SHIFTED, ", ".join(f"{category.name} ({category.id})" for category in unused[:3]))
    elif not unused and len(everywhere) > 1 and values == [max(everywhere) + 1] and first.void not in values:
        # Such as ADE20K's original labels.
        findings.add(problems.VANISHED, "the ids seem to begin with 1: --ignore-label 0 makes 0 void")
    others = set().union(*(split.total("others") for split in splits.values()))
    if len(inspection.categories) == len(everywhere) == 1 and others:
        found = ", ".join(map(label_text, sorted(others)[:3]))
        findings.add(problems.SINGLE_CLASS, f"{inspection.categories[0].name} is {min(everywhere)}; void is {found}")
    if len(splits) < 2:
        return
    # The same classes with other values.
    for name, other in (("train", "val"), ("val", "train")):
        lacking = [category for category in inspection.categories if category.id in used[other] - used[name]]
        if lacking and (only_here := sorted(unexplained[name] - unexplained[other])):
            inspection.findings[name].add(problems.VANISHED, _ways_out(lacking, only_here, first))


def _unexplained(split: InspectedSplit) -> set[int]:
    """Values of pixels that have no class and are not void, as far as the user or the list of classes says so."""
    content = split.content
    return split.total("others").keys() - (set() if content.assumed_void else {content.void})


def _ways_out(classes: Sequence[Category], values: Sequence[int], content: SplitContent) -> str:
    """The classes that no pixel has, and options that give the values a meaning."""
    lacking = ", ".join(f"{category.name} ({category.id})" for category in classes[:3])
    found = ", ".join(map(label_text, values[:3]))
    ids = [value for value in values if not is_color(value)]
    if not ids:
        return f"{lacking}; pixels have {found}: give the classes their colours in the list"
    pairs = " ".join(f"{value}={category.id}" for value, category in zip(ids[:3], classes, strict=False))
    void = f", or --ignore-label {content.void} if that is void" if content.void in ids else ""
    return f"{lacking}; pixels have {found}: --map {pairs}{void}"


def _check_balance(inspection: Inspection) -> None:
    """Add classes that are rare or absent in the first split."""
    (name, first), *others = inspection.splits.items()
    findings = inspection.findings[name]
    images, segments = first.images(), first.total("segments")
    most = max(segments.values(), default=0)
    for category in first.content.categories:
        count = segments[category.id]
        if count == 0:
            elsewhere = next((f" (only in {other})" for other, split in others if split.images()[category.id]), "")
            findings.add(problems.NEVER_USED, category.name + elsewhere)
            continue
        if count * _RARE < most:
            findings.add(problems.IMBALANCE, f"{category.name}: {count} of {most}")
        if images[category.id] < _FEW_IMAGES:
            findings.add(problems.FEW_IMAGES, f"{category.name}: {images[category.id]}")


def _check_leakage(inspection: Inspection) -> None:
    """Add images of val that train has, by pixels or by name."""
    by_digest = {scan.digest: image for image, scan in inspection.train.pairs() if scan.digest}
    names = {image.path.stem for image in inspection.train.content.images}
    findings = inspection.findings["val"]
    for image, scan in inspection.splits["val"].pairs():
        if twin := by_digest.get(scan.digest):
            findings.add(problems.LEAKAGE, f"{image.path} = {twin.path.name}")
        # Class folders often number their images alike.
        elif image.path.stem in names and inspection.train.content.source.format != "class_folders":
            findings.add(problems.LEAKED_NAME, str(image.path))


def render(inspection: Inspection) -> str:
    """The splits, the table of problems, and the verdict."""
    lines = [_summary(split) for split in inspection.splits.values()]
    format = inspection.train.content.source.format
    if format == "class_folders":
        lines.append(f"classes: {', '.join(category.name for category in inspection.categories)}")
    elif format != "semantic":
        for kind, isthing in (("things", True), ("stuff", False)):
            if names := [c.name for c in inspection.categories if c.isthing == isthing]:
                lines.append(f"{kind}: {', '.join(names)}")
    lines.append(f"models: {_models(inspection)}")
    several = len(inspection.splits) > 1
    rows = [
        [
            f"{f'{split}: ' if several else ''}{'' if problem.blocks else '(note) '}{problem.text}",
            count,
            "\n".join(examples) + ("\n..." if count > len(examples) else ""),
            problem.cure,
        ]
        for split, findings in inspection.findings.items()
        for problem, count, examples in findings
    ]
    if rows:
        headers = ["problem", "count", "first examples", "what to do"]
        lines += ["", tabulate(rows, headers, tablefmt="grid", maxcolwidths=list(_WIDTHS))]
    verdict = "usable" if inspection.usable else "NOT usable: training or evaluation would fail or give wrong results"
    return "\n".join([*lines, "", verdict + (" (notes do not prevent training)" if rows and inspection.usable else "")])


def _models(inspection: Inspection) -> str:
    """The models that the data are for, with the tasks of their results."""
    format = inspection.train.content.source.format
    if format == "class_folders":
        return "an image classifier"
    models = serving(format, things=inspection.has_things)
    return "; ".join(f"{name} ({', '.join(tasks)})" for name, tasks in models.items())


def _summary(split: InspectedSplit) -> str:
    source, sizes = split.content.source, np.array(split.sizes or [(0, 0)])
    height, width = (int(median(sizes[:, axis])) for axis in (0, 1))
    smallest, largest = sizes[sizes.prod(axis=1).argmin()], sizes[sizes.prod(axis=1).argmax()]
    spread = f" ({smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]})" if len(set(split.sizes)) > 1 else ""
    return (
        f"{source.split}: {source.format}, {len(split.content.images)} images of {width} x {height}{spread}, "
        f"{len(split.content.categories)} classes"
        + ("" if source.format == "class_folders" else f", {split.total('segments').total()} segments")
    )
