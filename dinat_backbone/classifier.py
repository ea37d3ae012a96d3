"""The classifier that all networks of the family end in: a norm, the mean over the positions, and a linear layer."""

from typing import Any

from torch import Tensor, nn

from .blocks import Trunk, initialize


class Classifier(Trunk):
    """The classifier on top of a trunk; each family combines it with its own.

    The LayerNorm comes before the mean over the positions, as in the published models.

    Attributes:
        num_features: Channels of the pooled features.
        num_classes: Number of classes; with 0 the model returns the pooled features.
    """

    def __init__(self, *, num_classes: int = 1000, **settings: Any) -> None:
        """Create the classifier.

        Args:
            num_classes: Number of classes.
            settings: Settings of the trunk.
        """
        super().__init__(**settings)
        self.num_features = self.dims[-1]
        self.norm = nn.LayerNorm(self.num_features)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the linear layer by a new one for `num_classes` classes, or by nothing if that is 0."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        initialize(self.head)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map a normalized image [B, 3, H, W] to the normalized last map [B, H', W', num_features]."""
        *_, output = self.level_maps(image)
        return self.norm(output)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the result of `forward_features` to logits [B, num_classes], or to pooled features if asked for."""
        pooled = features.mean(dim=(1, 2))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """Map a normalized image [B, 3, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(image))
