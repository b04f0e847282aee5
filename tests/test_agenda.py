"""The line between two runs: how many are done, and when the others will be."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config import Config
from utils.agenda import Agenda
from utils.runs import Run, write_json


def run(output: Path, name: str, model: str, epochs: int = 10, method: str = "") -> Run:
    lesson = {"method": method} if method else None
    anything: Any = None
    return Run(name, model, 0, anything, Config(output=output, epochs=epochs), lesson)


def took(seconds: float, epochs: int = 10) -> dict[str, float]:
    return {"seconds": seconds, "epochs": epochs}


def test_each_waiting_run_takes_as_long_an_epoch_as_the_last_of_its_kind(tmp_path, capsys):
    teacher = run(tmp_path, "teacher", "resnet50", epochs=30)
    first, second = (run(tmp_path, f"student{n}", "resnet18") for n in (1, 2))
    taught, third = (run(tmp_path, f"taught{n}", "resnet18", method="kd") for n in (1, 2))
    agenda = Agenda([teacher, first, second, taught, third])
    result = took(90, 30)
    assert agenda.done(teacher, result) is result
    assert agenda.seconds_left() == pytest.approx(4 * 10 * 3)  # nothing else is known yet
    agenda.done(first, took(10))
    assert agenda.seconds_left() == pytest.approx(10 + 2 * 10 * (3 + 1) / 2)
    agenda.done(second, took(20))
    agenda.done(taught, took(4000))
    assert agenda.seconds_left() == pytest.approx(4000)
    agenda.done(third, took(4000))
    lines = capsys.readouterr().out.split("\n\n")
    assert [line[:16] for line in lines] == [f"{n} of 5 runs done" for n in (1, 2, 3, 4)] + [""]
    assert "the others take about 0:02:00, until" in lines[0]
    clock = re.search(r"about 1:06:40, until (\d\d:\d\d)", lines[3])
    assert clock
    minutes = (datetime.now() + timedelta(seconds=4000 - n) for n in (0, 60))
    assert clock[1] in [f"{minute:%H:%M}" for minute in minutes]


def test_runs_that_were_finished_before_are_not_counted_but_tell_the_pace(tmp_path, capsys):
    finished, first, second = (run(tmp_path, f"run{n}", "resnet18") for n in range(3))
    write_json(finished.results / "result.json", {})
    agenda = Agenda([finished, first, second])
    agenda.done(finished, took(50))
    assert capsys.readouterr().out == ""
    assert agenda.seconds_left() == pytest.approx(100)
    agenda.done(first, took(70))
    assert capsys.readouterr().out.startswith("1 of 2 runs done; the others take about 0:01:10")


def test_a_single_run_is_not_counted(tmp_path, capsys):
    only = run(tmp_path, "run", "resnet18")
    Agenda([only]).done(only, took(50))
    assert capsys.readouterr().out == ""
