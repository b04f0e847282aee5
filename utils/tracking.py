"""TensorBoard for one run: curves, settings, and the confusion matrix of the test photos."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from utils.tables import confusion_table

Row = Mapping[str, float]


class Tracker(AbstractContextManager["Tracker"]):
    """Writes one run's TensorBoard events to disk, or raises OSError. Each start replaces earlier
    files and writes `history`, the epochs so far, again: a resumed run has one point per epoch."""

    def __init__(self, folder: Path, history: Sequence[Row], settings: dict[str, Any]) -> None:
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        # A new name, since an open TensorBoard reads no file from its beginning again.
        self.file = (folder / f"events.out.tfevents.{time.time():.6f}").open("xb")
        self.records = RecordWriter(self.file)  # SummaryWriter's thread prints tracebacks
        columns = {k: str(v) for k, v in settings.items() if v is not None}
        columns |= {k: v for k, v in settings.items() if type(v) in (int, float)}
        # Without the experiment summary, which would fix the table's columns for all runs.
        _, session_start, self.session_end = summary.hparams(columns, {})
        code = "\n".join(f"    {name}: {value!r}" for name, value in settings.items())
        text = summary.text("settings", code)  # to Markdown, what is indented is code
        self._write(history[0]["wall_time"] if history else time.time(), text, session_start)
        for row in history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        """Write one epoch: `epoch` (from 1 up), `wall_time`, `seconds`, and curves by name."""
        if self.step == 0:
            parts = [tag.removesuffix("/train") for tag in row if tag.endswith("/train")]
            both = {part: ["Multiline", [f"^{part}/(train|val)$"]] for part in parts}
            runs = {tag: ["Multiline", [f"^{tag}$"]] for tag in ("accuracy/val", "loss/val")}
            charts = summary.custom_scalars({"train and val": both, "runs side by side": runs})
            self._write(row["wall_time"], charts)
        self.step = int(row["epoch"])
        curves = [tag for tag in row if tag not in ("epoch", "wall_time", "seconds")]
        self._write(row["wall_time"], *(summary.scalar(tag, row[tag]) for tag in curves))

    def finish(
        self, metrics: Row, confusion: Sequence[Sequence[int]], classes: Sequence[str]
    ) -> None:
        """Write the test results: metrics by name, and counts (C, C) with rows = true class."""
        scalars = [summary.scalar(tag, value) for tag, value in metrics.items()]
        matrix = summary.text("test/confusion", confusion_table(confusion, classes, ""))
        self._write(time.time(), *scalars, matrix, self.session_end)

    def _write(self, wall_time: float, *contents: Summary) -> None:
        for content in contents:
            event = Event(summary=content, step=self.step, wall_time=wall_time)
            self.records.write(event.SerializeToString())
        self.file.flush()

    def __exit__(self, *_: object) -> None:
        self.file.close()
