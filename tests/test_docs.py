"""What docs/ and README say is what the kept runs say: tables, figures, and the runs themselves."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import docs.kept
from config import ROOT, UserError
from data.files import csv_text
from docs.build import PLACE, filled
from docs.contents import DOCUMENTS, tables
from docs.figures import FIGURES
from docs.kept import keep, kept
from utils.metrics import mean_interval


def test_the_tables_in_the_documents_are_what_the_kept_runs_give():
    made, texts = tables(), {name: (ROOT / name).read_text("utf-8") for name in DOCUMENTS}
    for name, text in texts.items():
        assert filled(text, made) == text, f"{name}: run python -m docs.build"
    places = [match[2] for text in texts.values() for match in PLACE.finditer(text)]
    assert sorted(places) == sorted(made)
    with pytest.raises(UserError, match="no such table"):
        filled("<!-- table: other -->\n<!-- end -->", made)


def test_a_figure_is_what_the_kept_runs_give_and_documents_show_pictures_that_are_there(tmp_path):
    name = "docs/experiment_1/kd/Loss.png"
    FIGURES[name](tmp_path / "made.png")
    with Image.open(tmp_path / "made.png") as made, Image.open(ROOT / name) as shown:
        assert np.mean(np.asarray(made) != np.asarray(shown)) < 0.002
    for path in (ROOT / document for document in DOCUMENTS):
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text("utf-8")):
            assert (path.parent / picture).exists(), f"{path}: {picture}"


def test_kept_runs_agree_with_their_histories_and_themselves():
    splits = set()
    for run in kept().values():
        table, test, history = run["table"], run["test"], run["history"]
        ranks = list(zip(history["accuracy/val"], -np.array(history["loss/val"]), strict=True))
        assert run["best_epoch"] == 1 + ranks.index(max(ranks))
        assert len(ranks) == run["epochs"] == run["recipe"]["epochs"]
        best = max(ranks)[0], min(history["loss/val"])
        assert best == pytest.approx((table["best_val_accuracy"], table["best_val_loss"]), abs=1e-5)
        confusion = np.array(test["confusion"])
        assert confusion.sum() == test["photos"] == run["photos"]["counts"]["test"]
        assert len(test["wrong"]) == confusion.sum() - np.trace(confusion)
        assert test["accuracy"] == table["test_accuracy"] == np.trace(confusion) / confusion.sum()
        splits.add((run["recipe"]["split_seed"], run["photos"]["fold"], run["photos"]["split"]))
    assert len(splits) == len({split[:2] for split in splits}) == 16  # six splits, ten folds


def test_a_row_of_students_is_what_their_results_give():
    name = "weather-64px-resnet18-from-resnet18.patient-kd-a0.7-T2"
    runs = [kept()[f"{name}{f'-split{k}' * (k > 0)}-seed{k}"] for k in range(6)]
    alone = [kept()[run["distillation"]["baseline"]] for run in runs]
    row = re.search(r"^\| ResNet18, 60 epochs → ResNet18, 6 splits +\|(.*)", tables()["main"], re.M)
    assert row
    cells = row[1].split("|")
    for part, cell in (("test", cells[4]), ("val", cells[6])):
        hits = [[~np.isin(np.arange(run[part]["photos"]), run[part]["wrong"])] for run in runs]
        own = [[~np.isin(np.arange(run[part]["photos"]), run[part]["wrong"])] for run in alone]
        gains = [np.subtract(a, b, dtype=float) for a, b in zip(hits, own, strict=True)]
        found = [float(number) for number in re.findall(r"[-+][\d.]+", cell)]
        assert found == pytest.approx([100 * end for end in mean_interval(gains)], abs=0.006)
    accuracy = np.mean([run["test"]["accuracy"] for run in alone])
    assert cells[2].split()[0] == f"{100 * accuracy:.2f}"


def test_finished_runs_are_kept_unless_of_another_split(tmp_path, monkeypatch):
    monkeypatch.setattr(docs.kept, "FILE", Path(shutil.copy(docs.kept.FILE, tmp_path)))
    before = dict(kept())
    run = before["weather-64px-resnet18-seed0"]
    try:
        for name in ("weather-64px-resnet18-new-seed0", "sample-64px-resnet18-seed0"):
            folder = tmp_path / "results" / name
            folder.mkdir(parents=True)
            rows = [run["history"], *zip(*run["history"].values(), strict=True)]
            (folder / "history.csv").write_text(csv_text(rows), "utf-8")
            made = {key: value for key, value in run.items() if key != "history"} | {"run": name}
            (folder / "result.json").write_text(json.dumps(made), "utf-8")
        assert keep(tmp_path) == 1
        new = {"run": "weather-64px-resnet18-new-seed0"}
        assert kept() == before | {new["run"]: run | new}
        made |= new | {"photos": run["photos"] | {"split": "ffff"}}
        path = tmp_path / "results" / new["run"] / "result.json"
        path.write_text(json.dumps(made), "utf-8")
        with pytest.raises(UserError, match="of split ffff, and kept are runs of 6c579cc059eecde2"):
            keep(tmp_path)
    finally:
        kept.cache_clear()
