"""The random state of the whole process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from torch_trackckpt.adapters.random_generators import check_numpy_state, check_python_state

__all__ = ["RNGState"]


class RNGState:
    """Stands for the global random generators: Python's, NumPy's, torch's on the CPU and on every CUDA device.

    Track one to continue the very stream of random numbers after a restore.

    Raises (when restored):
        ValueError: the checkpoint has states for more CUDA devices than there are.
        MismatchError: NumPy's global generator is of another kind.
        DataLossError: one of them is no state. Nothing has been set in any of these cases.

    Example:
        >>> import tempfile, torch
        >>> from torch_trackckpt import Checkpoint, RNGState
        >>> checkpoint = Checkpoint(rng=RNGState())
        >>> path = checkpoint.save(tempfile.mkdtemp() + "/ckpt")
        >>> first = torch.rand(3)
        >>> status = checkpoint.restore(path)
        >>> torch.equal(first, torch.rand(3))
        True
    """

    def state_dict(self) -> dict[str, Any]:
        """The states, as Python values and tensors of bytes."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets every generator. Without CUDA, stored states of CUDA devices are left aside."""
        check_python_state(state["python"])
        numpy_state = _by_name(state["numpy"])
        check_numpy_state(numpy_state, dict(np.random.get_state(legacy=False)))
        torch.Generator().set_state(state["torch"])
        if torch.cuda.is_available():
            if len(state["cuda"]) > torch.cuda.device_count():
                raise ValueError(
                    f"The checkpoint holds random states of {len(state['cuda'])} CUDA devices, "
                    f"but there are {torch.cuda.device_count()}."
                )
            for device, cuda_state in enumerate(state["cuda"]):
                torch.cuda.set_rng_state(cuda_state, device)
        random.setstate(state["python"])
        np.random.set_state(numpy_state)
        torch.set_rng_state(state["torch"])


def _by_name(numpy_state: Any) -> Any:
    """NumPy's state with a name for each part; the first checkpoints of this package have the older form, a tuple."""
    if not isinstance(numpy_state, tuple) or len(numpy_state) != 5:
        return numpy_state
    kind, key, position, has_gauss, gauss = numpy_state
    return {"bit_generator": kind, "state": {"key": key, "pos": position}, "has_gauss": has_gauss, "gauss": gauss}
