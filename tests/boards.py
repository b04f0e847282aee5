"""A real TensorBoard, asked over HTTP."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen


def wait_for(find: Callable[[], Any]) -> Any:
    """The first true value of `find()`; fails when there is none within a minute."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline, "TensorBoard did not get that far in a minute"
        time.sleep(0.05)
    return found


class Board(NamedTuple):
    address: str

    def fetch(self, route: str, **query: object) -> bytes:
        with urlopen(f"{self.address}/data{route}?{urlencode(query)}", timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, route: str, **query: object) -> Any:
        return json.loads(self.fetch(route, **query))

    def scalars(self, run: str, tag: str) -> Any:
        """The points of a curve: wall time, step, value."""
        known = tag in self.ask("/plugin/scalars/tags").get(run, {})
        return self.ask("/plugin/scalars/scalars", run=run, tag=tag) if known else []

    def sessions(self) -> dict[str, Any]:
        """The rows of the hyper-parameters table by the name of their run."""
        states = [f"STATUS_{state}" for state in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        wanted = {"allowedStatuses": states, "colParams": [], "startIndex": 0, "sliceSize": 99}
        table = self.ask("/plugin/hparams/session_groups", request=json.dumps(wanted))
        return {group["name"]: group for group in table["sessionGroups"]}


@contextmanager
def tensorboard(logs: Path) -> Iterator[Board]:
    """TensorBoard on the folder `logs`, answering on a free port until the block ends."""
    output = logs.parent / "tensorboard.txt"
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logs}", "--host=127.0.0.1"]
    command += ["--port=0", "--reload_interval=1"]
    with output.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", output.read_text()))
            yield Board(address[0])
        finally:
            server.kill()
