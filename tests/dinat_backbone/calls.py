"""Random calls of neighborhood attention, and their results with gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinat_backbone import neighborhood_attention_2d


def random_inputs(
    shape: Sequence[int],
    kernel_size: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    with_bias: bool = True,
    projected: bool = False,
) -> list[Tensor | None]:
    """Query, key and value [B, H, W, heads, D] of a type, and a bias in float32 (float64 with float64) or None.

    With `projected`, the maps are parts of one tensor with larger strides, as a linear projection returns them.
    """
    drawn = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    if projected:
        maps = torch.randn(*shape[:3], 3, *shape[3:], **drawn).to(dtype).unbind(3)
    else:
        maps = [torch.randn(*shape, **drawn).to(dtype) for _ in range(3)]
    rpb = torch.randn(shape[3], 2 * kernel_size - 1, 2 * kernel_size - 1, **drawn)
    return [*maps, rpb if with_bias else None]


def results(
    inputs: Sequence[Tensor | None],
    kernel_size: int,
    dilation: int,
    backend: str,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The output and the gradients of all inputs that are not None, computed in a type or in that of the inputs.

    The gradient of the output is the same for all backends.
    """
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    output = neighborhood_attention_2d(*leaves, kernel_size, dilation, backend=backend)
    gradient = 2 * torch.rand(output.shape, generator=torch.Generator().manual_seed(0)) - 1
    gradient = gradient.to(output.device, inputs[0].dtype).to(output.dtype)
    given = [x for x in leaves if x is not None]
    return [output.detach(), *torch.autograd.grad(output, given, gradient)]
