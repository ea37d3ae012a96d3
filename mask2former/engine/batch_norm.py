"""Batch norms over the images of all processes, for processes without a GPU."""

import torch
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
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
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = differentiable_all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        # A graph for all processes, also if none of them has an image.
        number = total[-1].detach().clamp(min=1)
        mean = total[:-1] / number
        centred = x - mean[:, None, None]
        variance = differentiable_all_reduce(centred.square().sum((0, 2, 3))) / number
        self._update(mean.detach(), variance.detach(), number)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

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
