"""How much of the fault suites runs: a quick share, or with FAULTS=whole in the environment all."""

import os

WHOLE = os.environ.get("FAULTS") == "whole"
