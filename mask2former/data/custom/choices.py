"""Settings that were chosen, and why."""

from dataclasses import dataclass, field
from typing import Any

from mask2former.utils.errors import UserError


class RecipeError(UserError):
    """A machine or choice that no training fits."""


@dataclass(frozen=True)
class Machine:
    """What to train on.

    Attributes:
        gpu_memory: GiB of each GPU; 0: there is none.
        gpus: how many.
        processors: of the machine.
    """

    gpu_memory: float
    gpus: int
    processors: int


@dataclass
class Recipe:
    """Settings and why they are what they are.

    Attributes:
        size: the DiNAT, as in configs/_base_/dinat_SIZE.yaml.
        values: config keys, with dots, and their values.
        reasons: lines of text.
    """

    size: str
    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def set(self, reason: str, **values: Any) -> None:
        """Set keys (with "__" for dots) for a reason."""
        self.values |= {key.replace("__", "."): value for key, value in values.items()}
        self.reasons.append(reason)
