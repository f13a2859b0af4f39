"""Lightning exists twice: the classes of ``lightning.pytorch`` and of ``pytorch_lightning`` do not know each other.

The one that the program has imported already is taken; where both are or none is, ``lightning.pytorch``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = [
    "BaseFinetuning",
    "Callback",
    "Checkpoint",
    "LightningDataModule",
    "LightningModule",
    "StochasticWeightAveraging",
    "Trainer",
]

_PACKAGES = {"lightning", "pytorch_lightning"}

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import BaseFinetuning, Checkpoint, StochasticWeightAveraging
elif sys.modules.get("pytorch_lightning") and not sys.modules.get("lightning.pytorch"):
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import BaseFinetuning, Checkpoint, StochasticWeightAveraging
else:
    try:
        from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
        from lightning.pytorch.callbacks import BaseFinetuning, Checkpoint, StochasticWeightAveraging
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in _PACKAGES:
            raise
        try:
            from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
            from pytorch_lightning.callbacks import BaseFinetuning, Checkpoint, StochasticWeightAveraging
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _PACKAGES:
                raise
            raise ModuleNotFoundError(
                "torch_trackckpt.integrations.lightning needs Lightning, which is not installed: "
                "pip install 'torch_trackckpt[lightning]'",
                name="lightning",
            ) from error
