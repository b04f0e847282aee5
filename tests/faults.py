"""The fault tests run in part by default, and in full with FAULTS=whole in the environment."""

import math
import os
from typing import Any

import pytest

WHOLE = os.environ.get("FAULTS") == "whole"
only_whole = pytest.mark.skipif(not WHOLE, reason="slow: make test-faults runs it")


def not_finite(value: Any, where: str = "") -> list[str]:
    """Paths within a result to numbers that are NaN or infinite."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, item in inner for place in not_finite(item, f"{where}/{key}")]
    return [where] if isinstance(value, float) and not math.isfinite(value) else []
