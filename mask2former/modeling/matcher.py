"""Bipartite matching of predictions and targets (Carion et al., DETR, ECCV 2020, section 3.1).

Shapes:
    B: images; Q: queries; K: classes; M: targets of an image; N: masks; P: points; V: pixels that are not void
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dinat_common.errors import UserError


class NonFiniteCostError(UserError, FloatingPointError):
    """A matching cost is NaN or infinite; the message names the loss term."""


class Match(NamedTuple):
    """Pairs of one image: query `queries[i]` is matched with target `targets[i]`; int64 [min(Q, M)] on the CPU."""

    queries: Tensor
    targets: Tensor


class HungarianMatcher(nn.Module):
    """One-to-one assignment with the lowest sum of class, mask and dice costs, at points drawn once per image."""

    def __init__(self, cost_class: float, cost_mask: float, cost_dice: float, num_points: int) -> None:
        super().__init__()
        self.weights = {"class": cost_class, "mask": cost_mask, "dice": cost_dice}
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self,
        logits: Tensor,
        masks: Tensor,
        classes: Sequence[Tensor],
        target_masks: Sequence[Tensor],
        allowed: Sequence[Tensor] | None = None,
    ) -> list[list[Match]]:
        """Match the predictions of several layers.

        Args:
            logits: Class logits [layers, B, Q, K + 1].
            masks: Mask logits [layers, B, Q, H, W].
            classes: Classes of each image's targets, int64 [M].
            target_masks: Masks of each image's targets [M, H', W'], over the same area as `masks`.
            allowed: Points [V, 2] of each image at which masks may be compared, see `draw_points`; V may be 0 for an
                image without targets. None: all positions.

        Returns:
            For each layer, a match for each image.

        Raises:
            NonFiniteCostError: A cost is NaN or infinite.
        """
        per_image = [
            self._costs(
                logits[:, image],
                masks[:, image],
                classes[image],
                target_masks[image],
                allowed[image] if allowed is not None and len(classes[image]) else None,
            )
            for image in range(len(classes))
        ]
        # One copy to the host for all images and layers.
        flat = torch.cat([torch.stack(list(costs.values())).flatten() for costs in per_image]).cpu()
        sizes = [len(self.weights) * len(logits) * logits.shape[2] * len(target) for target in classes]
        matches = []
        for image, part in enumerate(flat.split(sizes)):
            terms = part.view(len(self.weights), len(logits), logits.shape[2], len(classes[image]))
            self._check_finite(terms, image)
            matches.append([_assign(cost) for cost in terms.sum(0)])
        return [list(layer) for layer in zip(*matches, strict=True)]

    def _costs(
        self, logits: Tensor, masks: Tensor, classes: Tensor, target_masks: Tensor, allowed: Tensor | None
    ) -> dict[str, Tensor]:
        """Weighted cost terms [layers, Q, M] of one image."""
        points = draw_points((1, self.num_points), allowed, masks.device)
        with torch.autocast(masks.device.type, enabled=False):
            masks = masks.float()
            predicted = point_sample(masks, points.expand(len(masks), -1, -1), align_corners=False)
            labels = point_sample(target_masks[None].float(), points, align_corners=False)[0]
            costs = {
                "class": class_cost(logits.float(), classes),
                "mask": sigmoid_ce_cost(predicted, labels),
                "dice": dice_cost(predicted, labels),
            }
            return {name: self.weights[name] * cost for name, cost in costs.items()}

    def _check_finite(self, terms: Tensor, image: int) -> None:
        if terms.isfinite().all():
            return
        for name, cost in zip(self.weights, terms, strict=True):
            broken = int((~cost.isfinite()).sum())
            if broken:
                raise NonFiniteCostError(
                    f"the {name} cost of matching is NaN or infinite for {broken} of {cost.numel()} pairs of query and "
                    f"target (image {image} of the batch): the predictions have diverged. A lower SOLVER.BASE_LR, or "
                    "SOLVER.AMP.ENABLED False, usually helps"
                )


def _assign(cost: Tensor) -> Match:
    queries, targets = linear_sum_assignment(cost.numpy())
    return Match(torch.from_numpy(queries), torch.from_numpy(targets))


def class_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """Negative probability of each target's class [..., Q, M], from logits [..., Q, K + 1] and classes [M]."""
    return -logits.softmax(-1)[..., classes]


def sigmoid_ce_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of all pairs [..., Q, M], from logits [..., Q, P] and labels [M, P]."""
    # BCE is softplus(-x) where the label is 1 and softplus(x) = x + softplus(-x) where it is 0.
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return ((positive - negative) @ labels.T + negative.sum(-1, keepdim=True)) / logits.shape[-1]


def dice_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss of all pairs [..., Q, M], from logits [..., Q, P] and labels [M, P]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ labels.T
    return 1 - (overlap + 1) / (probabilities.sum(-1, keepdim=True) + labels.sum(-1) + 1)


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
