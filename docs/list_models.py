#!/usr/bin/env python
"""Write the tables of docs/models.md from `mask2former.model_zoo`, and draw its picture: `python docs/list_models.py`.

A table stands between two comments with its name, `<!-- table: upernet -->` and `<!-- end -->`.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from mask2former.model_zoo import MODELS, Group, PublishedModel

DOCS = Path(__file__).resolve().parent
PAGE, PICTURE = DOCS / "models.md", DOCS / "pictures" / "models_receptive_field.png"
TABLE = re.compile(r"(?<=<!-- table: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)
NUMBERS: dict[Group, dict[str, Callable[[PublishedModel], str]]] = {
    "classification": {"top-1": lambda model: metric(model, "top1")},
    "detection": {
        "box AP": lambda model: metric(model, "box AP"),
        "mask AP": lambda model: metric(model, "mask AP"),
    },
    "upernet": {
        "mIoU": lambda model: metric(model, "mIoU"),
        "multi-scale": lambda model: f"{model.published_multi_scale['mIoU']:.1f}",
    },
    "mask2former": {
        "published": lambda model: (
            ", ".join(f"{name} {value}" for name, value in model.published.items())
            + (" (multi-scale)" if model.multi_scale else "")
        )
    },
}


def metric(model: PublishedModel, name: str) -> str:
    """A published metric, empty if there is none."""
    return f"{model.published[name]:.1f}" if name in model.published else ""


def models_table(group: Group) -> str:
    """Table of the models of a group, in Markdown."""
    columns = NUMBERS[group]
    rows = []
    for model in MODELS.values():
        if model.group == group:
            mark = " *" if model.counts_doubt or model.doubt else ""
            config, file = f"[`{model.name}`](../{model.config_file}){mark}", f"[`{model.checkpoint}`]"
            numbers = (column(model) for column in columns.values())
            rows.append((config, *numbers, model.parameters, model.flops, f"{file}({model.checkpoint_url})"))
    return _markdown(rows, ("model and config", *columns, "parameters", "FLOPs", "checkpoint"))


def doubts_table() -> str:
    """Table of all doubts, in Markdown; models with the same doubt share a row."""
    rows: dict[str, list[str]] = {}
    for model in MODELS.values():
        for doubt in filter(None, (model.counts_doubt, model.doubt)):
            rows.setdefault(doubt, []).append(f"`{model.name}`")
    return _markdown([(", ".join(names), doubt) for doubt, names in rows.items()], ("model", "remark"))


def _markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def with_tables(text: str) -> str:
    """A page with its tables written anew."""
    tables = {group: models_table(group) for group in NUMBERS} | {"doubts": doubts_table()}
    return TABLE.sub(lambda match: f"{match[1]} -->\n\n{tables[match[1]]}\n\n", text)


def draw_picture() -> None:
    """Draw the receptive fields of a model with and without dilation, in few colours."""
    tool = [sys.executable, str(DOCS.parent / "tools" / "analyze_model.py"), "--model", "dinat_mini", "--compare"]
    subprocess.run([*tool, "--receptive-field", str(PICTURE)], check=True, stdout=subprocess.DEVNULL)
    with Image.open(PICTURE) as picture:
        smaller = picture.convert("RGB").resize(
            (picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS
        )
    smaller.quantize(64, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    draw_picture()
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
