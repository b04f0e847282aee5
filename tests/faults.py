"""How much of the fault suites runs, a quick share or with FAULTS=whole in the environment all,
and what they share."""

import math
import os
from pathlib import Path
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


def anonymous_megabytes() -> float:
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1000
