"""docs/gpu.sh, which is for a machine with a GPU, without one: what it refuses and reports."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.photo_folders import ROOT

ARMS = ["experiment_1", "experiment_2", "longer", "longer_students", "controls", "small"]
ARMS += ["reversed", "causes"]
ALL = ["speed_test -", "speeds -", "other_tests -"]
ALL += [f"{arm} {fold}" for arm in ARMS for fold in range(10)]


def start(seconds: Any, out: Path, work: Path, *flags: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "docs/gpu.sh", str(seconds), str(out), *map(str, flags)],
        cwd=ROOT, capture_output=True, text=True, timeout=290,
        env=os.environ | {"PYTHON": sys.executable, "WORK": str(work), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_bad_arguments_and_failed_runs_are_reported(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    for seconds, more, says in (
        ("soon", [], "docs/gpu.sh SECONDS OUT [FLAGS]"),
        (60, ["--data", "x", "--fold", 3], "--fold: this script sets it itself\n"),
    ):
        run = start(seconds, out, work, *more)
        assert run.returncode == 2
        assert run.stderr.startswith(says)
    missing = "reversed 9"
    (out / "done.txt").write_text("\n".join([*ALL, ""]).replace(f"{missing}\n", ""))
    run = start(250, out, work, "--data", tmp_path / "nowhere")
    assert run.returncode == 1
    assert "nowhere' does not exist" in run.stdout
    assert missing not in (out / "done.txt").read_text()
