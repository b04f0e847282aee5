"""Makes the tables and figures of runs in docs/ and README.md again, from docs/results alone.

pip install matplotlib
python -m docs.build                 # of the runs that are kept in docs/results
python -m docs.build --keep output   # first keeps those of the scripts' --output there
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ROOT, UserError
from data.locks import write_whole
from docs.contents import DOCUMENTS, TABLES, draw_figures
from docs.evidence import keep, written


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.build", allow_abbrev=False)
    parser.add_argument("--keep", type=Path, help="the scripts' --output, whose runs to keep")
    folder = parser.parse_args(arguments).keep
    try:
        if folder:
            print(f"kept {len(keep(folder))} runs")
        for document in DOCUMENTS:
            path = ROOT / document
            write_whole(path, written(path.read_text("utf-8"), TABLES))
        draw()
    except (UserError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def draw() -> None:
    """All figures; raises UserError without matplotlib, which only they need."""
    try:
        import matplotlib
    except ModuleNotFoundError as missing:
        raise UserError("the figures need matplotlib: pip install matplotlib") from missing
    matplotlib.use("agg")
    draw_figures()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
