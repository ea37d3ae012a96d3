"""Batch norms over the images of all processes, for processes without a GPU."""

import torch
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, nn


class SyncBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's `SyncBatchNorm` for any device.

    Statistics are those of one process with the positions of all images. Detectron2's `NaiveSyncBatchNorm` takes the
    mean over processes, whatever they hold, and keeps the biased variance.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W], where B may be 0 and differ between processes."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        # In autocast, too, statistics are computed in float32.
        x = input.float()
        count = x.numel() // x.shape[1]
        if count:
            variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        else:
            # Zeros that keep this process in the graph of the others.
            mean = variance = x.sum((0, 2, 3))
        own = torch.cat([mean, variance, x.new_tensor([count])])
        of_all = torch.stack(differentiable_all_gather(own))
        counts, (means, variances) = of_all[:, -1:].detach(), of_all[:, :-1].chunk(2, 1)
        number = counts.sum().clamp(min=1)
        mean = (counts * means).sum(0) / number
        variance = (counts * (variances + (means - mean).square())).sum(0) / number
        self._update(mean.detach(), variance.detach(), number)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, number: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * number / (number - 1).clamp(min=1), momentum)


def replace_sync_batch_norms(model: nn.Module) -> None:
    """Replace PyTorch's `SyncBatchNorm`, which several processes can only train on GPUs, by `SyncBatchNorm2d`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.SyncBatchNorm):
                norm = SyncBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
                norm.load_state_dict(child.state_dict())
                module.add_module(name, norm.to(next(child.parameters()).device))
