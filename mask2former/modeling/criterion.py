"""The set prediction loss of Mask2Former (Cheng et al., CVPR 2022, sections 3.3 and 4.1).

Shapes:
    B: images; Q: queries; K: classes; M: targets of an image; P: points; N: matched masks of a batch
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor, nn

from .losses import dice_loss, sigmoid_ce_loss
from .matcher import HungarianMatcher, Match
from .point_sampling import draw_points, labelled_points, uncertain_points


class SetCriterion(nn.Module):
    """Match predictions to targets, then class, mask and dice loss of every layer."""

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
        """Make the criterion; keys of `MODEL.MASK_FORMER` say what the settings mean."""
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
            outputs: of the transformer decoder.
            classes: int64 [M] for each image.
            target_masks: bool [M, H, W] for each image, all of one H and W; M may be 0, or more than Q.
            void: bool [H, W] for each image, where no target has a pixel: neither losses nor costs look there. None:
                everywhere outside a target is background.
            target_counts: targets of each image of the whole batch that these images are a part of; losses of all parts
                then add up to those of the whole. None: these images are the whole batch.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice`, and the same of each auxiliary output with its number behind `_`.

        Raises:
            NonFiniteCostError: predictions have diverged.
        """
        layers = [*outputs["aux_outputs"], outputs] if self.deep_supervision else [outputs]
        logits = torch.stack([layer["pred_logits"] for layer in layers]).float()
        masks = torch.stack([layer["pred_masks"] for layer in layers])
        allowed = None
        if void is not None:
            allowed = [labelled_points(image_void) for image_void in void]
            # Where all is void, all targets are empty and nothing is known about them.
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
        """Targets per worker, at least 1."""
        count = torch.tensor(float(sum(counts)), device=device)
        # Processes that evaluate may have different numbers of batches, and can't wait for each other.
        if self.training and dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count = count / dist.get_world_size()
        return count.clamp(min=1)

    def _class_loss(
        self, logits: Tensor, matches: Sequence[Match], classes: Sequence[Tensor], target_counts: Sequence[int] | None
    ) -> Tensor:
        """Cross entropy of [B, Q, K + 1]; queries without a target shall say "no object", which weighs less."""
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        for image, match in enumerate(matches):
            labels[image, match.queries.to(labels.device)] = classes[image][match.targets.to(labels.device)]
        if target_counts is None:
            return F.cross_entropy(logits.transpose(1, 2), labels, self.empty_weight)
        # The mean is over the weights of all queries' labels: 1 for a class, less for "no object".
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
        """Sums over the matched masks, given predictions [B, Q, H, W] and all images' targets [sum of M, 1, H', W']."""
        query_index, target_index = [], []
        first_target = 0
        for image, (match, image_classes) in enumerate(zip(matches, classes, strict=True)):
            query_index.append(match.queries + image * masks.shape[1])
            target_index.append(match.targets + first_target)
            first_target += len(image_classes)
        predicted = masks.flatten(0, 1)[torch.cat(query_index).to(masks.device), None].float()  # [N, 1, H, W]
        if len(predicted) == 0:
            # Zero, and yet a gradient (of zeros) for every parameter, as distributed training expects.
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
