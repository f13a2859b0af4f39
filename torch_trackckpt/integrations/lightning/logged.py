"""What a training has logged in this epoch, for means over an epoch that was interrupted.

Lightning adds up each value that is logged with ``on_epoch=True``, and does not save the sums. Here they are saved, and
given back when the value is logged for the first time after a resume: only then Lightning says how it is reduced.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from torch_trackckpt.integrations.lightning.package import ResultCollection

__all__ = ["LoggedInEpoch", "logged_in_epoch", "logged_metrics"]

_logger = logging.getLogger("torch_trackckpt")

Sums = dict[str, dict[str, torch.Tensor]]
"""By the key of a logged value: what Lightning keeps for it. Metrics of torchmetrics keep it themselves."""


def logged_in_epoch(results: Any) -> Sums:
    """The sums of a training's results, as they are now."""
    sums: Sums = dict(results.waiting) if isinstance(results, LoggedInEpoch) else {}
    for key, metric in results.items():
        if metric.is_tensor and metric.meta.on_epoch and not metric.has_reset:
            sums[key] = {name: getattr(metric, name) for name in metric._defaults}
    return sums


def logged_metrics(results: Any) -> list[str]:
    """The names of the metrics in the module that were logged, which Lightning resets when the epoch is over."""
    found = [m.meta.metric_attribute for m in results.values() if not m.is_tensor and not m.has_reset]
    return sorted({name for name in found if name is not None})


class LoggedInEpoch(ResultCollection):
    """The results of an epoch that goes on.

    Args:
        sums: those that were saved.
    """

    def __init__(self, sums: Sums) -> None:
        super().__init__(training=True)
        self.waiting = dict(sums)
        """Sums of values that have not been logged again."""

    def update_metrics(self, key: str, value: Any, batch_size: int) -> None:
        metric, stored = self[key], self.waiting.pop(key, {})
        if metric.is_tensor:
            for name in metric._defaults.keys() & stored.keys():
                setattr(metric, name, stored[name].to(value.device))
        super().update_metrics(key, value, batch_size)

    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        if metrics is None and fx is None:
            if self.waiting:
                _logger.warning(
                    "These were logged before the resume and not after it in the same epoch; they are missing among "
                    "its metrics: %s",
                    ", ".join(sorted(self.waiting)),
                )
            self.waiting = {}
        super().reset(metrics, fx)
