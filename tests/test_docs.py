"""Tables and figures in README and docs/ match the kept runs, and the runs are consistent."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import docs.build
from config import ROOT
from data.files import csv_text, write_json
from docs.build import DOCUMENTS, PLACE, TABLES, columns_of, draw_curves, filled, keep, kept, table


def test_the_tables_in_the_documents_are_what_the_kept_runs_give():
    made = {name: table(**about) for name, about in TABLES.items()}
    texts = {path: path.read_text("utf-8") for path in DOCUMENTS}
    for path, text in texts.items():
        assert filled(text, made) == text, f"{path}: run python -m docs.build"
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
            assert (path.parent / picture).exists(), f"{path}: {picture}"
    assert {*[match[2] for text in texts.values() for match in PLACE.finditer(text)]} == {*made}
    with pytest.raises(KeyError, match="other"):
        filled("<!-- table: other -->\n<!-- end -->", made)


def test_a_figure_is_what_the_kept_runs_give(tmp_path):
    draw_curves(tmp_path / "made.png", columns_of(TABLES["experiment_1 kd"]["rows"]), "loss")
    shown = Image.open(ROOT / "docs/experiment_1/kd/Loss.png")
    assert np.mean(np.asarray(Image.open(tmp_path / "made.png")) != np.asarray(shown)) < 0.002


def test_kept_runs_agree_with_their_histories_and_themselves():
    splits = set()
    for run in kept().values():
        table, test, history = run["table"], run["test"], run["history"]
        ranks = list(zip(history["accuracy/val"], -np.array(history["loss/val"]), strict=True))
        assert run["best_epoch"] == 1 + ranks.index(max(ranks))
        assert len(ranks) == run["recipe"]["epochs"]
        best = max(ranks)[0], min(history["loss/val"])
        assert best == pytest.approx((run["val"]["accuracy"], table["best_val_loss"]), abs=1e-4)
        confusion = np.array(test["confusion"])
        assert confusion.sum() == test["photos"] == run["photos"]["counts"]["test"]
        assert len(test["wrong"]) == confusion.sum() - np.trace(confusion)
        assert test["accuracy"] == np.trace(confusion) / confusion.sum()
        teacher = kept().get(run.get("teacher", {}).get("run"))
        assert not teacher or teacher["digest"] == run["teacher"]["digest"]
        splits.add((run["recipe"]["split_seed"], run["photos"]["fold"], run["photos"]["split"]))
    # Seed 0; folds with all labels, 1/10, 1/20 and 1/4.
    assert {fold for _, fold, _ in splits} == {None, *range(10)}
    assert len(splits) == 1 + 4 * 10


def test_finished_runs_are_kept(tmp_path, monkeypatch):
    copied = shutil.copytree(docs.build.RESULTS, tmp_path / "kept")
    monkeypatch.setattr(docs.build, "RESULTS", copied)
    before = dict(kept())
    run = before["weather-64px-resnet18-seed0"]
    for name in ("weather-64px-resnet18-new-seed0", "sample-64px-resnet18-seed0"):
        (folder := tmp_path / "results" / name).mkdir(parents=True)
        rows = [run["history"], *zip(*run["history"].values(), strict=True)]
        (folder / "history.csv").write_text(csv_text(rows), "utf-8")
        made = {key: value for key, value in run.items() if key != "history"} | {"run": name}
        write_json(folder / "result.json", made)
    try:
        assert keep(tmp_path) == 1
        assert kept() == before | {(new := "weather-64px-resnet18-new-seed0"): run | {"run": new}}
    finally:
        kept.cache_clear()
