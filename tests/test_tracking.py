"""Event files as TensorBoard shows them, and the pictures in them."""

import html
import io
import json
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from config import UserError
from tests.boards import Board, tensorboard, wait_for
from utils import tracking
from utils.drawing import FULL, WrongPhoto, confusion_matrix, photo_grid
from utils.tracking import Tracker, tensorboard_command

ROOT = Path(__file__).parents[1]
CLASSES = ["frost", "rain", "snow"]
CONFUSION = np.array([[5, 1, 0], [0, 7, 2], [3, 0, 4]])
WRONG: list[WrongPhoto] = [(np.full((8, 8, 3), 90, np.uint8), "frost", "snow", 0.9)]
BASELINE, DISTILLED = "photos-64px-resnet18-seed0", "photos-64px-resnet50-teaches-resnet18-seed0"
# Curves that belong into no chart of train and val, though some are named much like one that does.
OTHER_CURVES = {"agreement/val": 0.5, "speed/train": 9.0, "dkdx1/train": 1.0, "kd/train/raw": 2.0}


def history(epochs: int, *parts: str) -> list[dict[str, float]]:
    """Rows whose curves are all different and exact in float32."""
    rows: list[dict[str, float]] = []
    for epoch in range(1, epochs + 1):
        rows.append({"epoch": epoch, "wall_time": 1.7e9 + 60 * epoch, "seconds": 59.0})
        for index, part in enumerate(("loss", "accuracy", *parts)):
            rows[-1][f"{part}/train"] = epoch + index / 8
            rows[-1][f"{part}/val"] = epoch + index / 8 + 1 / 16
        rows[-1] |= {"lr": 0.5**epoch, "images_per_second": 800.0 + epoch}
    return rows


def points(rows: list[dict[str, float]], tag: str) -> list[list[float]]:
    """The points of a curve as TensorBoard hands them out: wall time, step, value."""
    return [[row["wall_time"], row["epoch"], row[tag]] for row in rows]


def read(folder: Path, tag: str) -> list[list[float]]:
    """The same from a run's folder, by TensorBoard's own reader."""
    found = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return [[point.wall_time, point.step, point.value] for point in found]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    folder = tmp_path_factory.mktemp("tensorboard")
    logs = folder / "logs"
    settings = {"model": "resnet18", "lr": 0.001, "seed": 0, "pretrained": False}
    with Tracker(logs / BASELINE, history(3), settings | {"limit": None}) as tracker:
        tracker.finish({"test/accuracy": 0.75, "best/val_loss": 0.5}, CONFUSION, CLASSES, [])
    # A name that is Markdown, HTML and a table cell at once, and a number that JSON does not know.
    settings |= {"alpha": 0.5, "models": ("a", "b"), "limit": float("inf"), "path": "*x*|<b>`_y_"}
    rows = history(4, "kd", "dkd.1")
    for row in rows:
        row |= OTHER_CURVES
    with Tracker(logs / DISTILLED, rows[:2], settings) as tracker:
        tracker.epoch(rows[2])
    with Tracker(logs / DISTILLED, rows[:3], settings) as tracker:
        tracker.epoch(rows[3])
        tracker.finish({"test/accuracy": 0.875}, CONFUSION, CLASSES, WRONG)

    with tensorboard(logs) as board:
        wait_for(lambda: board.scalars(BASELINE, "lr") and board.scalars(DISTILLED, "lr"))
        yield board


def test_board_has_the_curves_and_no_stray_runs(board: Board) -> None:
    tags = board.ask("/plugin/scalars/tags")
    assert {run for run in tags if run.startswith("photos")} == {BASELINE, DISTILLED}
    curves = {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "lr", "images_per_second"}
    assert set(tags[BASELINE]) == curves | {"test/accuracy", "best/val_loss"}
    parts = {"kd/train", "kd/val", "dkd.1/train", "dkd.1/val"}
    assert set(tags[DISTILLED]) == curves | parts | set(OTHER_CURVES) | {"test/accuracy"}
    assert board.scalars(BASELINE, "loss/val") == points(history(3), "loss/val")


def test_board_shows_a_resumed_run_as_one(board: Board) -> None:
    for tag in ("loss/train", "kd/val", "lr"):
        assert board.scalars(DISTILLED, tag) == points(history(4, "kd", "dkd.1"), tag)


