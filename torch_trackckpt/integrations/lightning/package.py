"""Lightning exists twice: the classes of ``lightning.pytorch`` and of ``pytorch_lightning`` do not know each other.

The one that the program has imported already is taken; where both are or none is, ``lightning.pytorch``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

_PACKAGES = {"lightning", "pytorch_lightning"}

if TYPE_CHECKING:
    import lightning.pytorch as pl
elif sys.modules.get("pytorch_lightning") and not sys.modules.get("lightning.pytorch"):
    import pytorch_lightning as pl
else:
    try:
        import lightning.pytorch as pl
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _PACKAGES:
            raise
        try:
            import pytorch_lightning as pl
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _PACKAGES:
                raise
            raise ModuleNotFoundError(
                "torch_trackckpt.integrations.lightning needs Lightning, which is not installed: "
                "pip install 'torch_trackckpt[lightning]'",
                name="lightning",
            ) from error

__all__ = [
    "BaseFinetuning",
    "Callback",
    "Checkpoint",
    "GradientAccumulationScheduler",
    "LightningDataModule",
    "LightningModule",
    "ResultCollection",
    "StochasticWeightAveraging",
    "Trainer",
]

BaseFinetuning = pl.callbacks.BaseFinetuning
Callback = pl.Callback
Checkpoint = pl.callbacks.Checkpoint
GradientAccumulationScheduler = pl.callbacks.GradientAccumulationScheduler
LightningDataModule = pl.LightningDataModule
LightningModule = pl.LightningModule
StochasticWeightAveraging = pl.callbacks.StochasticWeightAveraging
Trainer = pl.Trainer

if TYPE_CHECKING:
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection as ResultCollection
else:
    ResultCollection = pl.trainer.connectors.logger_connector.result._ResultCollection
