"""`python -m torch_trackckpt doctor`: what an installation has and lacks."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from torch_trackckpt import __main__, doctor
from torch_trackckpt.doctor import diagnosis


def line_of(name: str) -> str:
    (found,) = [line for line in diagnosis().splitlines() if line.startswith(f"{name} ")]
    return found.removeprefix(name).strip()


def test_the_command_prints_the_diagnosis() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch_trackckpt", "doctor"], capture_output=True, text=True, check=True
    )
    assert "torch_trackckpt" in done.stdout
    assert "CUDA module" in done.stdout


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main([])
    assert "required" in capsys.readouterr().err


def test_versions_and_the_checksum_in_use_are_named() -> None:
    assert line_of("torch") == torch.__version__
    assert line_of("checksums").startswith("by ")


def test_an_absent_module_is_said_with_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cuda_module", lambda: None)
    assert line_of("CUDA module") == (
        "not built, because no CUDA compiler was found; tensors on devices are copied by torch"
    )


@pytest.mark.parametrize(("driver", "said"), [(0, "none"), (13010, "up to CUDA 13.1")])
def test_module_driver_and_devices_are_described(driver: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __init__(self, size: int, device: int) -> None:
            raise RuntimeError("CUDA cannot lock memory of the host")

    module = SimpleNamespace(versions=lambda: (driver, 12040), numa_node=lambda device: 1, PinnedMemory=Refused)
    properties = SimpleNamespace(name="H200", total_memory=141 << 30)
    monkeypatch.setattr(doctor, "cuda_module", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    assert line_of("CUDA module") == "built with CUDA 12.4"
    assert line_of("CUDA driver") == said
    assert line_of("CUDA device 0") == "H200, 141 GiB, near memory node 1"
    assert ("none: _cuda was built with CUDA 12" in diagnosis()) is (driver == 0)
    assert line_of("page-locked memory").startswith("refused: CUDA cannot lock memory of the host")


def test_an_absent_package_is_said_with_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor.importlib.metadata.version

    def found(name: str) -> str:
        if name == "lightning":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", found)
    assert line_of("lightning") == "absent; it is for the Lightning callback"
