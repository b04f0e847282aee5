"""The fault tests run in part by default, and in full with FAULTS=whole in the environment."""

import os

import pytest

WHOLE = os.environ.get("FAULTS") == "whole"
only_whole = pytest.mark.skipif(not WHOLE, reason="slow: make test-faults runs it")
