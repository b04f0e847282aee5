"""TensorBoard for one run: curves, hyper-parameters, and the pictures of the test set.

    with Tracker(Path("output/logs/weather-64px-resnet18-seed0"), history, settings) as tracker:
        tracker.epoch({"epoch": 1, "wall_time": time.time(), "loss/train": 2.1, "loss/val": 1.9})
        tracker.finish({"test/accuracy": 0.8}, confusion, classes, wrong)

The event file is made from the run's history: each start removes the old one and writes all epochs
so far again, so that a killed and resumed run has each point once.
"""

import math
import os
import re
import shlex
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from config import UserError
from utils.drawing import WrongPhoto, confusion_matrix, photo_grid

EVENT_FILES = "events.out.tfevents.*"
NOT_CURVES = ("epoch", "wall_time", "seconds")


class Tracker:
    """Writes the TensorBoard events of one run into its folder.

    `history` holds one dict for each epoch so far (see `epoch`) and is written again with its own
    times; `config` maps a setting's name to its value. Event files of earlier starts are removed
    from `folder`, nothing else is. Everything is on disk when a method returns.
    All methods raise UserError when the folder cannot be written.
    """

    def __init__(
        self, folder: Path, history: Sequence[Mapping[str, float]], config: Mapping[str, object]
    ) -> None:
        self.folder = folder
        self.last_epoch = 0
        started = history[0]["wall_time"] if history else time.time()
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_event_files(folder)
            self._file = (folder / _event_file_name()).open("xb")
        self._records = RecordWriter(self._file)
        with _writing(folder):
            self._write(Event(wall_time=started, file_version="brain.Event:2"))
            self._add(summary.text("config", _markdown_table(config)), 0, started)
            # Without the experiment summary that add_hparams writes, TensorBoard collects the
            # table's columns from all runs; with it, it shows those of an arbitrary run only.
            _, session_start, _ = summary.hparams(_hparams(config), {})
            self._add(session_start, 0, started)
            self._file.flush()
        for row in history:
            self.epoch(row)

    def epoch(self, row: Mapping[str, float]) -> None:
        """Write one epoch.

        `row` has `epoch` (from 1 up), `wall_time` (seconds since 1970) and maybe `seconds`; each
        other key, such as `loss/train` or `lr`, is a curve that gets a point at this epoch.
        """
        curves = {tag: value for tag, value in row.items() if tag not in NOT_CURVES}
        with _writing(self.folder):
            if self.last_epoch == 0:
                self._add(summary.custom_scalars(_layout(curves)), 0, row["wall_time"])
            self.last_epoch = int(row["epoch"])
            for tag, value in curves.items():
                self._add(summary.scalar(tag, value), self.last_epoch, row["wall_time"])
            self._file.flush()

    def finish(
        self,
        metrics: Mapping[str, float],
        confusion: np.ndarray,
        classes: Sequence[str],
        wrong: Sequence[WrongPhoto],
    ) -> None:
        """Write what is known once the test set has been seen.

        `metrics`, such as `test/accuracy`, become columns of the hyper-parameters table and must
        not bear the name of a curve. `confusion` is (C, C) int64, rows = true class, columns =
        predicted class. `wrong` holds photos (RGB image or (H, W, 3) uint8) with true class,
        predicted class and its probability 0..1, in any order; the most confident ones are shown.
        """
        _, _, session_end = summary.hparams({}, {})
        pictures = {"test/confusion_matrix": confusion_matrix(confusion, classes)}
        if wrong:
            pictures["test/most_confident_errors"] = photo_grid(wrong)
        now = time.time()
        with _writing(self.folder):
            for tag, value in metrics.items():
                self._add(summary.scalar(tag, value), self.last_epoch, now)
            for tag, picture in pictures.items():
                image = summary.image(tag, np.asarray(picture), dataformats="HWC")
                self._add(image, self.last_epoch, now)
            self._add(session_end, self.last_epoch, now)
            self._file.flush()

    def close(self) -> None:
        """Close the event file; the tracker cannot be used any more."""
        with _writing(self.folder):
            self._file.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, content: Summary, step: int, wall_time: float) -> None:
        self._write(Event(summary=content, step=step, wall_time=wall_time))

    def _write(self, event: Event) -> None:
        # Not through SummaryWriter: its thread prints a traceback when the disk is full.
        self._records.write(event.SerializeToString())


def tensorboard_command(log_folder: Path) -> str:
    """The shell command that shows all runs under `log_folder`, relative to the current folder."""
    return f"tensorboard --logdir={shlex.quote(str(from_here(log_folder)))}"


def from_here(path: Path) -> Path:
    """The path relative to the current folder if it lies below it, absolute otherwise."""
    path, here = Path(os.path.abspath(path)), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the TensorBoard events in {folder}: {error.strerror or error}\n"
            "make room or give another folder with --output; --resume goes on with a stopped run"
        ) from error


def _remove_event_files(folder: Path) -> None:
    for path in folder.glob(EVENT_FILES):
        if path.is_file() or path.is_symlink():
            path.unlink()


def _event_file_name() -> str:
    # Finer than the usual seconds: an open TensorBoard would not read a name that it knows again.
    return f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"


def _layout(curves: Iterable[str]) -> dict[str, dict[str, list[object]]]:
    """Custom charts: train and val of a part in one, and the runs that are to be compared in one,
    a teacher, its student and the same student without a teacher."""
    curves = list(curves)
    parts = [tag.removesuffix("/train") for tag in curves if tag.endswith("/train")]
    both = [part for part in parts if f"{part}/val" in curves]
    compared = [tag for tag in ("accuracy/val", "loss/val") if tag in curves]
    return {
        "train and val": {
            part: ["Multiline", [f"^{re.escape(part)}/(train|val)$"]] for part in both
        },
        "runs side by side": {tag: ["Multiline", [f"^{re.escape(tag)}$"]] for tag in compared},
    }


def _hparams(config: Mapping[str, object]) -> dict[str, str | int | float]:
    """Finite numbers as they are, everything else as words; settings that are None left out."""
    return {
        name: value
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else _words(value)
        for name, value in config.items()
        if value is not None
    }


def _words(value: object) -> str:
    words = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    # A class is named like its folder, whose name need not be UTF-8.
    return words.encode("utf-8", "backslashreplace").decode()


def _markdown_table(config: Mapping[str, object]) -> str:
    rows = [f"| {_literal(name)} | {_literal(_words(value))} |" for name, value in config.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _literal(text: str) -> str:
    """`text` with everything that Markdown might take for markup as a character reference."""
    return "".join(c if c.isalnum() or c in " .,/" else f"&#{ord(c)};" for c in text)
