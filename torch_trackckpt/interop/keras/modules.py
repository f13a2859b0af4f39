"""Modules that do what a Keras layer does and no module of torch.nn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["KerasBatchNorm1d", "KerasBatchNorm2d", "KerasNormalization"]


class _KerasBatchNorm(_BatchNorm):
    biased_running_var = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            variance, mean = torch.var_mean(input, [axis for axis in range(input.dim()) if axis != 1], correction=0)
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)
        return functional.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


class KerasBatchNorm1d(_KerasBatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose running variance is that of Keras 3, and of Keras 2 for vectors: biased, the mean of
    squares over the batch.

    Torch takes n / (n - 1) of it, as for a sample. Outputs are the same in training; in inference they are Keras's.
    The arguments are torch's, whose momentum is 1 minus Keras's: 0.01 for Keras's default.

    Example:
        >>> norm = KerasBatchNorm1d(1, eps=1e-3, momentum=1.0)
        >>> _ = norm(torch.tensor([[0.0], [2.0]]))
        >>> norm.running_var
        tensor([1.])
    """


class KerasBatchNorm2d(_KerasBatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` whose running variance is that of Keras 3; see `KerasBatchNorm1d`.

    Keras 2 computes it for images as torch does, with a kernel of its own: its checkpoints need `torch.nn.BatchNorm2d`.

    Example:
        >>> norm = KerasBatchNorm2d(1, momentum=1.0)
        >>> _ = norm(torch.tensor([[[[0.0, 2.0]]]]))
        >>> norm.running_var
        tensor([1.])
    """


class KerasNormalization(nn.Module):
    """Keras's Normalization: ``(x - mean) / max(sqrt(variance), 1e-7)``, by statistics that were computed before.

    Args:
        shape: of the statistics; the last axes of the input.

    Example:
        >>> KerasNormalization([2])(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """

    mean: torch.Tensor
    variance: torch.Tensor
    count: torch.Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("variance", torch.ones(*shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return (input - self.mean) / self.variance.sqrt().clamp(min=1e-7)
