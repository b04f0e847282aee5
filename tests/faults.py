"""How much of the fault suites runs, a quick share or with FAULTS=whole in the environment all,
and what they share."""

import math
import os
from typing import Any

import pytest

WHOLE = os.environ.get("FAULTS") == "whole"
only_whole = pytest.mark.skipif(not WHOLE, reason="slow: make test-faults runs it")


def not_finite(value: Any, where: str = "") -> list[str]:
    """Where in a result stand numbers that are none."""
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for key, item in inner for place in not_finite(item, f"{where}/{key}")]
    return [where] if isinstance(value, float) and not math.isfinite(value) else []
