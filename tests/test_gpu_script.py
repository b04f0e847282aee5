"""docs/gpu.sh, which is for a machine with a GPU, on this one: small, and on the CPU."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.faults import only_whole
from tests.photo_folders import ROOT, make_photos

DONE_BEFORE = [
    *(f"experiment experiment_1 {fold}" for fold in range(1, 10)),
    *(f"experiment experiment_2 {fold}" for fold in range(10)),
    *(f"long_teacher {fold}" for fold in range(10)),
    *(f"longer_alone {fold}" for fold in range(10)),
]
DONE_NOW = ["gpu_tests", "benchmark --models resnet18", "from_nothing", "experiment experiment_1 0"]


def start(seconds: Any, out: Path, work: Path, *flags: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "docs/gpu.sh", str(seconds), str(out), *map(str, flags)],
        cwd=ROOT, capture_output=True, text=True, timeout=290,
        env=os.environ | {"PYTHON": sys.executable, "WORK": str(work), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def results_in(out: Path) -> set[str]:
    """The runs in the archive, of which it has these three files and no weights."""
    with tarfile.open(out / "results.tar.gz") as archive:
        files = {Path(member.name) for member in archive if member.isfile()}
    runs = {path.parent.name for path in files if path.parts[0] == "results"}
    each = ("result.json", "history.csv", "test_logits.npz")
    whole = {Path("results", run, name) for run in runs for name in each}
    assert files == whole | {Path("log.txt"), Path("done.txt")}
    return runs


@only_whole
def test_it_does_what_is_not_done_and_resumes_from_its_archive(tmp_path):
    flags = (
        "--data", make_photos(tmp_path / "weather", per_class=10), "--device", "cpu",
        "--image-size", 32, "--batch-size", 4, "--epochs", 1,
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    (out / "done.txt").write_text("".join(f"{name}\n" for name in DONE_BEFORE))
    run = start(280, out, tmp_path / "work", *flags)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall(r"^== (.+): status (\d+)", run.stdout, re.M) == [(x, "0") for x in DONE_NOW]
    assert "| resnet18, 32 px" in run.stdout
    assert (out / "done.txt").read_text().splitlines() == DONE_BEFORE + DONE_NOW
    assert (out / "log.txt").read_text() == run.stdout
    names = ("densenet169", "resnet18", "resnet18-from-densenet169-kd-a0.7-T2")
    runs = {f"weather-32px-{name}-fold0of10-seed0" for name in names}
    assert results_in(out) == runs

    # Elsewhere, with the archive alone, only what is not done yet is done, and nothing is lost.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(out / "results.tar.gz", elsewhere)
    (elsewhere / "done.txt").write_text("\n".join([*DONE_BEFORE[:-1], *DONE_NOW, ""]))
    run = start(280, elsewhere, tmp_path / "work elsewhere", *flags)
    assert re.findall(r"^== (.+): status 0", run.stdout, re.M) == DONE_BEFORE[-1:]
    assert (elsewhere / "log.txt").read_text() == (out / "log.txt").read_text() + run.stdout
    assert results_in(elsewhere) == runs | {"weather-32px-resnet18-30epochs-fold9of10-seed0"}


def test_what_it_cannot_do_is_said_and_a_failure_is_one(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    for seconds, more, says in (
        ("soon", [], "docs/gpu.sh SECONDS OUT [FLAGS]"),
        (60, ["--data", "x", "--fold", 3], "--fold: this script sets it itself\n"),
    ):
        run = start(seconds, out, work, *more)
        assert run.returncode == 2
        assert run.stderr.startswith(says)
    (out / "done.txt").write_text("\n".join([*DONE_BEFORE[:-1], *DONE_NOW, ""]))
    run = start(60, out, work, "--data", tmp_path / "nowhere")
    assert run.returncode == 1
    assert "nowhere' does not exist" in run.stdout
    assert "longer_alone 9" not in (out / "done.txt").read_text()
