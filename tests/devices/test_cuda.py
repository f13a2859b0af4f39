"""Whether the native module for CUDA devices can be used."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from torch_trackckpt.devices import cuda
from torch_trackckpt.devices.cuda import CudaLinks, find_links


def machine(monkeypatch: pytest.MonkeyPatch, driver: int, capabilities: list[tuple[int, int]]) -> None:
    """One with this driver and these devices, and a module that was built with CUDA 13."""
    module = SimpleNamespace(versions=lambda: (driver, 13000))
    monkeypatch.setattr(cuda, "cuda_module", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)


def test_without_devices_or_without_the_module_there_are_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 13010, [])
    assert find_links() is None
    machine(monkeypatch, 13010, [(9, 0)])
    monkeypatch.setattr(cuda, "cuda_module", lambda: None)
    assert find_links() is None


def test_a_module_that_fits_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    machine(monkeypatch, 13010, [(9, 0), (8, 0), (12, 0)])
    assert isinstance(find_links(), CudaLinks)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("driver", "capabilities", "told"),
    [
        (12080, [(9, 0)], "_cuda was built with CUDA 13, and the driver is for CUDA 12"),
        (13000, [(9, 0), (7, 5)], "compute capability 8.0 and newer, and device 1 has 7.5"),
    ],
    ids=["an old driver", "an old device"],
)
def test_a_module_that_does_not_fit_is_not_used_and_that_is_said(
    driver: int,
    capabilities: list[tuple[int, int]],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine(monkeypatch, driver, capabilities)
    with caplog.at_level(logging.WARNING, logger="torch_trackckpt"):
        assert find_links() is None
    (record,) = caplog.records
    assert told in record.getMessage()
    assert "copied by torch, one by one" in record.getMessage()
