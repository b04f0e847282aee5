"""Tables: the right numbers in the right columns, and nothing averaged that does not belong."""

import copy
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import UserError
from tests.faults import WHOLE
from utils.metrics import mean_interval
from utils.report import cell, comparison, read_result, section, write_report

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "results" / "runs.jsonl").read_text("utf-8").splitlines()
KEPT = {kept["run"]: kept for kept in map(json.loads, LINES)}
SEVEN = {
    "Best validation loss": "best_val_loss",
    "Best validation accuracy": "best_val_accuracy",
    "Final training loss": "final_train_loss",
    "Final validation loss": "final_val_loss",
    "Final validation accuracy": "final_val_accuracy",
    "Test loss": "test_loss",
    "Test accuracy": "test_accuracy",
}
Made = dict[str, Any]


def result(
    model: str = "resnet18", seed: int = 0, wrong: tuple[int, ...] = (), **more: Any
) -> Made:
    """A baseline on ten validation and ten test photos, `wrong` of which were not recognised;
    `recipe_lr` and the like lead to inner values."""
    made: Made = copy.deepcopy(KEPT["weather-64px-resnet18-seed0"])
    made |= {"run": f"{model} {more} seed{seed}".replace("/", ""), "model": model, "seed": seed}
    made["photos"]["counts"] |= {"val": 10, "test": 10}
    for part in ("val", "test"):
        made[part] |= {"photos": 10, "wrong": list(wrong), "accuracy": 1 - len(wrong) / 10}
    base = 0.5 + seed / 100 + len(model) / 1000
    made["table"] = {key: base + place / 10_000 for place, key in enumerate(SEVEN.values())}
    for key, value in more.items():
        outer, _, inner = key.partition("_")
        made[outer] = made[outer] | {inner: value} if inner else value
    return made


def student_of(alone: Made, wrong: tuple[int, ...], **how: Any) -> Made:
    """What a teacher that recognises half of the photos made of a baseline."""
    made: Made = copy.deepcopy(KEPT["weather-64px-resnet18-from-resnet50-kd-a0.7-T2-seed0"])
    made["distillation"] |= {"baseline": alone["run"], **how}
    half = result("resnet50", alone["seed"], (0, 1, 2, 3, 4))
    made["teacher"] |= {key: half[key] for key in ("run", "digest", "val", "test")}
    changes = result(wrong=wrong) | {key: alone[key] for key in ("seed", "tag", "photos", "recipe")}
    return made | changes | {"run": f"{alone['run']} {sorted(how.items())}"}


def on_folds(*wrong: tuple[int, ...], **more: Any) -> list[Made]:
    return [
        result(wrong=some, photos_split=f"{fold}", photos_folds=3, photos_fold=fold, **more)
        for fold, some in enumerate(wrong)
    ]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table, head first, rulers left out."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        head, _, *lines = block.splitlines()
        assert len(set(map(len, block.splitlines()))) == 1, "not aligned"
        rows = [line.strip("|").split("|") for line in (head, *lines)]
        found.append([[one.strip() for one in row] for row in rows])
    return found


def test_the_seven_rows_have_a_column_for_each_model_and_spreads_over_seeds():
    runs = [result(seed=seed) for seed in (0, 1, 5)]
    first, more, recall = tables(section([*runs, result("densenet169")]))
    assert first[0] == ["", "densenet169", "resnet18, 3 seeds"]  # the teacher first
    assert [title for title, *_ in first[1:]] == list(SEVEN)
    for title, single, several in first[1:]:
        alone = result("densenet169")["table"][SEVEN[title]]
        values = [run["table"][SEVEN[title]] for run in runs]
        mean = sum(values) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        if "accuracy" in title:
            assert (single, several) == (f"{alone:.2%}", f"{100 * mean:.2f} ± {100 * spread:.2f}%")
        else:
            assert (single, several) == (f"{alone:.4f}", f"{mean:.4f} ± {spread:.4f}")
    kept = KEPT["weather-64px-resnet18-seed0"]
    assert dict(row[:2] for row in more[1:]) == {
        "Test macro-F1": f"{kept['test']['macro_f1']:.4f}",
        "Test calibration error": f"{kept['test']['calibration_error']:.4f}",
        "Best epoch": str(kept["best_epoch"]),
        "Parameters": f"{kept['parameters']:,}",
        "Training images per second": f"{kept['images_per_second']:,.0f}",
        "Training seconds": f"{kept['seconds']:,.0f}",
    }
    recalls = [[name, f"{value:.1%}"] for name, value in kept["test"]["recall"].items()]
    assert [row[:2] for row in recall] == [["Test recall of", "densenet169"], *recalls]


