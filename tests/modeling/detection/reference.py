"""A second implementation of the published detectors at inference, written from their description alone.

It works on weights under the published names and shares nothing with the package but the maps of the backbone.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))

State = Mapping[str, Tensor]


class Found(NamedTuple):
    """Detections in pixels of the image, by falling scores."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


class Detector:
    """A published detector."""

    def __init__(
        self,
        state: State,
        backbone: Callable[[Tensor], Mapping[str, Tensor]],
        scale: tuple[int, int],
        limit: int,
        threshold: float,
    ) -> None:
        """Set weights, backbone, limits of the longer and the shorter side, and of detections and their scores."""
        self.state, self.backbone = state, backbone
        self.scale, self.limit, self.threshold = scale, limit, threshold
        self.stages = 3 if "roi_head.bbox_head.0.fc_cls.weight" in state else 1
        self.original = self.size = (0, 0)

    def layer(self, x: Tensor, name: str, padding: int = 0) -> Tensor:
        """A convolution or a linear layer."""
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, padding=padding) if weight.ndim == 4 else F.linear(x, weight, bias)

    def head(self, kind: str, stage: int) -> str:
        """The name of a head."""
        return f"roi_head.{kind}_head.{stage}" if self.stages > 1 else f"roi_head.{kind}_head"

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> Found:
        """Detect objects in a uint8 RGB image [H, W, 3]."""
        height, width = self.original = (pixels.shape[0], pixels.shape[1])
        longer, shorter = self.scale
        factor = min(longer / max(height, width), shorter / min(height, width))
        new_height, new_width = self.size = (int(height * factor + 0.5), int(width * factor + 0.5))
        resized = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        padded = np.zeros((-(-new_height // 32) * 32, -(-new_width // 32) * 32, 3), np.float32)
        padded[:new_height, :new_width] = (resized.astype(np.float32) - MEAN) / STD
        factors = torch.tensor([new_width / width, new_height / height] * 2)
        maps = self.pyramid(self.backbone(torch.from_numpy(padded.transpose(2, 0, 1)[None].copy())))
        boxes = self.proposals(maps)
        logits = []
        for stage in range(self.stages):
            x = self.pooled(maps, boxes, 7)
            name = self.head("bbox", stage)
            for index in range(4 if f"{name}.shared_convs.0.conv.weight" in self.state else 0):
                x = self.layer(x, f"{name}.shared_convs.{index}.conv", 1)
                norm = [
                    self.state[f"{name}.shared_convs.{index}.bn.{leaf}"][:, None, None]
                    for leaf in ("running_mean", "running_var", "weight", "bias")
                ]
                x = ((x - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3]).relu()
            x = x.flatten(1)
            for index in range(2 if f"{name}.shared_fcs.1.weight" in self.state else 1):
                x = self.layer(x, f"{name}.shared_fcs.{index}").relu()
            logits.append(self.layer(x, f"{name}.fc_cls"))
            deltas = self.layer(x, f"{name}.fc_reg").reshape(len(x), -1, 4)
            if stage + 1 < self.stages:
                best = logits[-1][:, :-1].max(1).indices
                boxes = self.moved(boxes, deltas[torch.arange(len(best)), best], STDS[stage])
        scores = torch.softmax(sum(logits) / self.stages, 1)[:, :-1]
        candidates = []
        for label in range(scores.shape[1]):
            of_class = self.moved(boxes, deltas[:, label], STDS[self.stages - 1]) / factors
            above = scores[:, label] > self.threshold
            candidates.append((of_class[above], scores[above, label], torch.full((int(above.sum()),), label)))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        kept = separated_nms(boxes, scores, labels, 0.5)[: self.limit]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return Found(boxes, scores, labels, self.masks(maps, boxes, labels, boxes * factors))

    def pyramid(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps of strides 4 to 64."""
        merged = [self.layer(features[f"res{index + 2}"], f"neck.lateral_convs.{index}.conv") for index in range(4)]
        for index in (2, 1, 0):
            height, width = merged[index].shape[-2:]
            coarse_height, coarse_width = merged[index + 1].shape[-2:]
            rows = torch.arange(height) * coarse_height // height
            columns = torch.arange(width) * coarse_width // width
            merged[index] = merged[index] + merged[index + 1][:, :, rows][:, :, :, columns]
        maps = [self.layer(x, f"neck.fpn_convs.{index}.conv", 1) for index, x in enumerate(merged)]
        return [*maps, maps[-1][:, :, ::2, ::2]]

    def moved(self, boxes: Tensor, deltas: Tensor, stds: tuple[float, ...]) -> Tensor:
        """Boxes after deltas, clipped to the image."""
        dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(1)
        limit = abs(math.log(16 / 1000))
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        x = (boxes[:, 0] + boxes[:, 2]) / 2 + dx * width
        y = (boxes[:, 1] + boxes[:, 3]) / 2 + dy * height
        width, height = width * dw.clamp(-limit, limit).exp(), height * dh.clamp(-limit, limit).exp()
        sides = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        limits = (self.size[1], self.size[0]) * 2
        return torch.stack([side.clamp(0, limit) for side, limit in zip(sides, limits, strict=True)], 1)

    def proposals(self, maps: list[Tensor]) -> Tensor:
        """Boxes of regions."""
        boxes, scores, levels = [], [], []
        for level, x in enumerate(maps):
            x = self.layer(x, "rpn_head.rpn_conv", 1).relu()
            score = self.layer(x, "rpn_head.rpn_cls")[0].sigmoid()
            deltas = self.layer(x, "rpn_head.rpn_reg")[0]
            stride, (_, height, width) = 4 * 2**level, score.shape
            anchors, chosen_deltas, chosen_scores = [], [], []
            for ratio_index, ratio in enumerate((0.5, 1.0, 2.0)):
                w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                y, x0 = (
                    grid * float(stride)
                    for grid in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                )
                anchors.append(torch.stack([x0 - w / 2, y - h / 2, x0 + w / 2, y + h / 2], -1))
                chosen_deltas.append(deltas[4 * ratio_index : 4 * ratio_index + 4].permute(1, 2, 0))
                chosen_scores.append(score[ratio_index])
            anchor, delta = (torch.stack(parts, 2).reshape(-1, 4) for parts in (anchors, chosen_deltas))
            value = torch.stack(chosen_scores, 2).flatten()
            order = value.argsort(descending=True)[:1000]
            found = self.moved(anchor[order], delta[order], (1.0, 1.0, 1.0, 1.0))
            alive = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])
            boxes.append(found[alive])
            scores.append(value[order][alive])
            levels.append(torch.full((int(alive.sum()),), level))
        found, value = torch.cat(boxes), torch.cat(scores)
        return found[separated_nms(found, value, torch.cat(levels), 0.7)[:1000]]

    def pooled(self, maps: list[Tensor], boxes: Tensor, size: int) -> Tensor:
        """Features [N, C, size, size] of boxes, one after another."""
        result = torch.zeros(len(boxes), maps[0].shape[1], size, size)
        for index, box in enumerate(boxes):
            side = torch.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(int(torch.floor(torch.log2(side / 56 + 1e-6))), 0), 3)
            of_box = roi_align(maps[level], [box[None]], size, 0.25 / 2**level, 0, True)
            result[index] = of_box[0]
        return result

    def masks(self, maps: list[Tensor], boxes: Tensor, labels: Tensor, regions: Tensor) -> Tensor:
        """Masks [N, H, W] of boxes, whose places in the input are `regions`."""
        height, width = self.original
        result = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        pooled, probability = self.pooled(maps, regions, 14), torch.zeros(())
        for stage in range(self.stages if len(boxes) else 0):
            name, x = self.head("mask", stage), pooled
            for index in range(4):
                x = self.layer(x, f"{name}.convs.{index}.conv", 1).relu()
            upsample = (self.state[f"{name}.upsample.{leaf}"] for leaf in ("weight", "bias"))
            x = self.layer(F.conv_transpose2d(x, *upsample, stride=2).relu(), f"{name}.conv_logits")
            probability = probability + x.sigmoid() / self.stages
        for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            pasted = sampled(probability[index, label].numpy(), box, height, width)
            result[index] = torch.from_numpy(pasted >= 0.5)
        return result


def separated_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Greedy suppression inside groups, which are moved apart."""
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64)
    return nms(boxes + (groups * (boxes.max() + 1))[:, None], scores, iou)


def sampled(mask: np.ndarray, box: list[float], height: int, width: int) -> np.ndarray:
    """Bilinear values of a mask that fills a box, at the centres of pixels near the box; zero outside the mask."""
    result = np.zeros((height, width), np.float32)
    axes = []
    for first, last, cells, pixels in ((box[1], box[3], mask.shape[0], height), (box[0], box[2], mask.shape[1], width)):
        near = np.arange(max(math.floor(first) - 1, 0), min(math.ceil(last) + 1, pixels))
        if last > first:
            place = (near + 0.5 - first) / (last - first) * cells - 0.5
        else:
            place = np.full(len(near), (cells - 1) / 2)
        low = np.floor(place).astype(int)
        weights = np.zeros((len(near), cells))
        for cell, weight in ((low, low + 1 - place), (low + 1, place - low)):
            inside = (cell >= 0) & (cell < cells)
            weights[np.flatnonzero(inside), cell[inside]] += weight[inside]
        axes.append((near, weights))
    (rows, vertical), (columns, horizontal) = axes
    result[np.ix_(rows, columns)] = vertical @ mask @ horizontal.T
    return result
