"""Event files as a real TensorBoard shows them, asked over HTTP."""

import html
import json
import re
import time
from itertools import chain
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from tests.photo_folders import start
from utils.tracking import METRICS, Tracker

CLASSES = ["frost", "rain", "snow"]
COUNTS = [[5, 1, 0], [0, 7, 2], [3, 0, 4]]
SETTINGS = {"arch": "resnet18", "teacher": "resnet50", "method": "kd", "alpha": 0.7} | {
    "temperature": 2.0, "lr": 0.5, "pretrained": False, "classes": ["*x*|<b>", "雪 \udcff"],
}  # fmt: skip
CURVES = ("lr", "loss/train", "loss/val", "accuracy/train", "accuracy/val", "kd/train", "kd/val")
EPOCHS = [
    {"epoch": n, "wall_time": 1e9 + n} | {tag: n + i / 8 for i, tag in enumerate(CURVES)}
    for n in (1, 2, 3, 4)
]


def wait_for(find):
    """The first true value of `find()`; fails when there is none within a minute."""
    deadline = time.monotonic() + 60
    while not (found := find()):
        assert time.monotonic() < deadline, "TensorBoard did not get that far in a minute"
        time.sleep(0.05)
    return found


class Board:
    def __init__(self, address):
        self.address = address

    def ask(self, route, **query):
        with urlopen(f"{self.address}/data{route}?{urlencode(query)}", timeout=30) as answer:
            return json.load(answer)

    def scalars(self, run, tag):
        """The points of a curve: wall time, step, value."""
        known = tag in self.ask("/plugin/scalars/tags").get(run, {})
        return self.ask("/plugin/scalars/scalars", run=run, tag=tag) if known else []

    def sessions(self):
        """The rows of the hyper-parameters table by the name of their run."""
        states = [f"STATUS_{state}" for state in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        wanted = {"allowedStatuses": states, "colParams": [], "startIndex": 0, "sliceSize": 99}
        table = self.ask("/plugin/hparams/session_groups", request=json.dumps(wanted))
        return {group["name"]: group for group in table["sessionGroups"]}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A finished run, and one that is killed and resumed while TensorBoard is open."""
    if pytest.importorskip("tensorboard_data_server").server_binary() is None:
        pytest.skip("without its data server, TensorBoard has to be started again")
    logs, output = (tmp_path_factory.mktemp("tensorboard") / name for name in ("logs", "output"))
    with Tracker(logs / "first", EPOCHS, {"lr": 0.25, "arch": "resnet18"}) as tracker:
        tracker.finish({"test/accuracy": 0.75}, COUNTS, CLASSES)
    words = ("-m", "tensorboard.main", "--host=127.0.0.1", "--port=0", "--reload_interval=1")
    with (
        output.open("w") as out,
        start(*words, f"--logdir={logs}", stdout=out, stderr=out) as server,
        Tracker(logs / "resumed", EPOCHS[:1], SETTINGS) as killed,
    ):
        try:
            address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", output.read_text()))
            board = Board(address[0])
            killed.epoch(EPOCHS[1])
            wait_for(lambda: len(board.scalars("resumed/train", "lr")) == 2)
            with Tracker(logs / "resumed", EPOCHS[:1], SETTINGS) as tracker:
                for row in EPOCHS[1:]:
                    tracker.epoch(row)
                tracker.finish({"test/accuracy": 0.875}, COUNTS, CLASSES)
            wait_for(lambda: "STATUS_SUCCESS" in str(board.sessions()["resumed"]))
            yield board
        finally:
            server.kill()


def test_each_run_has_its_curves_with_one_point_an_epoch(board):
    found = board.ask("/plugin/scalars/tags")
    parts = {"": {"test/accuracy"}, "/train": {"lr", "loss", "accuracy", "kd"}}
    parts["/val"] = {"loss", "accuracy", "kd"}
    assert {run: {*tags} for run, tags in found.items()} == {
        f"{run}{part}": tags for run in ("first", "resumed") for part, tags in parts.items()
    }
    for tag in CURVES:
        name, _, part = tag.partition("/")
        points = [[row["wall_time"], row["epoch"], row[tag]] for row in EPOCHS]
        assert board.scalars(f"resumed/{part or 'train'}", name) == points


def test_the_table_of_runs_has_the_telling_settings_and_results(board):
    table = board.ask("/plugin/hparams/experiment", request='{"includeMetrics": true}')
    assert {i["name"] for i in table["hparamInfos"]} == {"arch", "lr", "teacher"}
    assert [i["name"]["tag"] for i in table["metricInfos"]] == [*METRICS]
    first, resumed = (board.sessions()[run] for run in ("first", "resumed"))
    assert first["hparams"] == {"lr": 0.25, "arch": "resnet18", "teacher": "none"}
    assert resumed["hparams"] == first["hparams"] | {"lr": 0.5, "teacher": "resnet50 kd 0.7 2.0"}
    assert resumed["sessions"][0]["status"] == "STATUS_SUCCESS"
    results = {value["name"]["tag"]: value["value"] for value in resumed["metricValues"]}
    assert results == {"test/accuracy": 0.875}


def test_settings_and_confusions_are_shown_as_they_are(board):
    (text,) = board.ask("/plugin/text/text", run="resumed", tag="test/confusion/text_summary")
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", text["text"])
    rows = [["true ↓ predicted →", "1", "2", "3"], ["1 frost", "5", "1", ""]]
    rows += [["2 rain", "", "7", "2"], ["3 snow", "3", "", "4"]]
    assert cells == list(chain(*rows))
    (text,) = board.ask("/plugin/text/text", run="resumed", tag="settings/text_summary")
    code = html.unescape(re.sub("<[^>]*>", "", text["text"])).strip()
    assert code.splitlines() == [f"{name}: {value!r}" for name, value in SETTINGS.items()]
