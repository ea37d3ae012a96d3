"""The classifier that all networks of the family end in: a norm, the mean over the positions, and a linear layer.

Its methods and attributes are those that the tools of the timm library expect of a model; timm is not needed.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .blocks import WITH_GROUP_BEFORE, Trunk, initialize
from .config import BackboneConfigError


class Classifier(Trunk):
    """The classifier on top of a trunk; each family combines it with its own.

    The LayerNorm comes before the mean over the positions, as in the published models.

    Attributes:
        num_features: Channels of the pooled features.
        head_hidden_size: The same number under another name of timm.
        num_classes: Number of classes; with 0 the model returns the pooled features.
        global_pool: "avg" for the mean over the positions, or "" for none.
        output_fmt: Order of the axes of `forward_features`.
        feature_info: Channels (`num_chs`), stride (`reduction`) and module of each stage.
        pruned: Beginnings of the names of the weights that `prune_intermediate_layers` removed.
    """

    output_fmt = "NHWC"

    def __init__(self, *, num_classes: int = 1000, global_pool: str = "avg", **settings: Any) -> None:
        """Create the classifier.

        Args:
            num_classes: Number of classes; 0 for features.
            global_pool: "avg", or "" for maps instead of pooled features.
            settings: Settings of the trunk.

        Raises:
            BackboneConfigError: `global_pool` is neither.
        """
        super().__init__(**settings)
        self.num_features = self.head_hidden_size = self.dims[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.feature_info = [
            {"num_chs": stage.channels, "reduction": stage.stride, "module": stage.module} for stage in self.stages()
        ]
        self.pruned: tuple[str, ...] = ()
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a new one.

        Args:
            num_classes: Number of classes; with 0 there is no linear layer.
            global_pool: New value of the attribute; None keeps it.

        Raises:
            BackboneConfigError: `global_pool` is neither "avg" nor "".
        """
        if global_pool not in (None, "avg", ""):
            raise BackboneConfigError(f"global_pool {global_pool!r}: expected 'avg' (the mean) or '' (no pooling)")
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        initialize(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether the backward pass recomputes the activations inside blocks instead of keeping them."""
        self.set_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Further names without weight decay: none, as in the published training, which decayed `rpb`."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort the weights by depth, for a learning rate that decays with it.

        Args:
            coarse: Whether a level is one group instead of each block.
        """
        return {"stem": r"^patch_embed", "blocks": [*self.layer_patterns(coarse), (r"^norm", WITH_GROUP_BEFORE)]}

    def forward_features(self, image: Tensor) -> Tensor:
        """Map a normalized image [B, 3, H, W] to the normalized last map [B, H', W', num_features]."""
        output = image
        for output in self.level_maps(image):  # noqa: B007 - the last one, without keeping the others in memory
            pass
        return self.norm(output)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the result of `forward_features` to logits [B, num_classes], or to pooled features if asked for."""
        pooled = features.mean(dim=(1, 2)) if self.global_pool else features
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """Map a normalized image [B, 3, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(image))

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute maps of stages: of the levels, or of the blocks of a network with one level.

        Args:
            image: Normalized image [B, 3, H, W].
            indices: Stages in the order of `feature_info`; negative numbers count from the end, and one number n means
                the last n. By default all.
            norm: Whether the last norm is applied to the maps of the last level; it fits no other.
            stop_early: Whether to compute nothing after the last of the stages. If that is not the last one of the
                network, the result of `forward_features` is that of a network which ends there.
            output_fmt: "NCHW" or "NHWC", order of the axes of the maps.
            intermediates_only: Whether to return the maps only.

        Returns:
            Maps of the stages in the order of depth; with `intermediates_only` false, a pair of the result of
            `forward_features` and the maps.

        Raises:
            BackboneConfigError: There is no such stage, or `output_fmt` is unknown.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise BackboneConfigError(f"output_fmt {output_fmt!r}: expected NCHW or NHWC")
        taken, maps, output = self._stage_numbers(indices), [], image
        for stage, x in enumerate(self.stage_maps(image)):
            # The norm has the width of the last level.
            output = self.norm(x) if x.shape[-1] == self.num_features else x
            if stage in taken:
                shown = output if norm else x
                maps.append(shown.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else shown)
            if stage == taken[-1] and (stop_early or intermediates_only):
                break
        return maps if intermediates_only else (output, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of stages do not need.

        Args:
            indices: Stages as in `forward_intermediates`.
            prune_norm: Whether to remove the last norm; it goes anyway with the last level.
            prune_head: Whether to remove the linear layer.

        Returns:
            Numbers of the stages.
        """
        taken, stages = self._stage_numbers(indices), self.stages()
        gone = [f"{stage.module}." for stage in stages[taken[-1] + 1 :]]
        if gone:
            gone.append(f"{stages[taken[-1]].module}.downsample.")
            self.keep_stages(taken[-1] + 1)
        if prune_norm or (gone and len(self.dims) > 1):
            self.norm = nn.Identity()
            gone.append("norm.")
        if prune_head:
            self.reset_classifier(0, "")
            gone.append("head.")
        self.pruned = (*self.pruned, *gone)
        return taken

    def _stage_numbers(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.stages())
        if indices is None or isinstance(indices, int):
            wanted = list(range(count))[-indices:] if indices else list(range(count))
            valid = indices is None or 0 < indices <= count
        else:
            wanted = sorted({index % count for index in indices if -count <= index < count})
            valid = len(wanted) == len(indices) > 0
        if not valid:
            raise BackboneConfigError(f"indices {indices}: the network has {count} stages, from 0 to {count - 1}")
        return wanted
