"""What every script does around its work: report problems in a line, print where results are."""

import io
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from config import UserError, shown
from data.files import lacks_memory
from utils.ranks import init_distributed


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
        status, says = (143 if stopped.args else 130), f"\nstopped{hint}"
    finally:
        signal.signal(signal.SIGTERM, before)
    print(says, file=sys.stderr)
    return status


def _terminate(*_: object) -> None:
    """Handle SIGTERM like Ctrl-C; the argument tells the two KeyboardInterrupts apart."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the clean-up
    raise KeyboardInterrupt(signal.SIGTERM)


def print_paths(output: Path) -> None:
    """Print where a command's results are and how to look at its curves."""
    print(f"results      {output / 'results'}\ncheckpoints  {output / 'checkpoints'}")
    print(f"curves       tensorboard --logdir={shlex.quote(str(output / 'logs'))}")
