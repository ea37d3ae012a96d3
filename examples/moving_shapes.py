"""Draw a video of moving things of the shapes data set: python examples/moving_shapes.py FILE.mp4 [FRAMES]."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from dinat_common.errors import run_script
from mask2former.data.datasets.shapes import CATEGORIES, Thing, paint_thing, stuff_texture, vivid_color
from mask2former.video import write_video

# Class, start, movement per frame and radius, as fractions of the side: two of one class, and a pair that crosses.
THINGS = (
    (0, (0.2, 0.25), (0.012, 0.004), 0.15),
    (0, (0.8, 0.75), (-0.01, -0.006), 0.15),
    (1, (0.2, 0.75), (0.012, 0.0), 0.16),
    (2, (0.78, 0.25), (-0.004, 0.012), 0.17),
)


def moving_shapes(frames: int, size: int = 192) -> Iterator[NDArray[np.uint8]]:
    """Frames, RGB [size, size, 3]; things bounce at the border, later ones pass in front."""
    for number in range(frames):
        image = stuff_texture(RandomState(3), "gradient", size)
        for index, (category, start, step, radius) in enumerate(THINGS):
            center = bounced(np.array(start) + number * np.array(step), radius) * size
            rng = RandomState(index)
            color = vivid_color(rng, category / 4)
            paint_thing(rng, image, Thing(CATEGORIES[category], center, radius * size, color))
        noisy = image + RandomState(number).normal(0, 0.01, image.shape)
        yield np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def bounced(position: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Position of a thing that turns round where it would leave the unit square."""
    free = 1 - 2 * radius
    there_and_back = (position - radius) % (2 * free)
    return radius + np.minimum(there_and_back, 2 * free - there_and_back)


def write_moving_shapes(path: Path, frames: int, size: int = 192, rate: float = 25.0) -> None:
    """Write the video; a large file in a codec that hardly changes the pixels."""
    with write_video(path, "MJPG" if path.suffix == ".avi" else "mp4v", rate, (size, size)) as write:
        for frame in moving_shapes(frames, size):
            write(frame)


def main() -> None:
    """Run the command line."""
    write_moving_shapes(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100)


if __name__ == "__main__":
    run_script(main)
