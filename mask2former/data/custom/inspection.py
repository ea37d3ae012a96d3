"""Look at every file of a data set, and report whether it can be used."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from mask2former.data.custom import problems
from mask2former.data.custom.problems import Findings
from mask2former.data.custom.reading import read_source
from mask2former.data.custom.scan import Scan, Scanner
from mask2former.data.custom.source import Content, Source, Split
from mask2former.data.datasets.registry import AnnotationError, Category
from mask2former.utils.parallel import processes, report_interval

_RARE = 100
_FEW_IMAGES = 10
# Share of a class's pixels with instance numbers from which it counts as a thing.
_THING_SHARE = 0.5
# Of the columns of the table; paths stay whole, so that they can be copied.
_WIDTHS = (44, None, None, 44)


@dataclass(frozen=True)
class Inspected:
    """A split with what its files hold.

    Attributes:
        content: its classes and images.
        scans: one per image.
    """

    content: Content
    scans: tuple[Scan, ...]

    def total(self, what: str) -> Counter[int]:
        """Category id -> sum over the images of "pixels", "segments" or "numbered"."""
        total: Counter[int] = Counter()
        for scan in self.scans:
            total.update(getattr(scan, what))
        return total

    def images(self) -> Counter[int]:
        """Category id -> images that have it."""
        return Counter(category for scan in self.scans for category in scan.segments)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the images that can be read."""
        return [scan.size for scan in self.scans if scan.size]


@dataclass(frozen=True)
class Inspection:
    """What was found in all splits."""

    splits: Mapping[Split, Inspected]
    findings: Mapping[Split, Findings]

    @property
    def usable(self) -> bool:
        """Whether nothing is in the way of training and evaluation."""
        return not any(findings.blocking for findings in self.findings.values())

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes, which all splits share."""
        return next(iter(self.splits.values())).content.categories

    @property
    def train(self) -> Inspected:
        """The split to train on."""
        return self.splits["train"]


def inspect_sources(sources: Sequence[Source], workers: int) -> Inspection:
    """Read and check splits of a data set.

    Args:
        sources: one for training and perhaps one for evaluation.
        workers: processes that open files.

    Raises:
        AnnotationError: an annotation file that isn't in COCO's format, splits of different classes, or no images.
        SourceError: a list of classes that can't be used.
    """
    contents = [read_source(source) for source in sources]
    if any(_classes(content) != _classes(contents[0]) for content in contents):
        raise AnnotationError(f"train and val have different classes: {_difference(contents)}")
    scans = [_scan_all(content, workers) for content in contents]
    if contents[0].derive_things:
        things = _things(contents[0].categories, (scan for of_split in scans for scan in of_split))
        contents = [content.with_things(things) for content in contents]
    splits = {content.source.split: Inspected(content, scan) for content, scan in zip(contents, scans, strict=True)}
    findings = {split: inspected.content.findings for split, inspected in splits.items()}
    for split, inspected in splits.items():
        _collect(inspected, findings[split])
    _check_balance(splits, findings)
    if len(splits) > 1:
        _check_leakage(splits, findings["val"])
    return Inspection(splits, findings)


def _classes(content: Content) -> list[tuple[int, str]]:
    return [(category.id, category.name) for category in content.categories]


def _difference(contents: Sequence[Content]) -> str:
    first, second = (set(_classes(content)) for content in (contents[0], contents[-1]))
    return ", ".join(f"{identity} {name}" for identity, name in sorted(first ^ second)[:5]) or "their order"


def _scan_all(content: Content, workers: int) -> tuple[Scan, ...]:
    source = content.source
    scanner = Scanner(source.format, frozenset(c.id for c in content.categories), source.ignore_label, content.palette)
    # Starting processes takes longer than opening a few files.
    with processes(workers if len(content.samples) > 100 else 1) as run_all:
        scans = run_all(scanner, content.samples)
        label = f"reading {source.split}"
        return tuple(tqdm(scans, label, len(content.samples), unit="image", mininterval=report_interval(), delay=1))


def _things(categories: Sequence[Category], scans: Iterable[Scan]) -> frozenset[int]:
    pixels: Counter[int] = Counter()
    numbered: Counter[int] = Counter()
    for scan in scans:
        pixels.update(scan.pixels)
        numbered.update(scan.numbered)
    return frozenset(c.id for c in categories if numbered[c.id] > _THING_SHARE * pixels[c.id])


def _collect(inspected: Inspected, findings: Findings) -> None:
    """Add what the scans found."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    things = {c.id: c.name for c in inspected.content.categories if c.isthing}
    combines = inspected.content.source.format == "semantic_instance"
    for sample, scan in zip(inspected.content.samples, inspected.scans, strict=True):
        for problem, where in scan.found:
            findings.add(problem, where)
        if scan.digest:
            seen[scan.digest].append(sample.image.name)
        for category in things.keys() & scan.pixels.keys() if combines else ():
            if scan.numbered[category] < scan.pixels[category]:
                findings.add(problems.UNNUMBERED, f"{sample.numbers}: {things[category]}")
    if not inspected.total("segments"):
        findings.add(problems.NO_LABEL_AT_ALL, inspected.content.source.split)
    for names in seen.values():
        if len(names) > 1:
            findings.add(problems.DUPLICATE, " = ".join(names[:3]))


