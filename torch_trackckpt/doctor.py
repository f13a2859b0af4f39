"""What this installation has and what it lacks: `python -m torch_trackckpt doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator

import torch

from torch_trackckpt import _native
from torch_trackckpt.bundle.threads import num_threads
from torch_trackckpt.devices.cuda import cuda_module, misfit
from torch_trackckpt.devices.pinned import BLOCK_BUDGET_BYTES

__all__ = ["diagnosis"]

_OPTIONAL = {
    "lightning": "the Lightning callback",
    "safetensors": "comparisons and exchange with safetensors files",
}


def diagnosis() -> str:
    """Lines for a person to read: what there is, and what its absence means."""
    lines = [*_core(), *_cuda(), *_packages()]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)


def _core() -> Iterator[tuple[str, str]]:
    yield "torch_trackckpt", importlib.metadata.version("torch_trackckpt")
    yield "python", f"{platform.python_version()} on {platform.platform(terse=True)}"
    yield "torch", torch.__version__
    fast = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    yield (
        "many tensors",
        "described natively" if fast else "described one by one: torch 2.10 or newer makes small tensors cheap",
    )
    yield "checksums", f"by {_native.crc32c_implementations()[0]}"
    yield "threads", f"{num_threads()} read and write at once"


def _cuda() -> Iterator[tuple[str, str]]:
    module = cuda_module()
    if module is None:
        yield "CUDA module", "not built, because no CUDA compiler was found; tensors on devices are copied by torch"
    else:
        driver, runtime = module.versions()
        yield "CUDA module", f"built with CUDA {_version(runtime)}"
        yield "CUDA driver", f"up to CUDA {_version(driver)}" if driver else "none"
    if not torch.cuda.is_available():
        yield "CUDA devices", "none that torch can use"
        return
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        node = -1 if module is None else module.numa_node(number)
        near = "" if node < 0 else f", near memory node {node}"
        yield f"CUDA device {number}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB{near}"
    if module is None:
        return
    if obstacle := misfit(module):
        yield "CUDA links", f"none: {obstacle}; tensors on devices are copied by torch"
    yield "page-locked memory", _page_locked(module)


def _page_locked(module: object) -> str:
    try:
        module.PinnedMemory(BLOCK_BUDGET_BYTES, 0)  # type: ignore[attr-defined]
    except RuntimeError as error:
        return f"refused: {error}; copies go through ordinary memory, which takes longer (see `ulimit -l`)"
    return f"{BLOCK_BUDGET_BYTES >> 20} MiB can be had"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _packages() -> Iterator[tuple[str, str]]:
    for name, use in _OPTIONAL.items():
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, f"absent; it is for {use}"
