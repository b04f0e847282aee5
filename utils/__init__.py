"""Losses, training engine, metrics, TensorBoard logging, and the command-line tools."""

import models  # noqa: F401  # checks that the packages are installed
