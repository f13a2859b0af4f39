"""How much memory a piece of work needs, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

from torch_trackckpt import _native

# The core is loaded without its package, which would bring torch with it.
_FRAME = """
import importlib.util, re
import numpy as np

def peak():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1])

spec = importlib.util.spec_from_file_location("_native", {library!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
reader = core.BundleReader({index!r}, {prefix!r})
{setup}
before = peak()
{work}
print(peak() - before)
"""


def growth_in_mib(prefix: Path, work: str, setup: str = "") -> float:
    """By how much the largest memory of a fresh process grows over `work`: Python code that has a `reader`."""
    index = f"{prefix}.index"
    code = _FRAME.format(library=_native.__file__, index=index, prefix=str(prefix), setup=setup, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def write_sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    """A file of zeros, which takes no space, but for `parts` by their offset."""
    with open(path, "wb") as file:
        for offset, content in parts.items():
            file.seek(offset)
            file.write(content)
        file.truncate(size)