def test_percent_stands_once_and_what_is_one_value_or_none_has_no_spread():
    for values, spec, text in (
        ([0.75], ".2%", "75.00%"), ([0.7, 0.8], ".1%", "75.0 ± 7.1%"),
        ([1000, 3000], ",.0f", "2,000 ± 1,414"), ([1000, 1000], ",.0f", "1,000"),
        ([0.5, 0.5], ".1%", "50.0 ± 0.0%"), ([0.5, None], ".1%", "–"),
    ):  # fmt: skip
        assert cell([{"a": {"b": value}} for value in values], ("a", "b", spec)) == text


def test_runs_of_another_start_tag_or_recipe_are_not_averaged_and_the_settings_say_why():
    runs = [
        result(seed=0), result(seed=1), result(tag="b", recipe_lr=0.5),
        result(recipe_pretrained=True), result(seed=2, recipe_lr=0.5),
        result(seed=3, recipe_lr=0.5), result(seed=4, recipe_lr=0.7),
    ]  # fmt: skip
    text = section(runs)
    names = ["resnet18", "resnet18 #2", "resnet18 #3", "resnet18 (b)", "resnet18 (pretrained)"]
    head, row, *_ = tables(text)[0]
    assert [name.split(",")[0] for name in head[1:]] == names
    assert row[1:] == ["0.5130 ± 0.0071", "0.5330 ± 0.0071", "0.5480", "0.5080", "0.5080"]
    rest = {
        key: value for key, value in runs[0]["recipe"].items() if key not in ("lr", "pretrained")
    }
    assert f"Settings: {', '.join(f'{key} {value}' for key, value in rest.items())}.\n" in text
    rates = zip((0.001, 0.5, 0.7, 0.5, 0.001), names, strict=True)
    assert "- lr: " + ", ".join(f"{rate} ({name})" for rate, name in rates) in text
    assert text.count("\n- ") == 2


def report(folder: Path, *results: Made) -> str:
    """The text of a report on these results."""
    for made in results:
        path = folder / "results" / made["run"] / "result.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made), "utf-8")
    return write_report(folder / "results")


def test_photos_resolutions_splits_and_divisions_are_not_mixed(tmp_path):
    others = [{"name": "fog"}, {"image_size": 96}, {"split": "ffff"}, {"name": "s", "sample": True}]
    plain = [result() | {"run": f"{one}", "photos": result()["photos"] | one} for one in others]
    again = on_folds((0,), (1,), photos_digest="bbbb") + on_folds((0,), photos_name="fog")
    text = report(tmp_path, result(), *plain, *on_folds((0,), (1,)), *again)
    assert sorted(re.findall("^## .*", text, re.M)) == [
        "## fog at 64 px", "## fog at 64 px, 3 folds", "## s at 64 px", "## weather at 64 px",
        "## weather at 64 px", "## weather at 64 px, 3 folds", "## weather at 64 px, 3 folds",
        "## weather at 96 px",
    ]  # fmt: skip
    assert text.count("11 classes: train 2614, val 10, test 10; split ffff.") == 1
    assert text.count("Drawn by this repo, not photographed.") == 1