def _check_balance(splits: Mapping[Split, Inspected], findings: Mapping[Split, Findings]) -> None:
    (split, first), *_ = splits.items()
    images, segments = first.images(), first.total("segments")
    most = max(segments.values(), default=0)
    for category in first.content.categories:
        count = segments[category.id]
        if count == 0:
            others = [other for other in splits if other != split and splits[other].images()[category.id]]
            findings[split].add(problems.NEVER_USED, category.name + (f" (in {others[0]} it is)" if others else ""))
            continue
        if count * _RARE < most:
            findings[split].add(problems.IMBALANCE, f"{category.name}: {count} of {most}")
        if images[category.id] < _FEW_IMAGES:
            findings[split].add(problems.FEW_IMAGES, f"{category.name}: {images[category.id]}")


def _check_leakage(splits: Mapping[Split, Inspected], findings: Findings) -> None:
    train, val = splits["train"], splits["val"]
    by_digest = {
        scan.digest: sample for sample, scan in zip(train.content.samples, train.scans, strict=True) if scan.digest
    }
    names = {sample.image.stem for sample in train.content.samples}
    for sample, scan in zip(val.content.samples, val.scans, strict=True):
        twin = by_digest.get(scan.digest)
        if twin:
            findings.add(problems.LEAKAGE, f"{sample.image} = {twin.image.name}")
        elif sample.image.stem in names:
            findings.add(problems.LEAKED_NAME, str(sample.image))


def render(inspection: Inspection) -> str:
    """The splits, the table of problems, and the verdict."""
    lines = [_summary(split, inspected) for split, inspected in inspection.splits.items()]
    things = [c.name for c in inspection.categories if c.isthing]
    stuff = [c.name for c in inspection.categories if not c.isthing]
    for kind, names in (("things", things), ("stuff", stuff)):
        if names and inspection.train.content.source.format != "semantic":
            lines.append(f"{kind}: {', '.join(names)}")
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
    verdict = "usable" if inspection.usable else "NOT usable: training or evaluation would stop, or give wrong numbers"
    return "\n".join([*lines, "", verdict + (" (notes are no obstacle)" if rows and inspection.usable else "")])


def _summary(split: Split, inspected: Inspected) -> str:
    content, sizes = inspected.content, np.array(inspected.sizes or [(0, 0)])
    height, width = (int(median(sizes[:, axis])) for axis in (0, 1))
    smallest, largest = sizes[sizes.prod(axis=1).argmin()], sizes[sizes.prod(axis=1).argmax()]
    spread = f" ({smallest[1]} x {smallest[0]} to {largest[1]} x {largest[0]})" if len(set(inspected.sizes)) > 1 else ""
    return (
        f"{split}: {content.source.format}, {len(content.samples)} images of {width} x {height}{spread}, "
        f"{len(content.categories)} classes, {inspected.total('segments').total()} segments"
    )