def test_open_board_follows_a_run_that_is_resumed(board: Board) -> None:
    if pytest.importorskip("tensorboard_data_server").server_binary() is None:
        pytest.skip("without its data server TensorBoard has to be started again")
    run, rows = "killed", history(3)
    first = Tracker(board.logs / run, rows[:2], {"lr": 0.001})
    wait_for(lambda: len(board.scalars(run, "lr")) == 2)
    first.close()
    with Tracker(board.logs / run, rows[:1], {"lr": 0.001}) as tracker:
        tracker.epoch(rows[1])
        tracker.epoch(rows[2])
    wait_for(lambda: rows[2]["epoch"] in [step for _, step, _ in board.scalars(run, "lr")])
    assert board.scalars(run, "lr") == points(rows, "lr")


def custom_charts(board: Board, title: str) -> dict[str, list[str]]:
    """The tag patterns of a category's charts; of all runs, TensorBoard makes one layout."""
    categories = board.ask("/plugin/custom_scalars/layout")["category"]
    (category,) = [category for category in categories if category["title"] == title]
    return {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}


def test_custom_charts_overlay_train_and_val(board: Board) -> None:
    charts = custom_charts(board, "train and val")
    assert list(charts) == ["loss", "accuracy", "kd", "dkd.1"]
    for part, patterns in charts.items():
        shown: set[str] = set()
        for pattern in patterns:
            answer = board.ask("/plugin/custom_scalars/scalars", run=DISTILLED, tag=pattern)
            shown |= set(answer["tag_to_events"])
        assert shown == {f"{part}/train", f"{part}/val"}


def test_custom_charts_put_baseline_and_student_side_by_side(board: Board) -> None:
    charts = custom_charts(board, "runs side by side")
    assert list(charts) == ["accuracy/val", "loss/val"]
    for tag, (pattern,) in charts.items():
        for run in (BASELINE, DISTILLED):  # one chart shows this for all runs that are ticked
            answer = board.ask("/plugin/custom_scalars/scalars", run=run, tag=pattern)
            assert set(answer["tag_to_events"]) == {tag}


def test_hyperparameters_table_has_the_columns_of_all_runs(board: Board) -> None:
    table = board.ask("/plugin/hparams/experiment", post={"includeMetrics": True})
    names = {info["name"] for info in table["hparamInfos"]}
    every = {"model", "lr", "seed", "pretrained", "alpha", "models", "limit", "path"}
    assert names == every
    metrics = {info["name"]["tag"] for info in table["metricInfos"]}
    assert {"test/accuracy", "best/val_loss", "loss/val"} <= metrics


def test_hyperparameters_table_has_one_row_a_run_with_its_results(board: Board) -> None:
    rows = board.sessions()
    assert {name for name in rows if name.startswith("photos")} == {BASELINE, DISTILLED}
    assert rows[BASELINE]["hparams"] == {
        "model": "resnet18", "lr": 0.001, "seed": 0.0, "pretrained": "False",
    }  # fmt: skip
    assert rows[DISTILLED]["hparams"]["models"] == "a b"
    assert rows[DISTILLED]["hparams"]["limit"] == "inf"
    results = {v["name"]["tag"]: v["value"] for v in rows[BASELINE]["metricValues"]}
    assert results["test/accuracy"] == 0.75
    assert results["best/val_loss"] == 0.5
    assert rows[BASELINE]["sessions"][0]["status"] == "STATUS_SUCCESS"


def test_unfinished_run_is_in_the_table_but_not_as_a_success(board: Board) -> None:
    with Tracker(board.logs / "unfinished", history(1), {"lr": 0.25}):
        row = wait_for(lambda: board.sessions().get("unfinished"))
    assert row["hparams"] == {"lr": 0.25}
    assert row["sessions"][0]["status"] != "STATUS_SUCCESS"


def test_board_shows_the_pictures(board: Board) -> None:
    tags = board.ask("/plugin/images/tags")
    assert set(tags[BASELINE]) == {"test/confusion_matrix"}
    assert set(tags[DISTILLED]) == {"test/confusion_matrix", "test/most_confident_errors"}
    drawn = {
        "test/confusion_matrix": confusion_matrix(CONFUSION, CLASSES),
        "test/most_confident_errors": photo_grid(WRONG),
    }
    for tag, picture in drawn.items():
        (sample,) = board.ask("/plugin/images/images", run=DISTILLED, tag=tag, sample=0)
        assert sample["step"] == 4
        png = board.fetch(f"/plugin/images/individualImage?{sample['query']}&")
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)), picture)


def cells(page: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<t[hd]>([^<]*)</t[hd]>", page)]


def test_board_shows_the_config_as_a_table(board: Board) -> None:
    (text,) = board.ask("/plugin/text/text", run=DISTILLED, tag="config/text_summary")
    shown = cells(text["text"])
    assert shown[:4] == ["setting", "value", "model", "resnet18"]
    assert shown[-2:] == ["path", "*x*|<b>`_y_"]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("C", "Z")), min_size=1),
        st.text(st.characters(exclude_categories=("C", "Z")), min_size=1),
        min_size=1,
    )
)
@example({"a|b": "[x](http://y)", "__init__": "# 1. > - ~~x~~", "\\|": "&amp; <script>"})
def test_any_config_reads_as_it_was(config: dict[str, str]) -> None:
    page = markdown_to_safe_html(tracking._markdown_table(config))
    assert cells(page)[2:] == [text for item in config.items() for text in item]


