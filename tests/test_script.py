"""Exit statuses, errors in one line, and other systems."""

import errno
import io
import shlex
import signal
import subprocess
import sys

import pytest

from config import UserError
from tests.faults import only_whole
from tests.photo_folders import ROOT, make_photos, python, training
from utils.script import run_script

TOO_LITTLE = "error: out of memory; a smaller --batch-size needs less"
TOO_LITTLE += "; once fixed, --resume continues"


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        (UserError("what is \x1b[2J wrong"), 2, r"error: what is \x1b[2J wrong"),
        (MemoryError(), 2, TOO_LITTLE),
        (RuntimeError("can't allocate memory: 9 bytes"), 2, TOO_LITTLE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), 2, TOO_LITTLE),
        (OSError(errno.ENOSPC, "full"), 2, "error: full; once fixed, --resume continues"),
        (OSError(errno.EACCES, "no", "x/y"), 2, "error: x/y: no; once fixed, --resume continues"),
        (KeyboardInterrupt(), 130, "stopped; the same command with --resume continues"),
        (signal.SIGTERM, 143, "stopped; the same command with --resume continues"),
    ],
)
def test_what_ends_a_script_is_one_line_and_an_exit_status(end, status, says, capsys):
    def main(arguments):
        print("\udcff")  # which a terminal may lack
        if isinstance(end, signal.Signals):
            signal.raise_signal(end)
        raise end

    assert run_script(main, [], resumes=True) == status
    assert capsys.readouterr().err.strip() == says
    assert run_script(main, []) == status
    assert capsys.readouterr().err.strip() == says.partition("; ")[0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_script(lambda _: print(1 / 0), [])


def test_streams_may_be_closed_or_replaced(monkeypatch):
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        assert run_script(lambda _: exec("sys.stdout.flush(); sys.stderr.flush()"), []) == 0


PLACES = {  # where a command runs; its exit statuses there, and how its line on stderr begins
    "{python} -S {words}": ({2}, "error: torch is not installed: `source .venv/bin/activate`"),
    "{python} {words} <&- >&- 2>&-": ({0}, ""),
    "set -o pipefail; {python} {words} | head -1": ({141}, "stopped: nothing reads its output"),
    "ulimit -n 64; {python} {words}": ({0}, ""),
    "ulimit -v 1000000; {python} {words}": ({2}, "error: "),
    "ulimit -v 4000000; {python} {words}": ({0, 2}, "error: out of memory"),
    "LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 {python} {words}": ({0}, ""),
}


@pytest.mark.parametrize(
    "place", [p if "-S" in p else pytest.param(p, marks=only_whole) for p in PLACES]
)
@pytest.mark.parametrize("script", ["train.py", "knowledge_distillation.py --teacher resnet18"])
def test_a_command_succeeds_or_gives_one_error_line(place, script, tmp_path):
    statuses, says = PLACES[place]
    photos = make_photos(tmp_path / "weather 雪", per_class=6)
    (photos / "rain").rename(photos / "雨")
    words = training(photos, tmp_path, "--batch-size", 6, "--seeds", *range(2))
    words += [] if "teacher" in script else ["--models", "resnet18"]
    line = place.format(python=sys.executable, words=f"{script} {shlex.join(words)}")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in statuses, done.stderr
    if done.returncode == 0:
        assert done.stderr == ""
        results = list(tmp_path.glob("output/results/*/result.json"))
        assert len(results) == 2 * len(script.split()[1:] or "1")
    else:
        assert done.stderr.startswith(says)
        assert done.stderr.count("\n") == 1


# torch and the like are imported first, as on this system; the repo's own code must do without.
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


def test_baseline_and_student_are_trained_on_a_system_that_lacks_what_only_unix_has(tmp_path):
    photos = make_photos(tmp_path / "weather", per_class=5)
    (photos / "hail").rename(photos / "Rain ")
    (photos / "fog" / "copy.jpg").write_bytes((photos / "fog" / "0.jpg").read_bytes())
    words = training(photos, tmp_path, "--batch-size", 6)
    done = python("-c", WITHOUT_UNIX, "knowledge_distillation.py", "--teacher", "resnet18", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "duplicates: 2 photos show 1 pictures" in done.stdout
    assert "| Test accuracy" in done.stdout
    assert "WARNING  class names that look the same: 'Rain ', 'rain'" in done.stdout
