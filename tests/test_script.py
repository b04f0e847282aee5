"""Exit statuses, errors in one line, and how long the other runs will take."""

import errno
import io
import re
import signal
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from config import Config, KDConfig, UserError
from data.files import write_json
from utils.runs import Run
from utils.script import ETA, run_script


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        (UserError("what is wrong"), 2, "error: what is wrong"),
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

    assert run_script(main, []) == status
    assert capsys.readouterr().err.strip() == says
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda _: print(1 / 0), [])


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "replaced"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_may_be_closed_or_replaced(name, stream, monkeypatch):
    monkeypatch.setattr(sys, name, stream)
    assert run_script(lambda _: getattr(sys, name).flush(), []) == 0


def test_a_reader_that_leaves_is_no_traceback():
    code = "import utils.script; exit(utils.script.run_script(lambda _: print('x' * 9**7), []))"
    root = Path(__file__).parents[1]
    run = Popen([sys.executable, "-c", code], cwd=root, stdout=PIPE, stderr=PIPE)
    run.stdout.close()  # type: ignore[union-attr]
    assert run.communicate()[1].startswith(b"stopped, as nothing reads its output")
    assert run.returncode == 141


def test_the_waiting_runs_take_as_long_an_epoch_as_the_last_of_their_kind(tmp_path, capsys):
    data: Any = type("Photos", (), {"name": "photos"})
    kinds = [(0, None), (1, None), (2, None), (1, KDConfig()), (2, KDConfig())]
    runs = [Run(Config(output=tmp_path, seed=s, epochs=10, kd=kd), data, data) for s, kd in kinds]
    write_json(runs[0].path("results", "result.json"), {})  # finished before: not counted
    eta = ETA(runs)
    for run, seconds in zip(runs, (50, 100, 300, 4000, 1), strict=True):
        eta.done(run, {"seconds": seconds, "epochs": 10})
    lines = re.findall(r"(\d of 4) runs .* about (\S+), until", capsys.readouterr().out)
    assert lines == [("1 of 4", "0:05:00"), ("2 of 4", "0:10:00"), ("3 of 4", "1:06:40")]