def test_start_removes_event_files_and_nothing_else(tmp_path: Path) -> None:
    kept = ["notes.txt", "tfevents", "old-events.out.tfevents.1", "child/events.out.tfevents.1.vm"]
    kept += ["events.out.tfevents.folder/inside"]
    removed = ["events.out.tfevents.1700000000.vm.1.0", "events.out.tfevents.2.vm.7.1.suffix"]
    for name in kept + removed:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not ours")
    (tmp_path / "events.out.tfevents.3.link").symlink_to(tmp_path / "notes.txt")
    Tracker(tmp_path, history(1), {}).close()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    (events,) = left - set(kept)
    assert left - {events} == set(kept)
    assert events.startswith("events.out.tfevents.")


def test_many_starts_leave_one_file_with_one_point_an_epoch(tmp_path: Path) -> None:
    rows = history(5)
    for done in range(5):
        with Tracker(tmp_path, rows[:done], {}) as tracker:
            tracker.epoch(rows[done])
    assert len(list(tmp_path.iterdir())) == 1
    assert read(tmp_path, "loss/train") == points(rows, "loss/train")


def test_killed_run_keeps_every_finished_epoch(tmp_path: Path) -> None:
    script = """
import json, os, signal, sys
from pathlib import Path
from utils.tracking import Tracker
rows = json.loads(sys.argv[2])
tracker = Tracker(Path(sys.argv[1]), rows[:1], {})
for row in rows[1:]:
    tracker.epoch(row)
os.kill(os.getpid(), signal.SIGKILL)
"""
    rows = history(3)
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(rows)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert read(tmp_path, "loss/val") == points(rows, "loss/val")


def test_event_cut_in_two_hides_no_earlier_epoch(tmp_path: Path) -> None:
    rows = history(2)
    Tracker(tmp_path, rows, {}).close()
    (events,) = tmp_path.iterdir()
    events.write_bytes(events.read_bytes()[:-7])
    assert read(tmp_path, "loss/val") == points(rows, "loss/val")


def test_unwritable_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "file"))):
        Tracker(tmp_path / "file", [], {})


