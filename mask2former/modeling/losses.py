"""Mask losses on sampled points, and the same as costs between all pairs of a query and a target.

Shapes:
    N: masks; Q: queries; M: targets; P: points
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each mask, the mean over its points: [N, P] each, to [N]."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the dice coefficient of each mask, smoothed by 1 (Milletari et al., V-Net, 3DV 2016): [N, P] to [N]."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * labels).sum(1)
    return 1 - (overlap + 1) / (probabilities.sum(1) + labels.sum(1) + 1)


def sigmoid_ce_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """`sigmoid_ce_loss` of all pairs: logits [..., Q, P] and labels [M, P] to [..., Q, M]."""
    # BCE is softplus(-x) where the label is 1 and softplus(x) = x + softplus(-x) where it is 0.
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return ((positive - negative) @ labels.T + negative.sum(-1, keepdim=True)) / logits.shape[-1]


def dice_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """`dice_loss` of all pairs: logits [..., Q, P] and labels [M, P] to [..., Q, M]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ labels.T
    return 1 - (overlap + 1) / (probabilities.sum(-1, keepdim=True) + labels.sum(-1) + 1)


def class_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """Minus the probability of each target's class: logits [..., Q, K + 1] and classes [M] to [..., Q, M]."""
    return -logits.softmax(-1)[..., classes]


def uncertainty(logits: Tensor) -> Tensor:
    """How close to the decision boundary each point is, the larger the closer (PointRend, CVPR 2020, section 3.1)."""
    return -torch.abs(logits)
