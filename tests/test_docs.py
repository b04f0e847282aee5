"""What docs/ and README say is what the kept runs say: tables, figures, and the runs themselves."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import docs.evidence
from config import UserError
from docs.contents import DOCUMENTS, SPLITS, TABLES
from docs.evidence import (
    PLACE,
    RESULTS,
    alone,
    comparisons,
    cost,
    differences,
    drawn_by,
    grid,
    keep,
    kept,
    lessons,
    on_splits,
    over_splits,
    taught_by,
    written,
)
from utils.metrics import mean_interval

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/result.json"))
each_document = pytest.mark.parametrize("document", DOCUMENTS)


@each_document
def test_the_tables_in_a_document_are_what_the_kept_runs_give(document):
    text = (ROOT / document).read_text("utf-8")
    assert written(text, TABLES) == text, "run python -m docs.build"


def test_every_table_has_one_place():
    texts = [(ROOT / document).read_text("utf-8") for document in DOCUMENTS]
    places = [match[2] for text in texts for match in PLACE.finditer(text)]
    assert sorted(places) == sorted(TABLES)
    assert len(places) >= 8


@each_document
def test_a_document_shows_pictures_that_are_there(document):
    path = ROOT / document
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text("utf-8"))
    assert pictures or document == "docs/recipe.md"
    for picture in pictures:
        with Image.open(path.parent / picture) as image:
            assert min(image.size) > 200


def test_kept_runs_agree_with_their_histories_and_themselves():
    for folder in FOLDERS:
        check_kept_run(folder)


def check_kept_run(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["run"] == folder.name
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "result.json"]
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]
    assert len(history) == result["epochs"] == result["recipe"]["epochs"]
    table, test = result["table"], result["test"]
    best = max(history, key=lambda row: (row["accuracy/val"], -row["loss/val"]))
    assert result["best_epoch"] == best["epoch"]
    assert table["best_val_accuracy"] == best["accuracy/val"]
    assert table["best_val_loss"] == min(row["loss/val"] for row in history)
    assert table["final_val_accuracy"] == history[-1]["accuracy/val"]
    confusion = np.array(test["confusion"])
    assert confusion.sum() == test["photos"] == result["photos"]["counts"]["test"]
    assert len(test["wrong"]) == confusion.sum() - np.trace(confusion)
    assert test["accuracy"] == table["test_accuracy"] == np.trace(confusion) / confusion.sum()


def test_kept_runs_share_precision_and_those_of_one_splits_seed_their_split():
    results = [run for runs in kept().values() for run in runs]
    assert len(results) == len(FOLDERS)
    splits = {(drawn_by(run), run["photos"]["split"]) for run in results}
    assert len(splits) == len(dict(splits)) == len(set(dict(splits).values()))
    for run in results:
        seed, fold = drawn_by(run)
        assert (f"-split{seed}-seed" in run["run"]) == (seed > 0)
        assert (f"-fold{fold}of10-seed" in run["run"]) == (fold is not None)
    assert len({run["environment"]["precision"] for run in results}) == 1


def test_students_are_compared_with_their_own_baselines_and_teachers():
    students = {name: runs for name, runs in kept().items() if runs[0].get("lesson")}
    assert students
    for name, runs in students.items():
        _, _, line = lessons({name: runs}).splitlines()
        _, title, seeds, teacher, student, taught, *gains, val, _ = map(str.strip, line.split("|"))
        assert (title, int(seeds)) == (name, len(runs))
        sides = {}
        for side, folders in (
            (taught, [run["run"] for run in runs]),
            (student, [run["lesson"]["baseline"] for run in runs]),
            (teacher, [run["teacher"]["run"] for run in runs]),
        ):
            paths = [RESULTS / folder / "result.json" for folder in folders]
            accuracies = [json.loads(p.read_text("utf-8"))["test"]["accuracy"] for p in paths]
            sides[side] = 100 * np.mean(accuracies)
            assert float(side.split(" ")[0].removesuffix("%")) == pytest.approx(
                sides[side], abs=0.006
            )
        for cell, side in zip(gains, (student, teacher), strict=True):
            mean, low, high = map(float, re.findall(r"[-+][\d.]+", cell))
            assert mean == pytest.approx(sides[taught] - sides[side], abs=0.006)
            assert low <= mean <= high
        vals = [run["val"]["accuracy"] - alone(run)["val"]["accuracy"] for run in runs]
        mean, low, high = map(float, re.findall(r"[-+][\d.]+", val))
        assert mean == pytest.approx(100 * np.mean(vals), abs=0.006)
        assert low <= mean <= high
        for run in runs:
            assert alone(run)["seed"] == taught_by(run)["seed"] == run["seed"]
            assert taught_by(run)["digest"] == run["teacher"]["digest"]


def read(folder: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / folder / "result.json").read_text("utf-8")))


def cells(table: str) -> list[list[str]]:
    """The cells below a Markdown table's head."""
    return [[c.strip() for c in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]


def test_a_comparison_is_with_the_same_seeds_of_the_other_runs():
    name, other = "resnet18-patient", "resnet18"
    ((title, seeds, val, more, test, points, _),) = cells(comparisons({"longer": name}, other))
    folders = [path.name for path in FOLDERS if f"-{name}-seed" in path.name]
    assert (title, int(seeds)) == ("longer", len(folders))
    accuracies = np.array(
        [
            [
                read(folder)["val"]["accuracy"],
                read(folder)["test"]["accuracy"],
                read(folder.replace(name, other))["test"]["accuracy"],
                read(folder.replace(name, other))["val"]["accuracy"],
            ]
            for folder in folders
        ]
    )
    mean = 100 * accuracies.mean(0)
    assert float(val.split(" ")[0].removesuffix("%")) == pytest.approx(mean[0], abs=0.006)
    assert float(test.split(" ")[0].removesuffix("%")) == pytest.approx(mean[1], abs=0.006)
    assert float(points.split(" ")[0]) == pytest.approx(mean[1] - mean[2], abs=0.006)
    assert float(more.split(" ")[0]) == pytest.approx(mean[0] - mean[3], abs=0.006)


def test_splits_stand_below_each_other_with_their_gains_and_means():
    columns = {"alone": "resnet18", "taught": "resnet18-from-resnet18.patient-kd-a0.7-T2"}
    rows = cells(over_splits(columns, SPLITS))
    assert len(SPLITS) >= 3
    for part, title, lines in (
        ("val", "validation", rows[: len(rows) // 2]),
        ("test", "test", rows[len(rows) // 2 :]),
    ):
        both = np.array(
            [
                [
                    read(f"weather-64px-{name}{f'-split{k}' if k else ''}-seed{k}")[part][
                        "accuracy"
                    ]
                    for name in columns.values()
                ]
                for k in SPLITS
            ]
        )
        gains = 100 * (both[:, 1] - both[:, 0])
        for split, (own, student), gain, line in zip(SPLITS, both, gains, lines, strict=False):
            assert line[0] == f"{title}, split {split}"
            assert line[1:] == [f"{own:.2%}", f"{student:.2%} ({gain:+.2f})"]
        numbers = map(float, re.findall(r"[-+]?[\d.]+", " ".join(lines[-2][1:])))
        means, spreads = 100 * both.mean(0), 100 * both.std(0, ddof=1)
        expected = (means[0], spreads[0], means[1], spreads[1], gains.mean(), gains.std(ddof=1))
        assert list(numbers) == pytest.approx(expected, abs=0.006)


def test_the_gain_over_splits_is_a_mean_with_the_interval_over_them():
    columns = {"alone": "resnet18", "taught": "resnet18-from-resnet18.patient-kd-a0.7-T2"}
    without, taught = (on_splits(name, SPLITS) for name in columns.values())
    rows = cells(over_splits(columns, SPLITS))
    *_, on_test, _, on_val = cells(lessons({"": taught}))[0]
    for part, in_lessons, row in (
        ("val", on_val, rows[len(SPLITS) + 1]),
        ("test", on_test, rows[-1]),
    ):
        first, second = ([hits(run[part]) for run in runs] for runs in (taught, without))
        gain = mean_interval([a - b for a, b in zip(first, second, strict=True)])
        expected = 100 * np.array(gain)
        for cell in (in_lessons, row[-1]):
            found = [float(number) for number in re.findall(r"[-+][\d.]+", cell)]
            assert found == pytest.approx(list(expected), abs=0.006)


def test_differences_are_those_of_the_tables_over_splits():
    longer, taught = "resnet18-23epochs", "resnet18-from-resnet18.patient-kd-a0.7-T2"
    rows = cells(over_splits({"": longer, " ": taught}, SPLITS))
    ((*found,),) = cells(differences({"it": (taught, longer)}, SPLITS))
    assert found == ["it", rows[len(SPLITS) + 1][-1], rows[-1][-1]]


def hits(measured: dict[str, Any]) -> np.ndarray:
    """(1, photos): 1 for each photo that was recognised, else 0."""
    return 1 - np.isin(np.arange(measured["photos"]), measured["wrong"])[None]


def test_folds_are_pooled_over_all_photos():
    ((name, photos, over, accuracy, interval),) = cells(TABLES["folds"]())
    runs = [read(f"weather-64px-resnet18-fold{fold}of10-seed0") for fold in range(10)]
    assert (name, photos, over) == ("ResNet18, 15 epochs", "3,735", "10 folds")
    wrong = sum(len(run["test"]["wrong"]) for run in runs)
    assert accuracy == f"{1 - wrong / 3735:.2%}"
    means = [run["test"]["accuracy"] for run in runs]
    low, high = (float(text.removesuffix("%")) for text in interval.split(" to "))
    half = 100 * max(
        2.262 * np.std(means, ddof=1) / 10**0.5,
        1.962 * (wrong / 3735 * (1 - wrong / 3735) / 3735) ** 0.5,
    )
    assert (high - low) / 2 == pytest.approx(half, abs=0.02)


def test_a_grid_has_every_value_at_its_place():
    name = "resnet18-from-resnet18.patient-kd-a{alpha}-T{temperature}"
    rows = cells(grid(name, ("0.9", "1"), ("2", "4", "9")))
    assert [row[0] for row in rows] == ["α 0.9", "α 1"]
    for alpha, row in zip(("0.9", "1"), rows, strict=True):
        for temperature, cell in zip("24", row[1:3], strict=True):
            run = name.format(alpha=alpha, temperature=temperature)
            table = read(f"weather-64px-{run}-seed0")["table"]
            assert cell == f"{table['best_val_accuracy']:.2%}, {table['best_val_loss']:.3f}"
        assert row[3] == ""


def test_the_cost_is_that_of_all_runs():
    *kinds, (together, count, _, hours) = cells(cost())
    assert together == "together"
    assert int(count) == len(FOLDERS) == sum(int(kind[1]) for kind in kinds)
    seconds = sum(read(folder.name)["seconds"] for folder in FOLDERS)
    assert float(hours) == pytest.approx(seconds / 3600, abs=0.051)


def test_a_place_is_filled_again_and_an_unknown_one_refused():
    text = "before\n<!-- table: a b -->\nold\n\nolder\n<!-- end -->\nafter\n"
    tables = {"a b": lambda: "| 1 |\n"}
    filled = written(text, tables)
    assert filled == "before\n<!-- table: a b -->\n\n| 1 |\n\n<!-- end -->\nafter\n"
    assert written(filled, tables) == filled
    with pytest.raises(UserError, match="'a b'"):
        written(text, {})
    # A place without an end takes nothing that follows.
    open_place = "<!-- table: a b -->\nprose\n"
    assert written(open_place + text, tables) == open_place + filled


def test_runs_are_kept_without_what_is_large_or_of_other_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(docs.evidence, "RESULTS", tmp_path / "kept")
    source = FOLDERS[0]
    for name in (source.name, "sample-64px-resnet18-seed0"):
        shutil.copytree(source, tmp_path / "output" / "results" / name)
        (tmp_path / "output" / "results" / name / "test_logits.npz").write_bytes(b"large")
    (tmp_path / "output" / "results" / (source.name + "1")).mkdir()  # not finished
    try:
        assert keep(tmp_path / "output") == [source.name]
        found = (tmp_path / "kept" / source.name).iterdir()
        kept_files = {path.name: path.read_bytes() for path in found}
        assert kept_files == {path.name: path.read_bytes() for path in source.iterdir()}
        assert len(kept()) == 1
        result = read(source.name)
        result["photos"]["split"] = "0123456789abcdef"
        (tmp_path / "output" / "results" / source.name / "result.json").write_text(
            json.dumps(result), "utf-8"
        )
        with pytest.raises(UserError, match="of split 0123456789abcdef, and kept are"):
            keep(tmp_path / "output")
        with pytest.raises(UserError, match="no finished run"):
            keep(tmp_path / "outptu")
    finally:
        kept.cache_clear()


def test_one_command_makes_every_table_and_figure_again(tmp_path):
    """In a copy of the repo whose tables are emptied and whose figures are gone."""
    for name in ("config.py", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("data", "models", "utils"):  # without photos, which may lie in data/
        (tmp_path / name).mkdir()
        for source in (ROOT / name).glob("*.py"):
            shutil.copy(source, tmp_path / name)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for document in DOCUMENTS:
        path = tmp_path / document
        path.write_text(PLACE.sub(r"\1\4", path.read_text("utf-8")), "utf-8")
    screenshots = {"sample.png", "tensorboard.png"}
    figures = [
        path.relative_to(tmp_path)
        for path in tmp_path.glob("docs/**/*.png")
        if path.name not in screenshots
    ]
    assert len(figures) >= 14
    for figure in figures:
        (tmp_path / figure).unlink()
    command = [sys.executable, "-m", "docs.build"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for document in DOCUMENTS:
        assert (tmp_path / document).read_text("utf-8") == (ROOT / document).read_text("utf-8")
    for figure in figures:
        with Image.open(tmp_path / figure) as made, Image.open(ROOT / figure) as shown:
            assert made.size == shown.size
            assert np.mean(np.asarray(made) != np.asarray(shown)) < 0.02, figure
