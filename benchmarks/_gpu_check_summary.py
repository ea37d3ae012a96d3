#!/usr/bin/env python
"""What benchmarks/gpu_check.sh prints about its results: the machine, the steps, the tables, the targets.

python benchmarks/_gpu_check_summary.py FOLDER > summary.md
python benchmarks/_gpu_check_summary.py --machine cuda
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MODELS = ("step", "images a second", "peak GiB")
_ATTENTION = ("attention of all layers", "")
_BEGIN, _END = "<!-- gpu-check: begin -->", "<!-- gpu-check: end -->"


def summary(folder: Path) -> str:
    """Markdown of a folder of results: the machine, the steps, the tests and the targets."""
    # Torch is not imported here, because this runs after every step.
    steps = [line.split("\t") for line in _read(folder / "steps.tsv").splitlines()]
    parts = [_read(folder / "machine.log").strip()]
    parts.append(
        "\n".join(["| step | result | s |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c, *_ in steps)])
    )
    tests = re.findall(r"^.*\d+ (?:passed|failed|skipped).*$", _read(folder / "tests.log"), re.MULTILINE)
    if tests:
        parts.append(f"Tests: {tests[-1].strip('= ')}")
    found = [_target_row(*target) for target in targets(folder)]
    if found:
        parts.append("\n".join(["| target | asked | measured | reached |", "|---|---|---|---|", *found]))
    for heads, rows in ((_MODELS, models(folder, steps)), (_ATTENTION, attention(folder, steps))):
        if rows:
            cells = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
            parts.append("\n".join(cells))
    return "\n\n".join(part for part in parts if part) + "\n"


def models(folder: Path, steps: Iterable[Sequence[str]]) -> list[list[str]]:
    """Rows of the steps that measure a whole model or a training step."""
    lasts = ((step[0], _load(folder / f"{step[0]}.json").get("rows", [])[-1:]) for step in steps)
    keys = ("images a second", "peak GiB")
    return [[name, *(f"{row[key]:.3g}" for key in keys)] for name, rows in lasts for row in rows if keys[0] in row]


def attention(folder: Path, steps: Iterable[Sequence[str]]) -> list[list[str]]:
    """Rows of the sums over the layers of a model, with their ratios."""
    names = [step[0] for step in steps if step[0].startswith("attention")]
    sums = (_load(folder / f"{name}.json").get("summary", {}) for name in names)
    return [[text, f"{v:.3g}"] for values in sums for text, v in values.items() if isinstance(v, float)]


def tables(folder: Path) -> str:
    """Markdown of the tables of a folder of results, in the order of the steps."""
    order = [line.split("\t")[0] for line in _read(folder / "steps.tsv").splitlines()]
    paths = [folder / f"{name}.md" for name in order]
    found = [(path.stem, _read(path).strip()) for path in paths if path.is_file()]
    return "".join(f"\n{text.replace('# ', f'## {name}: ', 1)}\n" for name, text in found)


def insert(text: str, page: Path) -> None:
    """Replace what stands between the two markers of a page.

    Raises:
        ValueError: The page lacks a marker.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, also_found, after = rest.partition(_END)
    if not found or not also_found:
        raise ValueError(f"{page} has no lines {_BEGIN} and {_END}")
    page.write_text(f"{before}{_BEGIN}\n{text.strip()}\n{_END}{after}", encoding="utf-8")


def targets(folder: Path) -> Iterator[tuple[str, float, float | None]]:
    """Targets with the least value that was asked and the measured one, None if there is none yet."""
    attention, model = (_load(folder / f"{name}.json") for name in ("attention-bfloat16-forward", "model-bfloat16"))
    # A dry run measures nothing of interest.
    if "dry-run" in attention.get("command", ()):
        return
    for peer, asked in (("flex-tiles", 3.0), ("natten", 1 / 1.5)):
        sums = attention.get("summary", {})
        found = {n.rpartition(": ")[2]: v for n, v in sums.items() if f": {peer} / ours" in n}
        for name, value in (found or {f"{peer} / ours": None}).items():
            yield f"attention, bfloat16, forward, {name}", asked, value
    for row in model.get("rows", []) or [{}]:
        yield "model at 800 x 1333, bfloat16, images a second", 25.0, row.get("images a second")


def _target_row(name: str, asked: float, measured: float | None) -> str:
    known = ("not measured", "") if measured is None else (f"{measured:.3g}", "yes" if measured >= asked else "no")
    return f"| {name} | at least {asked:.3g} | {known[0]} | {known[1]} |"


def machine_facts(device: str) -> str:
    """The device and the versions that the numbers depend on, in one line."""
    import torch
    from _measure import describe, machine

    where = torch.device(device)
    facts = machine(where) | {"triton": version("triton") if find_spec("triton") else "absent"}
    if where.type == "cuda":
        facts["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(where))
        facts["memory GiB"] = round(torch.cuda.mem_get_info(where)[1] / 2**30)
    return describe(facts)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _load(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_read(path) or "{}")
    except json.JSONDecodeError:  # the step was ended while it wrote
        return {}


def main() -> int:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="folder of results")
    parser.add_argument("--machine", metavar="DEVICE", help="print the machine instead")
    parser.add_argument("--insert", type=Path, metavar="PAGE", help="write the summary between the markers of a page")
    options = parser.parse_args()
    if options.machine:
        print(machine_facts(options.machine))
    elif options.insert:
        insert(summary(options.folder), options.insert)
    else:
        print(f"# GPU check\n\n{summary(options.folder)}{tables(options.folder)}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
