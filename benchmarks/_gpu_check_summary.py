#!/usr/bin/env python
"""What benchmarks/gpu_check.sh prints about its results: the machine, the steps, the tables, the targets.

python benchmarks/_gpu_check_summary.py FOLDER > summary.md
python benchmarks/_gpu_check_summary.py --machine cuda
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    found = [f"| {name} | {target} | {result:.3g} |" for name, target, result in targets(folder)]
    if found:
        parts.append("\n".join(["| target | asked | measured |", "|---|---|---|", *found]))
    return "\n\n".join(part for part in parts if part) + "\n"


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


def targets(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Targets with what was asked and what was measured, as far as it was measured."""
    attention, model = (_load(folder / f"{name}.json") for name in ("attention-bfloat16-forward", "model-bfloat16"))
    # A dry run measures nothing of interest.
    sums = {} if "dry-run" in attention.get("command", ()) else attention.get("summary", {})
    for peer, asked in (("flex-tiles", "at least 3"), ("natten", "at least 0.67")):
        for name, value in sums.items():
            if f": {peer} / ours" in name:
                yield f"attention, bfloat16, forward, {name.rpartition(': ')[2]}", asked, value
    for row in model.get("rows", []) if "1333" in model.get("command", ()) else []:
        yield "model at 800 x 1333, bfloat16, images a second", "at least 25", row["images a second"]


def machine_facts(device: str) -> str:
    """The device and the versions that the numbers depend on, in one line."""
    import torch
    import triton
    from _measure import describe, machine

    where = torch.device(device)
    facts = machine(where) | {"triton": triton.__version__}
    if where.type == "cuda":
        facts["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(where))
        facts["memory GiB"] = round(torch.cuda.mem_get_info(where)[1] / 2**30)
    return describe(facts)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _load(path: Path) -> dict[str, Any]:
    return json.loads(_read(path) or "{}")


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
