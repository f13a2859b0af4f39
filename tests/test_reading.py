"""Looking into a checkpoint without a model, and what a damaged one says."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_trackckpt import Checkpoint, CheckpointReader, list_variables, load_checkpoint, load_variable
from torch_trackckpt.errors import CheckpointNotFoundError, DataLossError, TensorNotFoundError, UnsupportedFormatError

from conftest import Damage

GOLDEN = Path(__file__).parent / "golden"
A = "a/.ATTRIBUTES/VARIABLE_VALUE"
B = "b/.ATTRIBUTES/VARIABLE_VALUE"


def write(prefix: str) -> str:
    return Checkpoint(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor([7, 8])).write(prefix)
