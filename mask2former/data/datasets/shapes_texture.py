"""Colours and textures of the `shapes` data set: float32 RGB pictures [H, W, 3] in 0..1, drawn from a RandomState."""

import colorsys

import cv2
import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

_STUFF_HUES = {"stripes": 0.33, "checks": 0.0, "gradient": 0.66}


def stuff_texture(rng: RandomState, kind: str, size: int) -> Pixels:
    """The texture of a stuff category ("stripes", "checks" or "gradient"), in two muted colours."""
    dark, light = _muted_colors(rng, _STUFF_HUES[kind])
    across, along = rotated_grid(rng.uniform(0, np.pi), size)
    if kind == "stripes":
        period = size * rng.uniform(0.06, 0.12)
        weight = np.clip(2 * np.sin(2 * np.pi * across / period + rng.uniform(0, 6)) + 0.5, 0, 1)
    elif kind == "checks":
        cell = size * rng.uniform(0.05, 0.09)
        weight = np.clip(3 * np.sin(np.pi * across / cell) * np.sin(np.pi * along / cell) + 0.5, 0, 1)
    elif kind == "gradient":
        weight = across / np.ptp(across) + 0.5 + 0.08 * _smooth_noise(rng, size, sigma=size / 16)
    else:
        raise ValueError(f"unknown stuff texture {kind!r}")
    return _blend(dark, light, weight)


def thing_texture(rng: RandomState, color: NDArray[np.float32], size: int) -> Pixels:
    """A faint texture around one colour: plain, shaded, striped or mottled."""
    across, _ = rotated_grid(rng.uniform(0, 2 * np.pi), size)
    kind = rng.randint(4)
    if kind == 0:
        weight = np.zeros((size, size))
    elif kind == 1:
        weight = across / np.ptp(across) * 2
    elif kind == 2:
        weight = np.sin(2 * np.pi * across / (size * rng.uniform(0.03, 0.06))) / 2
    else:
        weight = _smooth_noise(rng, size, sigma=1.5)
    return np.clip(color * (1 + 0.3 * weight[:, :, None]), 0, 1).astype(np.float32)


def vivid_color(rng: RandomState, hue: float) -> NDArray[np.float32]:
    """A bright RGB colour of a hue (0..1) that `_near` draws."""
    color = colorsys.hsv_to_rgb(_near(rng, hue), rng.uniform(0.45, 1), rng.uniform(0.55, 1))
    return np.array(color, np.float32)


def _near(rng: RandomState, hue: float) -> float:
    """A hue: most often near the typical one of a category, now and then any, so that colour alone does not decide."""
    drawn = rng.normal(hue, 0.05) if rng.rand() < 0.95 else rng.rand()
    return float(drawn % 1)


def rotated_grid(angle: float, size: int) -> tuple[Pixels, Pixels]:
    """Pixel coordinates [size, size] from the centre, along `angle` (radians) and across it."""
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _muted_colors(rng: RandomState, typical_hue: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    hue, value = _near(rng, typical_hue), rng.uniform(0.2, 0.6)
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.25, 0.55), value)
    light = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.05)) % 1, rng.uniform(0.25, 0.55), value + rng.uniform(0.2, 0.4))
    return np.array(dark, np.float32), np.array(light, np.float32)


def _smooth_noise(rng: RandomState, size: int, sigma: float) -> Pixels:
    """Noise without details finer than `sigma` pixels, with mean 0 and standard deviation 1."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), sigma)
    return (noise - noise.mean()) / noise.std()


def _blend(first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.floating]) -> Pixels:
    weight = np.clip(weight, 0, 1)[:, :, None]
    return (first * (1 - weight) + second * weight).astype(np.float32)