def test_a_copy_of_a_run_counts_once_and_runs_csv_has_every_number(tmp_path, capsys):
    alone = result()
    text = report(tmp_path, alone, student_of(alone, (3,)))
    results = tmp_path / "results"
    shutil.copytree(results / alone["run"], results / "a-backup")
    assert write_report(results) == text == (results / "report.md").read_text("utf-8")
    note = f"note: {results / 'a-backup'} is a copy of {alone['run']} and is left out\n"
    assert capsys.readouterr().err == note
    with (results / "runs.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["table.test_loss"]) == alone["table"]["test_loss"]
    assert (first["distillation.method"], second["distillation.method"]) == ("", "kd")
    assert float(second["test.accuracy"]) == 0.9


OTHERS: Made = {"recipe_lr": 0.5, "photos_split": "9", "photos_digest": "f", "photos_image_size": 9}


@pytest.mark.parametrize("key", OTHERS)
def test_a_baseline_that_was_trained_again_in_another_way_is_none(key):
    alone = result(wrong=(0, 1))
    other = result(wrong=(0, 1), **{key: OTHERS[key]}) | {"run": alone["run"]}
    for baseline, there in ((alone, True), (other, False)):
        text = comparison([baseline, student_of(alone, (0,))])
        assert ("| no teacher" in text) == ("+10.00 [" in text) == there


def test_the_first_table_is_of_the_method_with_most_runs_and_of_no_other_seed():
    """One lucky seed of another temperature is no better than two seeds of this."""
    alone = [result(seed=seed, wrong=(0, 1, 2)) for seed in range(3)]
    steady = [student_of(one, (0, 1)) for one in alone[:2]]
    text = comparison([student_of(alone[2], (), temperature=4.0), *steady, *alone])
    assert tables(text)[0][0] == ["", "Teacher, 2 seeds", "Student, 2 seeds", "KD Student, 2 seeds"]
    assert "The KD student is kd, α 0.7, T 2: of 2, the one with most runs." in text
    better = [student_of(one, (), method="dkd", weight=8.0) for one in alone[:2]]
    text = comparison([*better, *steady, *alone])
    assert "The KD student is dkd, α 0.7, T 2, weight 8: of 2, the best on validation." in text


def test_folds_are_pooled_and_differences_paired_with_their_interval():
    alone = on_folds((0, 1, 2), (4,), (5, 6))
    taught = [student_of(one, w) for one, w in zip(alone, [(0, 1), (), (5, 6)], strict=True)]
    text = section([*alone, *taught])
    assert "Runs of 3 of 3 folds are here." in text
    first, pooled, _, _, kd, (head, *rows) = tables(text)
    assert first[0] == ["", "resnet18, 3 folds"]
    hits = [1 - np.isin(np.arange(10), one["test"]["wrong"])[None] for one in alone]
    mean, low, high = mean_interval(hits)
    ends = f"{low:.2%} to {min(high, 1):.2%}"
    assert pooled[1:] == [["resnet18", "30", "3 folds", f"{mean:.2%}", ends]]
    assert mean == pytest.approx(0.8)
    assert kd[0] == ["", "Teacher, 3 folds", "Student, 3 folds", "KD Student, 3 folds"]
    assert head[4:6] == ["KD − baseline [95 %]", "KD − teacher [95 %]"]
    assert [row[:2] for row in rows] == [["no teacher", "3"], ["kd, α 0.7, T 2", "3"]]
    half, middle = 4.303 * 100 * np.std([0.1, 0.1, 0], ddof=1) / math.sqrt(3), 100 * 2 / 30
    gain, over_teacher = (list(map(float, re.findall(r"[-+][\d.]+", t))) for t in rows[1][4:6])
    assert gain == pytest.approx([middle, middle - half, middle + half], abs=0.02)
    assert over_teacher[0] == pytest.approx(100 * (26 - 15) / 30, abs=0.006)
    assert rows[1][6] == f"{taught[0]['agreement']['top1']:.1%}".replace("%", " ± 0.0%")
    # Without the baseline of a fold, the others' gain is named as theirs.
    assert re.search(r"[+]10\.00 \[\S+ \S+\] of 2 runs", comparison([*alone[:2], *taught]))
    # Two seeds of a fold are no more photos.
    again = alone[0] | {"seed": 1}
    assert tables(section([alone[0], again]))[1][1][:3] == ["resnet18", "10", "1 fold, 2 seeds"]
    assert tables(section([*alone, again]))[0][0][1] == "resnet18, 4 runs of 3 folds"


def test_a_teacher_that_is_not_the_kept_one_is_what_was_measured_when_it_taught():
    """Trained again, or of another split; other recipes make other tables."""
    taught = [student_of(result(seed=seed), ()) for seed in range(2)]
    kept = [result("resnet50", seed) for seed in range(2)]
    for other, best, known in (
        ({}, "0.5130 ± 0.0071", "51.36 ± 0.71%"),
        ({"digest": "new"}, "–", "50.00 ± 0.00%"),
        ({"photos": kept[0]["photos"] | {"split": "9"}}, "–", "50.00 ± 0.00%"),
    ):
        column = [row[1] for row in tables(comparison([one | other for one in kept] + taught))[0]]
        assert (column[1], column[7]) == (best, known)
    taught[0]["teacher"]["other_split"] = True
    assert "WARNING: the teacher learnt from another split" in comparison(taught)
    taught[1]["teacher"]["recipe"] = {"epochs": 60}
    assert comparison(taught).count("### resnet50 teaches resnet18\n") == 2


def test_names_are_nothing_but_text():
    classes = ["<img src=x onerror=alert(1)>", "a|b\n# c\x1b[2J"]
    made = result(photos_name="<b>", photos_classes=classes)
    made["test"]["recall"] = dict.fromkeys(classes, 0.5)
    text = section([made])
    assert "<" not in text
    assert "\x1b" not in text
    assert tables(text)[2][2] == [r"'a&#124;b\n# c\x1b[2J'", "50.0%"]


def places(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths to every value in JSON."""
    inner = content.items() if isinstance(content, dict) else ()
    deeper = [one for key, value in inner for one in places(value, (*path, key))]
    return [path, *deeper] if path else deeper


STUDENT = student_of(on_folds((0, 1))[0], (0,))
PATHS = places(STUDENT)
VALUES: tuple[Any, ...] = (..., None, "x", 3, -1, 0.5, True, [], [-1], [99], ["x"], {}, {"x": []})


@pytest.mark.parametrize("path", PATHS if WHOLE else PATHS[::15], ids="/".join)
def test_a_result_with_one_wrong_value_is_named_or_its_tables_can_be_made(path, tmp_path):
    others = [result(), student_of(result(), (1,)), *on_folds((0, 1), (2,))]
    for value in VALUES:
        inner = broken = copy.deepcopy(STUDENT)
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        if value is ...:
            del inner[path[-1]]
        (tmp_path / "result.json").write_text(json.dumps(broken), "utf-8")
        try:
            made = read_result(tmp_path / "result.json")
        except UserError as problem:
            assert re.fullmatch(f"{tmp_path}/result.json: not a readable .*", str(problem))  # noqa: PT017
        else:
            section([made, *others])
            section([*others, made])


BROKEN = [
    json.dumps(STUDENT)[:-300], "", "\x00", "[]", "{}", "[" * 99_999,
    json.dumps(STUDENT | {"test": STUDENT["test"] | {"wrong": [-1]}}),
    json.dumps({key: value for key, value in STUDENT.items() if key != "distillation"}),
    json.dumps({key: value for key, value in result().items() if key != "digest"}),
]  # fmt: skip


def test_the_command_prints_the_report_or_one_line_with_status_2(tmp_path):
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "utils.report", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    text = report(tmp_path, result(), result(seed=1))
    (tmp_path / "results" / "unfinished").mkdir()
    done = run("--output", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, text + "\n", "")
    missing = run("--output", tmp_path / "nowhere")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)
    assert missing.stderr.startswith(f"error: {tmp_path / 'nowhere' / 'results'}: no finished run")
    assert "unrecognized arguments: --out" in run("--out", "x").stderr
    (tmp_path / "results" / "report.md").unlink()
    broken = tmp_path / "results" / "unfinished" / "result.json"
    for content in BROKEN:
        broken.write_text(content, "utf-8")
        with pytest.raises(UserError, match=f"^{re.escape(str(broken))}: not a readable result"):
            write_report(tmp_path / "results")
    assert not (tmp_path / "results" / "report.md").exists()
