"""TensorBoard for one run: curves, settings, and the confusion matrix of the test photos."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from utils.engine import Row
from utils.tables import confusion_table

# The results in the HParams tab, after four settings: more would push them out of the window.
METRICS = ("test/accuracy", "test/loss", "test/macro_f1", "best/accuracy/val")


class Tracker(ExitStack):
    """Writes one run's TensorBoard events, its curves as two runs, `train` and `val`, each in its
    own colour; raises OSError. Each start replaces earlier files and writes the epochs so far,
    `history`, again: a resumed run has one point per epoch."""

    def __init__(self, folder: Path, history: Sequence[Row], settings: dict[str, Any]) -> None:
        super().__init__()
        self.step, self.files = 0, {}
        for part in ("", "train", "val"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for earlier in (folder / part).glob("events.out.tfevents.*"):
                earlier.unlink()
            # A new name, since an open TensorBoard reads no file from its beginning again.
            path = folder / part / f"events.out.tfevents.{time.time():.6f}"
            self.files[part] = self.enter_context(path.open("xb"))
        how = (settings.get(name) for name in ("teacher", "method", "alpha", "temperature"))
        columns = {name: settings.get(name) for name in ("arch", "epochs", "lr")}
        columns["teacher"] = " ".join(str(part) for part in how if part is not None) or "none"
        *start, self.session_end = summary.hparams(columns, dict.fromkeys(METRICS))
        code = "\n".join(f"    {name}: {value!r}" for name, value in settings.items())
        text = summary.text("settings", code)  # to Markdown, what is indented is code
        self._write("", history[0]["wall_time"] if history else time.time(), text, *start)
        for row in history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Write one epoch: `epoch` (from 1 up), `wall_time`, `seconds`, and curves by name."""
        self.step = int(row["epoch"])
        for tag, value in row.items():
            name, _, part = tag.partition("/")
            if name not in ("epoch", "wall_time", "seconds"):
                self._write(part or "train", row["wall_time"], summary.scalar(name, value))

    def finish(self, metrics: Row, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
        """Write the test results: metrics by name, and counts (C, C) with rows = true class."""
        scalars = [summary.scalar(tag, value) for tag, value in metrics.items()]
        matrix = summary.text("test/confusion", confusion_table(counts, classes, ""))
        self._write("", time.time(), *scalars, matrix, self.session_end)

    def _write(self, part: str, wall_time: float, *contents: Summary) -> None:
        writer = RecordWriter(self.files[part])  # SummaryWriter's thread prints tracebacks
        for content in contents:
            event = Event(summary=content, step=self.step, wall_time=wall_time)
            writer.write(event.SerializeToString())
        self.files[part].flush()
