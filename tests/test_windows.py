"""Both scripts run to the end on a system that lacks what only Unix has."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.photo_folders import make_photos

ROOT = Path(__file__).parents[1]
# torch and its like are loaded as on this system; what the repo does itself must get by without.
WITHOUT_UNIX = """
import runpy, signal, sys
import numpy, PIL.Image, tensorboard, torch, torch.utils.tensorboard, torchvision
for name in ("fcntl", "resource", "pwd", "grp", "termios", "msvcrt"):
    sys.modules[name] = None
for name in ("SIGPIPE", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM"):
    delattr(signal, name)
sys.platform = "another"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "script",
    ["train.py --models resnet18", "knowledge_distillation.py --teacher resnet18"],
)
def test_a_script_runs_to_its_end_without_unix(script, tmp_path):
    make_photos(tmp_path / "weather", per_class=5)
    words = ["--data", str(tmp_path / "weather"), "--image-size", "32", "--batch-size", "6"]
    words += ["--epochs", "1", "--output", str(tmp_path / "o"), "--cache", str(tmp_path / "c")]
    command = [sys.executable, "-c", WITHOUT_UNIX, *script.split(), *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "| Test accuracy" in run.stdout
