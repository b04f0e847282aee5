"""Makes the tables and figures of runs in docs/ and README.md again, from docs/results alone.

pip install matplotlib
python -m docs.build                 # of the runs that are kept in docs/results
python -m docs.build --keep output   # first adds those of the scripts' --output

A table stands in a Markdown file between <!-- table: NAME --> and <!-- end -->.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import ROOT, UserError
from data.files import atomic_write
from docs.contents import DOCUMENTS, keep, tables

PLACE = re.compile(r"(<!-- table: ([\w ]+) -->\n)((?:(?!<!-- table).)*?)(<!-- end -->)", re.S)


def filled(text: str, tables: Mapping[str, str]) -> str:
    """A Markdown text with its tables in their places; raises UserError for an unknown place."""

    def fill(match: re.Match[str]) -> str:
        start, name, _, end = match.groups()
        if name not in tables:
            raise UserError(f"<!-- table: {name} -->: docs/contents.py has no such table")
        return f"{start}\n{tables[name]}\n{end}"

    return PLACE.sub(fill, text)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.build", allow_abbrev=False)
    parser.add_argument("--keep", type=Path, help="the scripts' --output, whose runs to keep")
    wanted = parser.parse_args(arguments)
    try:
        if wanted.keep:
            print(f"kept {keep(wanted.keep)} runs")
        made = tables()
        for path in (ROOT / document for document in DOCUMENTS):
            atomic_write(path, filled(path.read_text("utf-8"), made))
        from docs.figures import draw_all

        draw_all(ROOT / "docs")
    except (UserError, OSError, ModuleNotFoundError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
