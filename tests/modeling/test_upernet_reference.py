"""UPerNet's head and its ways of prediction against a second implementation, written from their description alone."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mask2former.data.resizing import build_test_resize
from mask2former.test_time_augmentation import SemanticSegmentorWithTTA

from .upernet import MODELS, make_model, published_weights, settings

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# Name of a model, size of an image: strips, single pixels, odd sizes, larger than the limits.
CASES = [("dinat", (150, 50)), ("nat", (9, 70)), ("dinat_s", (1, 1)), ("dinat_s", (33, 17)), ("dinat", (70, 300))]


class Reference:
    """A UPerNet in evaluation mode, on weights under the published names and the maps of our backbone."""

    def __init__(self, state, backbone):
        self.state, self.backbone = state, backbone

    def block(self, x, name):
        """A convolution without bias, a batch norm and a ReLU."""
        weight = self.state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        mean, variance, scale, shift = (
            self.state[f"{name}.bn.{leaf}"].view(1, -1, 1, 1)
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) * scale / (variance + 1e-5).sqrt() + shift).clamp(min=0)

    def logits(self, pixels):
        """Logits [K, H, W] at the size of pixels [H, W, 3] of 0 to 255."""
        image = torch.from_numpy(((pixels.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None].copy())
        features = self.backbone(image)
        fine, middle, coarse, last = (features[f"res{level}"] for level in (2, 3, 4, 5))
        height, width = last.shape[-2:]
        pools = [last]
        for index, bins in enumerate((1, 2, 3, 6)):
            cells = torch.stack(
                [
                    torch.stack(
                        [
                            last[
                                0,
                                :,
                                i * height // bins : -(-(i + 1) * height // bins),
                                j * width // bins : -(-(j + 1) * width // bins),
                            ].mean((1, 2))
                            for j in range(bins)
                        ],
                        -1,
                    )
                    for i in range(bins)
                ],
                -2,
            )[None]
            pools.append(enlarged(self.block(cells, f"decode_head.psp_modules.{index}.1"), height, width))
        top = self.block(torch.cat(pools, 1), "decode_head.bottleneck")
        sums = {3: top}
        for index, x in ((2, coarse), (1, middle), (0, fine)):
            lateral = self.block(x, f"decode_head.lateral_convs.{index}")
            sums[index] = lateral + enlarged(sums[index + 1], *lateral.shape[-2:])
        outputs = [self.block(sums[index], f"decode_head.fpn_convs.{index}") for index in range(3)] + [top]
        joined = torch.cat([enlarged(x, *fine.shape[-2:]) for x in outputs], 1)
        x = self.block(joined, "decode_head.fpn_bottleneck")
        x = F.conv2d(x, self.state["decode_head.conv_seg.weight"], self.state["decode_head.conv_seg.bias"])
        return enlarged(x, *pixels.shape[:2])[0]

    def windows(self, pixels, size, stride):
        """Mean of the logits of windows."""
        height, width = pixels.shape[:2]
        total, count = 0.0, torch.zeros(height, width)
        rows, columns = (
            math.ceil(max(length - side, 0) / step) + 1
            for length, side, step in ((height, size[0], stride[0]), (width, size[1], stride[1]))
        )
        for row in range(rows):
            for column in range(columns):
                bottom, right = min(row * stride[0] + size[0], height), min(column * stride[1] + size[1], width)
                y, x = max(bottom - size[0], 0), max(right - size[1], 0)
                logits = torch.zeros(len(self.state["decode_head.conv_seg.bias"]), height, width)
                logits[:, y:bottom, x:right] = self.logits(pixels[y:bottom, x:right])
                count[y:bottom, x:right] += 1
                total = total + logits
        return total / count

    def probabilities(self, pixels, ratio=1.0, flip=False, windows=None):
        """Probabilities [K, H, W] at the size of pixels, which are resized inside (256, 64) times a ratio."""
        height, width = pixels.shape[:2]
        longer, shorter = int(256 * ratio), int(64 * ratio)
        factor = min(longer / max(height, width), shorter / min(height, width))
        size = int(width * factor + 0.5), int(height * factor + 0.5)
        resized = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        resized = resized[:, ::-1].copy() if flip else resized
        logits = self.windows(resized, *windows) if windows else self.logits(resized)
        found = enlarged(logits[None], height, width)[0].exp()
        found = found / found.sum(0)
        return found.flip(2) if flip else found


def enlarged(x, height, width):
    """Bilinear values at the centres of pixels."""
    for axis, length in ((2, height), (3, width)):
        before = x.shape[axis]
        place = ((torch.arange(length) + 0.5) * (before / length) - 0.5).clamp(0, before - 1)
        low = place.floor().long()
        high, weight = (low + 1).clamp(max=before - 1), (place - low).view(-1, *[1] * (3 - axis))
        x = x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight
    return x


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1][0]}x{case[1][1]}")
def case(request, deterministic):
    """Name of a model, its weights, and pixels."""
    name, size = request.param
    assert name in MODELS
    pixels = deterministic.image(f"upernet.{name}", *size).transpose(1, 2, 0)
    return name, published_weights(name, deterministic), np.ascontiguousarray(pixels)


def inputs_of(cfg, pixels):
    resized = build_test_resize(cfg).get_transform(pixels).apply_image(pixels)
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return {"image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))} | size


@torch.no_grad()
@pytest.mark.parametrize("windows", [None, ((48, 64), (32, 40))])
def test_prediction(case, windows):
    name, state, pixels = case
    cfg = settings(name)
    if windows is not None:
        cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_SIZE, cfg.MODEL.PIXEL_CLASSIFIER.WINDOW_STRIDE = map(list, windows)
    model = make_model(cfg, state)
    found = model([inputs_of(cfg, pixels)])[0]["sem_seg"]
    expected = Reference(state, model.backbone).probabilities(pixels, windows=windows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", [("nat", (9, 70)), ("dinat_s", (33, 17))], indirect=True, ids=["nat", "dinat_s"])
def test_several_scales(case, tmp_path):
    name, state, pixels = case
    cfg = settings(name)
    model = make_model(cfg, state)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    inputs = inputs_of(cfg, pixels) | {"file_name": str(tmp_path / "image.png")}
    found = SemanticSegmentorWithTTA(cfg, model)([inputs])[0]["sem_seg"]
    reference = Reference(state, model.backbone)
    views = [reference.probabilities(pixels, ratio, flip) for ratio in RATIOS for flip in (False, True)]
    torch.testing.assert_close(found, sum(views) / 12, rtol=0, atol=1e-4)
