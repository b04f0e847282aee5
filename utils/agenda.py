"""Which of a command's runs are done, and when the rest will be."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from utils.runs import Run


class Agenda:
    """The runs that a command still has to train, and how long runs like them have taken.

        agenda = Agenda(runs)
        results = [agenda.done(run, train_and_test(run, ...)) for run in runs]

    Runs that were finished before are not counted, but their times are.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.waiting = {run.name: run for run in runs if not run.finished}
        self.total = len(self.waiting)
        self.paces: dict[tuple[str, str], float] = {}  # seconds an epoch

    def done(self, run: Run, result: dict[str, Any]) -> dict[str, Any]:
        """Take note of a run's result and, if others are waiting, print how long they will take.

        Returns the result.
        """
        self.paces[_kind(run)] = result["seconds"] / result["epochs"]
        if self.waiting.pop(run.name, None) and self.waiting:
            left = timedelta(seconds=round(self.seconds_left()))
            until = datetime.now() + left
            print(
                f"{self.total - len(self.waiting)} of {self.total} runs done; the others take "
                f"about {left}, until {until:%H:%M}\n"
            )
        return result

    def seconds_left(self) -> float:
        """What the waiting runs will take at the pace of runs of their kind, or of the others."""
        usual = sum(self.paces.values()) / len(self.paces)
        return sum(
            self.paces.get(_kind(run), usual) * run.config.epochs for run in self.waiting.values()
        )


def _kind(run: Run) -> tuple[str, str]:
    """What an epoch's time depends on, within one command."""
    return run.model, str(run.lesson and run.lesson["method"])
