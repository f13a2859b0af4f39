"""What the tests of CUDA need: a device, and the native module for it."""

from __future__ import annotations

import pytest
import torch

from torch_trackckpt.devices.cuda import CudaLink, CudaLinks, cuda_module, misfit


@pytest.fixture
def link() -> CudaLink:
    """The link to the first device."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    module = cuda_module()
    if module is None:
        pytest.skip("_cuda was not built")
    if obstacle := misfit(module):
        pytest.skip(obstacle)
    link = CudaLinks(module).of(0)
    assert isinstance(link, CudaLink)
    return link
