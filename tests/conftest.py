"""Settings that every test and every command started by a test shares."""

import os
import signal

import pytest
from hypothesis import settings

from tests.photo_folders import make_photos

# Set before torch is imported: for networks this small, waking threads takes longer than the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that a shell starts in the background ignore SIGINT, and so would commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline, since a busy machine is not a bug. In CI the same examples are drawn every time.
settings.register_profile("repo", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("repo")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "weather")
