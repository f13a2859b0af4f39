"""Fixtures of the tests of the core."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("core", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("core")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Where a test writes its bundle, in a folder of its own."""
    return tmp_path / "ckpt"
