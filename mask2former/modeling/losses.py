"""Mask losses at sampled points, the same as costs of all pairs of a query and a target, and the sampling of points.

Points are sampled as in PointRend (Kirillov et al., CVPR 2020, section 3.1).

Shapes:
    N: masks; Q: queries; M: targets; P: points; V: pixels that are not void
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor


def sigmoid_ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each mask [N], the mean over its points, from logits and labels [N, P]."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the dice coefficient of each mask [N], smoothed by 1 (V-Net, 2016), from logits and labels [N, P]."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * labels).sum(1)
    return 1 - (overlap + 1) / (probabilities.sum(1) + labels.sum(1) + 1)


def sigmoid_ce_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """`sigmoid_ce_loss` of all pairs [..., Q, M], from logits [..., Q, P] and labels [M, P]."""
    # BCE is softplus(-x) where the label is 1 and softplus(x) = x + softplus(-x) where it is 0.
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return ((positive - negative) @ labels.T + negative.sum(-1, keepdim=True)) / logits.shape[-1]


def dice_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """`dice_loss` of all pairs [..., Q, M], from logits [..., Q, P] and labels [M, P]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ labels.T
    return 1 - (overlap + 1) / (probabilities.sum(-1, keepdim=True) + labels.sum(-1) + 1)


def class_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """Negative probability of each target's class [..., Q, M], from logits [..., Q, K + 1] and classes [M]."""
    return -logits.softmax(-1)[..., classes]


def uncertainty(logits: Tensor) -> Tensor:
    """Closeness of each point to the decision boundary; larger values are closer (PointRend, section 3.1)."""
    return -torch.abs(logits)


def draw_points(shape: tuple[int, int], allowed: Tensor | None, device: torch.device) -> Tensor:
    """Draw points uniformly.

    Args:
        shape: N and P.
        allowed: Points to choose from [V, 2], with V at least 1; None: all positions.
        device: Device of the points.

    Returns:
        Points [N, P, 2]: x and y, from 0 to 1 over the map.
    """
    if allowed is None:
        return torch.rand(*shape, 2, device=device)
    return allowed[torch.randint(len(allowed), shape, device=device)]


def labelled_points(void: Tensor) -> Tensor:
    """Centres [V, 2] of the pixels that are not void, where interpolation uses no void pixel, from a mask [H, W]."""
    height, width = void.shape
    rows, columns = (~void).nonzero().unbind(1)
    return torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=1)


def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    draw: Callable[[int], Tensor],
) -> Tensor:
    """Draw points of which a part lies where the prediction is least certain; the rest is uniform.

    Args:
        logits: Mask logits [N, 1, H, W].
        num_points: Number of points P.
        oversample_ratio: Number of candidates, as a multiple of P.
        importance_sample_ratio: Share of P that the most uncertain candidates make up.
        draw: Function that draws a number of uniform points for each mask, [N, number, 2].

    Returns:
        Points [N, P, 2].
    """
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = draw(int(oversample_ratio * num_points))
    doubt = uncertainty(point_sample(logits, candidates, align_corners=False)[:, 0])
    chosen = doubt.topk(num_uncertain, dim=1).indices[:, :, None].expand(-1, -1, 2)
    points = candidates.gather(1, chosen)
    return torch.cat([points, draw(num_points - num_uncertain)], dim=1) if num_uncertain < num_points else points
