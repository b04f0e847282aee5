"""What every script does around its work: report problems in a line, print photos and paths."""

import io
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np

from config import UserError, shown
from data.files import lacks_memory
from data.listing import PARTS, UNLABELLED
from data.split import describe_duplicates
from utils.ranks import init_distributed

if TYPE_CHECKING:  # report and predict start without what a training needs
    from utils.runs import Run


def run_script(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str], *, resumes: bool = False
) -> int:
    """Run `main` and return the exit status: 2 for the user's mistakes, 130 or 143 when SIGINT
    (Ctrl-C) or SIGTERM stops it, 141 when stdout has no reader. `resumes`: it has --resume."""
    hint = "; once fixed, --resume continues" if resumes else ""
    before = signal.signal(signal.SIGTERM, _terminate)
    # A stream that was closed by the shell (>&-) is None.
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    # Buffer by line, as logs are followed during a run; escape what the terminal cannot encode.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        with init_distributed():
            main(arguments)
        return 0
    except UserError as problem:
        status, says = 2, f"error: {shown(problem)}"
    except BrokenPipeError:  # as after `| head -1`
        status, says = 141, f"stopped: nothing reads its output{hint}"
    except OSError as problem:  # a full disk, a folder that may not be written, too many files
        what = f"{problem.filename}: " if problem.filename else ""
        status, says = 2, f"error: {shown(f'{what}{problem.strerror or problem}')}{hint}"
    except (MemoryError, RuntimeError) as problem:
        if not lacks_memory(problem):
            raise
        less = "; a smaller --batch-size needs less" * resumes
        status, says = 2, f"error: out of memory{less}{hint}"
    except KeyboardInterrupt as stopped:
        hint = "; the same command with --resume continues" if resumes else ""
        if "--overwrite" in arguments:
            hint = "; to continue once an epoch is done, give --resume instead of --overwrite"
        status, says = 143 if stopped.args else 130, f"\nstopped{hint}"
    finally:
        signal.signal(signal.SIGTERM, before)
    print(says, file=sys.stderr)
    return status


def _terminate(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C; the argument tells the two KeyboardInterrupts apart."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the clean-up
    raise KeyboardInterrupt(signal.SIGTERM)


def describe(runs: Sequence["Run"]) -> None:
    """Print which photos and device are used, and what was found wrong with the photos."""
    config, data, device = runs[0].config, runs[0].data, runs[0].device
    photos = data.decoded.photos
    counts = ", ".join(f"{part} {count:,}" for part, count in data.counts.items())
    if config.folds:
        counts = f"of {config.folds} folds, fold {config.fold} has {counts}"
    about = f"{len(photos):,} in {len(data.classes)} classes, {counts}; split {data.split.hash}"
    print(f"photos   {data.name}: {about}")
    sizes = zip(photos.classes, np.bincount(photos.labels), strict=True)
    classes = [f"{shown(name, keep='')} {size:,}" for name, size in sizes]
    print(f"classes  {', '.join(classes[:24])}{', ...' * (len(classes) > 24)}")
    for note in photos.notes:
        print(f"NOTE     {shown(note)}")
    for fold, each in {run.config.fold: run.data for run in runs}.items():
        of = f" of fold {fold}" if config.folds else ""
        for part in PARTS[1:]:
            if lacking := len(classes) - len({*each.rows_and_labels(part)[1].tolist()}):
                print(f"NOTE     {part}{of} has no photo of {lacking} of the classes")
    if (count := len(data.unlabelled)) or (config.kd and config.kd.unlabelled):
        copies = len(data.split.indices(UNLABELLED)) + len(data.decoded.unlabelled) - count
        left_out = f"{copies:,} copies of val and test photos are left out"
        print(f"NOTE     {count:,} unlabelled photos, used only for distillation; {left_out}")
    if config.data == "sample":
        print("NOTE     synthetic photos, which say nothing about real ones: give --data FOLDER")
    looks = ["".join(normalize("NFKC", name).casefold().split()) for name in photos.classes]
    if alike := [ascii(n) for i, n in enumerate(photos.classes) if looks.count(looks[i]) > 1]:
        print(f"WARNING  classes that look the same: {', '.join(alike)}")
    for note in describe_duplicates(data.split, data.groups):
        print(note)
    print(f"device   {device}, {device.precision}{', CUDA graphs' * device.graphs}\n")


def print_paths(output: Path) -> None:
    """Print where a command's results are and how to look at its curves."""
    print(f"results      {output / 'results'}\ncheckpoints  {output / 'checkpoints'}")
    print(f"curves       tensorboard --logdir={shlex.quote(str(output / 'logs'))}")
