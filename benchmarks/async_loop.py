"""Stub, replaced below."""
from typing import Any
def run(request: Any) -> dict[str, Any]:
    return {}