def test_full_disk_is_one_message_and_keeps_the_past(tmp_path: Path) -> None:
    rows = history(2)
    tracker = Tracker(tmp_path, rows[:1], {})
    (events,) = tmp_path.iterdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (events.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write the TensorBoard events"):
            tracker.epoch(rows[1])
        with pytest.raises(UserError):
            tracker.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read(tmp_path, "loss/val") == points(rows[:1], "loss/val")


@pytest.mark.parametrize("name", ["output/logs", "my logs/$HOME", "it's", "-logs"])
def test_command_opens_the_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(tensorboard_command(tmp_path / name)) == ["tensorboard", f"--logdir={name}"]
    assert tensorboard_command(Path("output/logs")) == "tensorboard --logdir=output/logs"
    elsewhere = tmp_path.parent / name
    assert shlex.split(tensorboard_command(elsewhere))[1] == f"--logdir={elsewhere}"


def names(number: int) -> list[str]:
    return [f"class {index}" for index in range(number)]


def full_box(counts: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what has the colour of a cell that holds its whole row."""
    picture = np.asarray(confusion_matrix(counts, names(len(counts))))
    rows, columns = np.nonzero((picture == FULL).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def one_cell(number: int, row: int, column: int) -> np.ndarray:
    counts = np.zeros((number, number), np.int64)
    counts[row, column] = 9
    return counts


@pytest.mark.parametrize("number", [2, 11, 100])
def test_darkest_cell_is_where_the_photos_are(number: int) -> None:
    last = number - 1
    left, top, _, _ = full_box(one_cell(number, 0, 0))
    _, _, right, bottom = full_box(one_cell(number, last, last))
    cell = (right - left) / number
    for row, column in [(0, last), (last, 0), (number // 2, number // 3)]:
        place = full_box(one_cell(number, row, column))
        expected = (left + column * cell, top + row * cell)
        np.testing.assert_allclose(place[:2], expected, atol=2)
        np.testing.assert_allclose(place[2:], np.add(expected, cell), atol=2)
    assert bottom - top == right - left


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 5000), min_size=3, max_size=3), min_size=3, max_size=3))
@example([[0, 0, 0], [1, 0, 0], [0, 5000, 5000]])
def test_colours_are_shares_of_the_row(counts: list[list[int]]) -> None:
    left, top, _, _ = full_box(one_cell(3, 0, 0))
    _, _, right, _ = full_box(one_cell(3, 2, 2))
    cell = (right - left) / 3
    picture = np.asarray(confusion_matrix(np.array(counts), names(3)))
    for row, column in np.ndindex(3, 3):
        corner = picture[round(top + row * cell) + 5, round(left + column * cell) + 5]
        share = counts[row][column] / max(sum(counts[row]), 1)
        np.testing.assert_allclose(corner, 255 - share * (255 - np.array(FULL)), atol=1)


def test_a_cell_carries_its_count() -> None:
    """The same shares with another count: only the number in that cell can differ."""
    left, top, right, bottom = full_box(one_cell(3, 0, 2))
    pictures = (confusion_matrix(one_cell(3, 0, 2) * times, names(3)) for times in (1, 11))
    before, after = map(np.asarray, pictures)
    rows, columns = np.nonzero((before != after).any(axis=2))
    assert len(rows) > 0
    assert top <= rows.min() <= rows.max() < bottom
    assert left <= columns.min() <= columns.max() < right


@pytest.mark.parametrize("number", [2, 11, 100])
def test_classes_are_named_on_both_sides(number: int) -> None:
    counts = np.eye(number, dtype=np.int64)
    left, top, right, bottom = full_box(counts)
    before = confusion_matrix(counts, ["one", *names(number)[1:]])
    after = confusion_matrix(counts, ["two", *names(number)[1:]])
    rows, columns = np.nonzero((np.asarray(before) != np.asarray(after)).any(axis=2))
    beside, below = columns < left, rows >= bottom
    assert beside.any()
    assert below.any()
    assert (beside | below).all()
    assert rows[beside].max() < top + (bottom - top) / number
    assert columns[below].max() < left + (right - left) / number


@pytest.mark.parametrize("number", [2, 11, 100, 1000])
def test_picture_stays_of_a_size_to_look_at(number: int) -> None:
    long = [f"{index}: a class with a very long name " * 9 for index in range(number)]
    picture = confusion_matrix(np.eye(number, dtype=np.int64), long)
    assert max(picture.size) < 2300
    assert min(picture.size) > 250


def test_names_that_the_font_lacks_stay_told_apart() -> None:
    counts = np.eye(2, dtype=np.int64)
    assert confusion_matrix(counts, ["雪", "雨"]) == confusion_matrix(counts, names(2))
    assert confusion_matrix(counts, ["Grün", "Été"]) == confusion_matrix(counts, ["Grun", "Ete"])


def test_matrix_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="3 classes"):
        confusion_matrix(np.eye(4, dtype=np.int64), names(3))


def plain(value: int) -> np.ndarray:
    return np.full((20, 20, 3), value, np.uint8)


def test_grid_begins_with_the_most_confident_error() -> None:
    photos = [(plain(60), "frost", "rain", 0.5), (plain(200), "snow", "rain", 0.9)]
    grid = np.asarray(photo_grid(photos))
    assert grid[60, 60].tolist() == [200] * 3
    assert grid[60, -60].tolist() == [60] * 3
    assert photo_grid(photos[::-1]) == photo_grid(photos)


def test_grid_shows_the_most_certain_ones_only() -> None:
    photos = [(plain(index), "frost", "rain", 1 - index / 100) for index in range(30)]
    assert photo_grid(photos) == photo_grid(photos[:24]) != photo_grid(photos[:23])


@pytest.mark.parametrize(
    "other", [("dew", "rain", 0.5), ("frost", "dew", 0.5), ("frost", "rain", 0.6)]
)
def test_captions_tell_classes_and_probability(other: tuple[str, str, float]) -> None:
    same = photo_grid([(plain(90), "frost", "rain", 0.5)])
    grid = photo_grid([(plain(90), *other)])
    differs = (np.asarray(grid) != np.asarray(same)).any(axis=(1, 2))
    assert differs.any()
    assert not differs[: grid.height - 60].any()


def test_grid_takes_photos_of_any_size_and_kind() -> None:
    wide = np.zeros((10, 90, 3), np.uint8)
    long = "a class with a very long name " * 5
    grid = photo_grid([(wide, long, long, 0.99), (Image.new("L", (300, 400)), "雪", "ice", 0.5)])
    assert grid.mode == "RGB"
    assert grid == photo_grid(
        [
            (Image.fromarray(wide), long, long, 0.99),
            (Image.new("RGB", (300, 400)), "雪", "ice", 0.5),
        ]
    )
