"""Lightning exists twice: the classes of ``lightning.pytorch`` and of ``pytorch_lightning`` do not know each other.

The one that the program has imported already is taken; where both are or none is, ``lightning.pytorch``.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

__all__ = [
    "BaseFinetuning",
    "Callback",
    "Checkpoint",
    "GradientAccumulationScheduler",
    "LightningDataModule",
    "LightningModule",
    "Metric",
    "ResultCollection",
    "StochasticWeightAveraging",
    "Trainer",
]


def _is_imported(package: str) -> bool:
    return sys.modules.get(package) is not None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


_is_only_import = _is_imported("pytorch_lightning") and not _is_imported("lightning.pytorch")

if not TYPE_CHECKING and (_is_only_import or (_is_installed("pytorch_lightning") and not _is_installed("lightning"))):
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import (
        BaseFinetuning,
        Checkpoint,
        GradientAccumulationScheduler,
        StochasticWeightAveraging,
    )
    from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection as ResultCollection
    from torchmetrics import Metric
elif TYPE_CHECKING or _is_installed("lightning"):
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import (
        BaseFinetuning,
        Checkpoint,
        GradientAccumulationScheduler,
        StochasticWeightAveraging,
    )
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection as ResultCollection
    from torchmetrics import Metric
else:
    raise ModuleNotFoundError(
        "torch_trackckpt.integrations.lightning needs Lightning, which is not installed: "
        "pip install 'torch_trackckpt[lightning]'"
    )
