"""A real TensorBoard, asked over HTTP."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def wait_for(find: Callable[[], Any]) -> Any:
    """The first true value of `find()`; fails when there is none within a minute."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline, "TensorBoard did not get that far in a minute"
        time.sleep(0.05)
    return found


class Board:
    """A running TensorBoard on the folder `logs`."""

    def __init__(self, address: str, logs: Path) -> None:
        self.address, self.logs = address, logs

    def fetch(self, route: str, post: object = None, **query: object) -> bytes:
        request = urllib.request.Request(
            f"{self.address}/data{route}?{urllib.parse.urlencode(query)}",
            data=None if post is None else json.dumps(post).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, route: str, post: object = None, **query: object) -> Any:
        return json.loads(self.fetch(route, post, **query))

    def scalars(self, run: str, tag: str) -> list[list[float]]:
        if tag not in self.ask("/plugin/scalars/tags").get(run, {}):
            return []
        found: list[list[float]] = self.ask("/plugin/scalars/scalars", run=run, tag=tag)
        return found

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The rows of the hyper-parameters table by the name of their run."""
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        post = {"allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 99}
        groups = self.ask("/plugin/hparams/session_groups", post=post)["sessionGroups"]
        return {group["name"]: group for group in groups}


@contextmanager
def tensorboard(logs: Path) -> Iterator[Board]:
    """TensorBoard on the folder `logs`, answering on a free port until the block ends."""
    output = logs.parent / "tensorboard.txt"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs)]
    command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with output.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", output.read_text()))
            yield Board(address[0], logs)
        finally:
            server.kill()
