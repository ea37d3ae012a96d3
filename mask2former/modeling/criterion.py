"""The set prediction loss of Mask2Former (Cheng et al., CVPR 2022, sections 3.3 and 4.1).

Losses look at sampled points of masks, as in PointRend (Kirillov et al., CVPR 2020, section 3.1).

Shapes:
    B: images; Q: queries; K: classes; M: targets of an image; P: points; N: matched masks of a batch
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor, nn

from .matcher import HungarianMatcher, Match, draw_points, labelled_points


class SetCriterion(nn.Module):
    """Set prediction loss: Hungarian matching of queries and targets, then class, mask and dice loss of every layer."""

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        deep_supervision: bool = True,
    ) -> None:
        """Set weights and sampling; `mask2former.config` explains each setting."""
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.deep_supervision = deep_supervision
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        outputs: dict[str, Any],
        classes: Sequence[Tensor],
        target_masks: Sequence[Tensor],
        void: Sequence[Tensor] | None = None,
        target_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute weighted losses; in training mode, of a batch that all processes share.

        Args:
            outputs: Predictions of the transformer decoder.
            classes: Classes of each image's targets, int64 [M].
            target_masks: Masks of each image's targets, bool [M, H, W], all of one H and W; M may be 0 or exceed Q.
            void: Unlabelled pixels of each image, bool [H, W], outside all targets: losses and costs ignore them. None:
                all pixels outside a target are background.
            target_counts: Number of targets of each image of the whole batch, if these images are a part of it; the
                losses of all parts then add up to those of the whole. None: these images are the whole batch.

        Returns:
            `loss_ce`, `loss_mask` and `loss_dice`, and for each auxiliary output the same with the suffix `_<number>`.

        Raises:
            NonFiniteCostError: The predictions have diverged.
        """
        layers = [*outputs["aux_outputs"], outputs] if self.deep_supervision else [outputs]
        logits = torch.stack([layer["pred_logits"] for layer in layers]).float()
        masks = torch.stack([layer["pred_masks"] for layer in layers])
        allowed = None
        if void is not None:
            allowed = [labelled_points(image_void) for image_void in void]
            # Targets of an image that is all void are empty.
            classes = [c if len(points) else c[:0] for c, points in zip(classes, allowed, strict=True)]
            target_masks = [m if len(points) else m[:0] for m, points in zip(target_masks, allowed, strict=True)]
        num_masks = self._average_targets(target_counts or [len(target) for target in classes], logits.device)
        matches = self.matcher(logits, masks, classes, target_masks, allowed)
        targets = torch.cat(list(target_masks))[:, None].float()
        losses = {}
        for index, match in enumerate(matches):
            suffix = "" if index == len(layers) - 1 else f"_{index}"
            loss_mask, loss_dice = self._mask_losses(masks[index], targets, match, classes, allowed)
            layer_losses = {
                "loss_ce": self._class_loss(logits[index], match, classes, target_counts),
                "loss_mask": loss_mask / num_masks,
                "loss_dice": loss_dice / num_masks,
            }
            losses.update({name + suffix: self.weights[name] * loss for name, loss in layer_losses.items()})
        return losses

    def _average_targets(self, counts: Sequence[int], device: torch.device) -> Tensor:
        """Average number of targets per process, at least 1."""
        count = torch.tensor(float(sum(counts)), device=device)
        # Not in evaluation: processes may have different numbers of batches and can't wait for each other.
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _class_loss(
        self, logits: Tensor, matches: Sequence[Match], classes: Sequence[Tensor], target_counts: Sequence[int] | None
    ) -> Tensor:
        """Cross entropy of logits [B, Q, K + 1]; unmatched queries are labelled "no object", with a lower weight."""
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        for image, match in enumerate(matches):
            labels[image, match.queries.to(labels.device)] = classes[image][match.targets.to(labels.device)]
        if target_counts is None:
            return F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight)
        # The mean is weighted: 1 for the label of a class, less for "no object".
        queries = logits.shape[1]
        matched = sum(min(queries, count) for count in target_counts)
        total_weight = matched + self.empty_weight[-1] * (queries * len(target_counts) - matched)
        return F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight, reduction="sum") / total_weight

    def _mask_losses(
        self,
        masks: Tensor,
        targets: Tensor,
        matches: Sequence[Match],
        classes: Sequence[Tensor],
        allowed: Sequence[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Sums over matched masks, from predictions [B, Q, H, W] and targets of all images [sum of M, 1, H', W']."""
        query_index, target_index = [], []
        first_target = 0
        for image, (match, image_classes) in enumerate(zip(matches, classes, strict=True)):
            query_index.append(match.queries + image * masks.shape[1])
            target_index.append(match.targets + first_target)
            first_target += len(image_classes)
        predicted = masks.flatten(0, 1)[torch.cat(query_index).to(masks.device), None].float()  # [N, 1, H, W]
        if len(predicted) == 0:
            # Distributed training needs a gradient for every parameter, even if it is zero.
            return predicted.sum(), predicted.sum()
        targets = targets[torch.cat(target_index).to(targets.device)]
        counts = [len(match.queries) for match in matches]

        def draw(number: int) -> Tensor:
            if allowed is None:
                return draw_points((len(predicted), number), None, masks.device)
            drawn = [
                draw_points((count, number), points, masks.device)
                for count, points in zip(counts, allowed, strict=True)
                if count
            ]
            return torch.cat(drawn)

        with torch.no_grad():
            points = uncertain_points(
                predicted, self.num_points, self.oversample_ratio, self.importance_sample_ratio, draw
            )
            labels = point_sample(targets, points, align_corners=False)[:, 0]
        sampled = point_sample(predicted, points, align_corners=False)[:, 0]
        return sigmoid_ce_loss(sampled, labels).sum(), dice_loss(sampled, labels).sum()


def sigmoid_ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each mask [N], the mean over its points, from logits and labels [N, P]."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the dice coefficient of each mask [N], smoothed by 1 (V-Net, 2016), from logits and labels [N, P]."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * labels).sum(1)
    return 1 - (overlap + 1) / (probabilities.sum(1) + labels.sum(1) + 1)


def uncertainty(logits: Tensor) -> Tensor:
    """Closeness of each point to the decision boundary; larger values are closer (PointRend, section 3.1)."""
    return -torch.abs(logits)


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
