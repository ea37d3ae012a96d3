"""Which boxes belong to which targets in the training of the published detectors.

Shapes:
    N: boxes; M: targets
"""

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


class LowQualityMatcher(Matcher):
    """Detectron2's matcher, in which a target also takes the boxes with which it overlaps most, from an IoU on.

    Such boxes become positive and belong to this target, even if they overlap more with another one. Detectron2's own
    option has no lowest IoU and leaves them with the other target.
    """

    def __init__(self, thresholds: Sequence[float], labels: Sequence[int], lowest: float) -> None:
        """Set the limits.

        Args:
            thresholds: IoUs that separate the labels, ascending.
            labels: Labels 0 (background), -1 (ignored) and 1 (positive) of the ranges between the thresholds.
            lowest: Lowest IoU of a target's best boxes.
        """
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches=False)
        self.lowest = lowest

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match the boxes of IoUs [M, N]; returns the target of each box, int64 [N], and its label, int8 [N]."""
        matches, labels = super().__call__(match_quality_matrix)
        if match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            taken = (match_quality_matrix == best) & (best >= self.lowest)
            targets, boxes = taken.nonzero(as_tuple=True)
            matches.scatter_reduce_(0, boxes, targets, "amax", include_self=False)
            labels[boxes] = 1
        return matches, labels


class AppendedTargetsMatcher:
    """A matcher of proposals, for boxes at whose end the targets themselves stand.

    Each target belongs to itself. The others are matched as if there were none, so that a target's best box is a
    proposal.
    """

    def __init__(self, matcher: Matcher) -> None:
        """Take the matcher of the proposals."""
        self.matcher = matcher

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match the boxes of IoUs [M, N + M]; returns the target of each box, int64 [N + M], and its label, int8."""
        targets = len(match_quality_matrix)
        matches, labels = self.matcher(match_quality_matrix[:, : match_quality_matrix.shape[1] - targets])
        own = torch.arange(targets, device=matches.device)
        return torch.cat([matches, own]), torch.cat([labels, labels.new_ones(targets)])
