"""The result as HTML: the photograph under an SVG of its segments, and a table of them.

Pointing at a region, tapping it or moving the focus to it shows its name and score and marks its row, and the other
way round; `overlay.js` does this and `page.css` gives the looks. Everything is in the text itself: nothing is loaded.
"""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.data.classes import Color
from mask2former.data.coco_format import tight_box
from mask2former.prediction.results import Prediction, Rgb

# Outlines stay this close to the masks, in pixels: it saves most of their points.
_OUTLINE_TOLERANCE = 0.7
# A small photograph is shown large: its masks are enlarged smoothly to this before their outlines are taken.
_SMOOTH_SIDE = 800
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Region:
    """A segment as the page shows it.

    Attributes:
        mask: bool [H, W], of the size of the picture shown.
        box: x, y, width, height of the tight box around it.
        name: of the class.
        color: RGB, 0..255.
        score: 0..1, or None for results without one.
    """

    mask: NDArray[np.bool_]
    box: Sequence[int]
    name: str
    color: Color
    score: float | None

    @property
    def label(self) -> str:
        """Name and score."""
        return self.name if self.score is None else f"{self.name} {100 * self.score:.0f}%"


def message_html(text: str, *, error: bool = False) -> str:
    """A message in the place of a result."""
    role = ' role="alert"' if error else ""
    return f'<div class="m2f-message{" m2f-error" if error else ""}"{role}>{html.escape(text)}</div>'


def photo_html(photo: Rgb, name: str) -> str:
    """A photograph [H, W, 3] alone, while its result is made."""
    return f'{_figure(photo, name, "")}<p class="m2f-caption" role="status">Looking at {html.escape(name)} …</p>'


def result_html(result: Prediction, name: str, original: Rgb, hint: str) -> str:
    """A photograph with the regions of its result, and a table of them.

    Args:
        result: of the photograph as it is shown, which it remembers.
        name: of the photograph.
        original: the photograph before it was made smaller for the page.
        hint: what to do where there is no region.

    Raises:
        ValueError: the result does not remember its image.
    """
    if result.image is None:
        raise ValueError("the result does not remember its image")
    found = regions(result)
    height, width = original.shape[:2]
    count = f"{len(found)} segment{'' if len(found) == 1 else 's'}"
    size = f"{width} × {height} pixels"
    advice = "Point at or tap a region to see its name." if found else hint
    caption = f"<b>{count}</b> in {html.escape(name)} ({size}). {html.escape(advice)}"
    paths = [_path(number, region) for number, region in enumerate(found)]
    # The best instance comes first, and lies on top.
    overlay = "".join(reversed(paths) if result.task == "instance" else paths)
    table = _table(found, height / result.size[0]) if found else ""
    return f'{_figure(result.image, name, overlay)}<p class="m2f-caption">{caption}</p>{table}'


def regions(result: Prediction) -> list[Region]:
    """The segments of a result that have a pixel, in their order, coloured as in the result's picture."""
    segments = list(result.entries_and_masks())
    colors = result.classes.segment_colors([entry for entry, _ in segments])
    return [
        Region(mask, tight_box(mask), entry["category_name"], color, entry.get("score"))
        for (entry, mask), color in zip(segments, colors, strict=True)
        if mask.any()
    ]


def outline(mask: NDArray[np.bool_]) -> str:
    """The edge of a mask [H, W], holes included, as SVG path data for the fill rule "evenodd"."""
    factor = math.ceil(_SMOOTH_SIDE / max(mask.shape))
    pixels = mask.astype(np.uint8)
    if factor > 1:
        larger = (mask.shape[1] * factor, mask.shape[0] * factor)
        blurred = cv2.GaussianBlur(cv2.resize(255 * pixels, larger), (0, 0), 0.7 * factor)
        pixels = (blurred > 127).astype(np.uint8)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join(_closed(cv2.approxPolyDP(contour, _OUTLINE_TOLERANCE, True)[:, 0], factor) for contour in contours)


def _closed(points: NDArray[Any], factor: int) -> str:
    # Contours run through the centres of pixels.
    corners = ((points + 0.5) / factor).round(2).tolist()
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in corners) + "Z"


def _figure(photo: Rgb, name: str, overlay: str) -> str:
    height, width = photo.shape[:2]
    # Tall pictures are as wide as lets them fit on the screen.
    return (
        f'<figure class="m2f-stage" style="aspect-ratio:{width}/{height};max-width:calc(70vh*{width / height:.4f})">'
        f'<img src="{_data_uri(photo)}" alt="{html.escape(name)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{overlay}</svg>'
        '<output class="m2f-tip"></output></figure>'
    )


def _path(number: int, region: Region) -> str:
    return (
        f'<path data-region="{number}" d="{outline(region.mask)}" fill="{_hex(region.color)}" '
        f'stroke="{_hex(region.color)}" tabindex="0" role="img" aria-label="{html.escape(region.label)}"/>'
    )


def _table(regions: Sequence[Region], scale: float) -> str:
    scored = any(region.score is not None for region in regions)
    head = _row("th", ["Segment", *(["Score"] if scored else []), "Area", "Box: x, y, width, height"])
    rows = []
    for number, region in enumerate(regions):
        score = "" if region.score is None else f"{100 * region.score:.1f}%"
        swatch = f'<i style="background:{_hex(region.color)}"></i>{html.escape(region.name)}'
        box = ", ".join(f"{scale * side:.0f}" for side in region.box)
        cells = [swatch, *([score] if scored else []), f"{100 * region.mask.mean():.1f}%", box]
        rows.append(_row("td", cells, f' data-region="{number}"'))
    return (
        '<div class="m2f-table"><table aria-label="Segments">'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cell: str, texts: Iterable[str], attributes: str = "") -> str:
    return f"<tr{attributes}>{''.join(f'<{cell}>{text}</{cell}>' for text in texts)}</tr>"


def _data_uri(photo: Rgb) -> str:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(photo[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
