"""Where mask losses and costs look at masks (Kirillov et al., PointRend, CVPR 2020, section 3.1).

Shapes:
    N: masks; P: points; V: pixels that are not void
"""

from collections.abc import Callable

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor

from .losses import uncertainty


def draw_points(shape: tuple[int, int], allowed: Tensor | None, device: torch.device) -> Tensor:
    """Draw points uniformly.

    Args:
        shape: N and P.
        allowed: the points to choose from [V, 2], with V at least 1; None: everywhere.
        device: where to put them.

    Returns:
        [N, P, 2]: x and y, from 0 to 1 over the map.
    """
    if allowed is None:
        return torch.rand(*shape, 2, device=device)
    return allowed[torch.randint(len(allowed), shape, device=device)]


def labelled_points(void: Tensor) -> Tensor:
    """Centres of the pixels that are not void, where no void pixel takes part in interpolation: [H, W] to [V, 2]."""
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
    """Points of which a part is where the prediction is least certain, the rest uniform.

    Args:
        logits: [N, 1, H, W].
        num_points: P.
        oversample_ratio: how many times P candidates are drawn.
        importance_sample_ratio: the part of P that are the most uncertain candidates.
        draw: gives so many uniform points for each mask, [N, so many, 2].

    Returns:
        [N, P, 2].
    """
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = draw(int(oversample_ratio * num_points))
    doubt = uncertainty(point_sample(logits, candidates, align_corners=False)[:, 0])
    chosen = doubt.topk(num_uncertain, dim=1).indices[:, :, None].expand(-1, -1, 2)
    points = candidates.gather(1, chosen)
    return torch.cat([points, draw(num_points - num_uncertain)], dim=1) if num_uncertain < num_points else points
