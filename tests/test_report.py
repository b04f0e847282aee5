"""Tables: the right numbers in the right columns, and nothing averaged that does not belong."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import Config, UserError, recipe
from utils.comparison import comparison, whole_recipe
from utils.metrics import mean_interval
from utils.report import read_results, render, section, write_report
from utils.tables import mean_and_spread

ROOT = Path(__file__).parents[1]
SEVEN = {
    "Best validation loss": "best_val_loss",
    "Best validation accuracy": "best_val_accuracy",
    "Final training loss": "final_train_loss",
    "Final validation loss": "final_val_loss",
    "Final validation accuracy": "final_val_accuracy",
    "Test loss": "test_loss",
    "Test accuracy": "test_accuracy",
}


def result(model: str = "resnet18", seed: int = 0, tag: str = "", **changes: Any) -> dict[str, Any]:
    """A result.json with numbers of its own; `recipe_` and `photos_` lead to the inner values."""
    base = 0.5 + seed / 100 + len(model) / 1000
    made: dict[str, Any] = {
        "format": 1, "run": f"weather-64px-{model}-seed{seed}", "model": model, "seed": seed,
        "tag": tag, "recipe": recipe(Config()), "environment": {"device": "cpu"},
        "photos": {
            "name": "weather", "sample": False, "image_size": 64, "classes": ["dew", "rime"],
            "counts": {"train": 70, "val": 20, "test": 10}, "split": "abc123", "unreadable": 0,
        },
        "table": {key: base + place / 10_000 for place, key in enumerate(SEVEN.values())},
        "parameters": 11_000_000 + seed, "epochs": 15, "best_epoch": 9 + seed,
        "images_per_second": 1234.5 + seed, "seconds": 100.0 + seed,
        "test": {
            "macro_f1": 0.7, "calibration_error": 0.05, "recall": {"dew": 0.875, "rime": 1.0},
        },
    }  # fmt: skip
    for key, value in changes.items():
        outer, _, inner = key.partition("_")
        if inner and outer in ("recipe", "photos"):
            made[outer] = made[outer] | {inner: value}
        else:
            made[key] = value
    return made


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table, head first, rulers left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                found.append([])
            if not set(line) <= set("|-: "):
                found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    return found


def first_table(*results: dict[str, Any]) -> list[list[str]]:
    return tables(section(results))[0]


def test_the_first_table_has_the_seven_rows_and_a_column_for_each_model():
    head, *rows = first_table(result("resnet18"), result("densenet169"))
    assert head == ["", "densenet169", "resnet18"]  # the teacher first, whatever came first
    assert [title for title, *_ in rows] == list(SEVEN)
    for title, *cells in rows:
        for model, cell in zip(head[1:], cells, strict=True):
            value = result(model)["table"][SEVEN[title]]
            expected = f"{100 * value:.2f}%" if "accuracy" in title else f"{value:.4f}"
            assert cell == expected, title


def test_over_seeds_it_is_the_mean_and_the_sample_standard_deviation():
    runs = [result(seed=seed) for seed in (0, 1, 5)]
    head, *rows = first_table(*runs)
    assert head == ["", "resnet18, 3 seeds"]
    for title, cell in rows:
        values = [run["table"][SEVEN[title]] for run in runs]
        mean = sum(values) / 3
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        if "accuracy" in title:
            assert cell == f"{100 * mean:.2f} ± {100 * spread:.2f}%"
        else:
            assert cell == f"{mean:.4f} ± {spread:.4f}"


def test_percent_stands_once_and_one_value_has_no_spread():
    assert mean_and_spread([0.75], ".2%") == "75.00%"
    assert mean_and_spread([0.7, 0.8], ".1%") == "75.0 ± 7.1%"
    assert mean_and_spread([1000, 3000], ",.0f") == "2,000 ± 1,414"
    assert mean_and_spread([1000, 1000], ",.0f") == "1,000"
    assert mean_and_spread([0.5, 0.5], ".1%") == "50.0 ± 0.0%"


def test_the_other_tables_hold_the_rest():
    _, more, recall = tables(section([result(seed=3)]))
    assert dict(more[1:]) == {
        "Test macro-F1": "0.7000", "Test calibration error": "0.0500", "Best epoch": "12",
        "Parameters": "11,000,003", "Training images per second": "1,238",
        "Training seconds": "103",
    }  # fmt: skip
    assert recall == [["Test recall of", "resnet18"], ["dew", "87.5%"], ["rime", "100.0%"]]


def test_a_tag_makes_a_column_of_its_own():
    head, *rows = first_table(result(tag="b"), result(seed=1), result(tag="a"), result())
    assert [name.split(",")[0] for name in head] == ["", "resnet18", "resnet18 (a)", "resnet18 (b)"]
    assert head[1].endswith(", 2 seeds")
    assert rows[0][1] == "0.5130 ± 0.0071"
    assert rows[0][2] == "0.5080"


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged():
    """--pretrained is part of a run's name, and another seed may have had another recipe."""
    runs = [
        result(seed=0), result(seed=1), result(seed=0, recipe_pretrained=True),
        result(seed=2, recipe_lr=0.5), result(seed=3, recipe_lr=0.5), result(seed=4, recipe_lr=0.7),
    ]  # fmt: skip
    head, *rows = first_table(*runs)
    assert [name.split(",")[0] for name in head[1:]] == [
        "resnet18", "resnet18 #2", "resnet18 #3", "resnet18 (pretrained)",
    ]  # fmt: skip
    assert rows[0][1:] == ["0.5130 ± 0.0071", "0.5330 ± 0.0071", "0.5480", "0.5080"]
    text = section(runs)
    assert "- lr: 0.001 (resnet18), 0.5 (resnet18 #2), 0.7 (resnet18 #3), 0.001" in text


def test_the_settings_that_differ_are_listed_and_the_others_stand_in_one_line():
    text = section([result(), result(tag="sgd", recipe_optimizer="sgd", recipe_alpha=0.7)])
    (shared,) = [line for line in text.splitlines() if line.startswith("Settings: ")]
    for name, value in recipe(Config()).items():
        if name == "optimizer":
            assert f"{name} " not in shared
        else:
            assert f"{name} {value}" in shared
    assert "- optimizer: adamw (resnet18), sgd (resnet18 (sgd))" in text
    assert "- alpha: None (resnet18), 0.7 (resnet18 (sgd))" in text  # only one of them has it
    assert sum(line.startswith("- ") for line in text.splitlines()) == 2


def test_a_settings_line_is_exact_where_nothing_differs():
    text = section([result(), result("resnet50")])
    expected = ", ".join(f"{name} {value}" for name, value in recipe(Config()).items())
    assert f"Settings: {expected}.\n" in text
    assert "\n- " not in text


def test_photos_splits_and_sizes_are_not_mixed():
    others: list[dict[str, Any]]
    others = [{"photos_name": "fog"}, {"photos_image_size": 96}, {"photos_split": "ffff"}]
    text = render([result(), *(result(**other) for other in others), result("resnet50")])
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == [
        "## weather at 64 px", "## fog at 64 px", "## weather at 96 px", "## weather at 64 px",
    ]  # fmt: skip
    assert [table[0][1:] for table in tables(text)[::3]] == [
        ["resnet50", "resnet18"], ["resnet18"], ["resnet18"], ["resnet18"],
    ]  # fmt: skip
    assert "2 classes: train 70, val 20, test 10; split abc123." in text
    assert "split ffff." in text


def on_a_split(split: str, seed: int, wrong: list[int], **changes: Any) -> dict[str, Any]:
    """A student of ten test photos, `wrong` of which were not recognised."""
    name = f"weather-64px-resnet18-split{split}-seed{seed}"
    accuracy = 1 - len(wrong) / 10
    return result(
        seed=seed, run=name, photos_split=split, recipe_split_seed=int(split),
        val={"accuracy": accuracy, "photos": 10, "wrong": wrong},
        test={"accuracy": accuracy, "photos": 10, "wrong": wrong}, **changes,
    )  # fmt: skip


def taught_on_a_split(split: str, seed: int, wrong: list[int], **changes: Any) -> dict[str, Any]:
    made = on_a_split(split, seed, wrong, **changes)
    lesson = {
        "method": "kd", "alpha": 0.7, "temperature": 2.0, "weight": None, "teacher": "resnet50",
        "baseline": made["run"],
    }  # fmt: skip
    return made | {"run": f"{made['run']}-taught-{made['tag']}", "lesson": lesson}


def measured(made: dict[str, Any]) -> dict[str, Any]:
    """With what a comparison of teacher and student shows besides, the teacher's numbers too."""
    recall = {"dew": 0.5, "rime": 0.5}
    made["test"] |= {"calibration_error": 0.1, "loss": 0.5, "macro_f1": 0.5, "recall": recall}
    teacher = {
        "run": f"teacher-{made['seed']}", "digest": "0", "other_split": False, "parameters": 1,
        "inference_images_per_second": 1.0, "epochs": 1, "val": made["val"], "test": made["test"],
    }  # fmt: skip
    of_students = {"teacher": teacher, "agreement": {"top1": 1.0, "kl": 0.0}}
    return made | {"inference_images_per_second": 1.0} | (of_students if "lesson" in made else {})


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("recipe", {"lr": 0.5}), ("photos", {"split": "9"}), ("photos", {"digest": "ffff"}),
        ("photos", {"image_size": 9}),
    ],
    ids=str,
)  # fmt: skip
def test_a_baseline_that_was_made_again_in_another_way_is_none(part, change):
    """With --overwrite and another recipe, or on other photos."""
    alone = measured(on_a_split("1", 0, [0, 1], photos_digest="aaaa"))
    taught = measured(taught_on_a_split("1", 0, [0], photos_digest="aaaa"))
    text = comparison([alone, taught])
    assert "| no teacher" in text
    assert "+10.00 [" in text
    text = comparison([alone | {part: alone[part] | change}, taught])
    assert "| no teacher" not in text
    assert "+10.00 [" not in text


def test_a_baseline_of_an_earlier_version_is_one_and_lacks_settings_that_came_later():
    alone, taught = measured(on_a_split("1", 0, [0, 1])), measured(taught_on_a_split("1", 0, [0]))
    del alone["recipe"]["grow_from"]
    assert "+10.00 [" in comparison([alone, taught])
    taught["recipe"]["grow_from"] = 0.5
    assert "+10.00 [" not in comparison([alone, taught])


def test_the_first_table_is_of_the_lesson_with_most_runs_and_of_no_other_seed():
    """One lucky seed of another temperature is no better than two seeds of this."""

    def lesson(seed: int, temperature: float, wrong: list[int]) -> dict[str, Any]:
        made = measured(taught_on_a_split("1", seed, wrong))
        about = made["lesson"] | {"temperature": temperature}
        return made | {"run": f"{made['run']}-T{temperature:g}", "lesson": about}

    steady = [lesson(seed, 2.0, [0, 1]) for seed in (0, 1)]
    baselines = [measured(on_a_split("1", seed, [0, 1, 2])) for seed in (0, 1, 2)]
    text = comparison([lesson(2, 4.0, []), *steady, *baselines])
    assert tables(text)[0][0] == ["", "Teacher, 2 seeds", "Student, 2 seeds", "KD Student, 2 seeds"]
    assert "The KD student is kd, α 0.7, T 2: of 2, the one with most runs." in text
    better = [lesson(seed, 4.0, []) for seed in (0, 1)]
    text = comparison([*better, *steady, *baselines])
    assert "The KD student is kd, α 0.7, T 4: of 2, the best on validation." in text


def on_a_fold(fold: int, wrong: list[int], **changes: Any) -> dict[str, Any]:
    made = on_a_split(str(fold), 0, wrong, photos_folds=3, photos_fold=fold, **changes)
    made["recipe"]["split_seed"] = 0
    for key in ("digest", "division"):
        made["photos"][key] = changes.get(f"photos_{key}", "aaaa")
    return measured(made | {"run": f"weather-64px-resnet18-fold{fold}of3-seed0"})


def taught_on_a_fold(fold: int, wrong: list[int]) -> dict[str, Any]:
    alone = on_a_fold(fold, wrong)
    lesson = taught_on_a_split("1", 0, [])["lesson"] | {"baseline": alone["run"]}
    return measured(alone | {"run": f"{alone['run']}-taught", "lesson": lesson})


def test_folds_share_a_section_and_their_photos_are_pooled():
    alone = [on_a_fold(fold, wrong) for fold, wrong in enumerate(([0, 1, 2], [4], [5, 6]))]
    text = render(alone)
    assert re.findall("^## .*", text, re.M) == ["## weather at 64 px, 3 folds"]
    assert "Runs of 3 of 3 folds are here." in text
    first, pooled, *_ = tables(text)
    assert first[0] == ["", "resnet18, 3 folds"]
    right = [np.isin(np.arange(10), run["test"]["wrong"], invert=True)[None] for run in alone]
    mean, low, high = mean_interval(right)
    assert mean == pytest.approx(0.8)
    expected = ["resnet18", "30", "3 folds", "80.00%", f"{low:.2%} to {min(high, 1):.2%}"]
    assert pooled[1:] == [expected]
    # Two seeds of a fold are no more photos, and a fold that is not there is missed.
    again = on_a_fold(0, [0]) | {"seed": 1}
    assert tables(render([alone[0], again]))[1][1][:3] == ["resnet18", "10", "1 fold, 2 seeds"]
    assert "Runs of 1 of 3 folds are here." in render([alone[0], again])
    assert tables(render([*alone, again]))[0][0][1] == "resnet18, 4 runs of 3 folds"


def test_gains_over_folds_are_paired_and_pooled():
    alone = [on_a_fold(fold, wrong) for fold, wrong in enumerate(([0, 1, 2], [4], [5, 6]))]
    taught = [taught_on_a_fold(fold, wrong) for fold, wrong in enumerate(([0, 1], [], [5, 6]))]
    text = comparison([*alone, *taught])
    _, (_, *rows) = tables(text)
    assert [row[:2] for row in rows] == [["no teacher", "3"], ["kd, α 0.7, T 2", "3"]]
    mean, low, high = (float(number) for number in re.findall(r"[-+][\d.]+", rows[1][4]))
    assert mean == pytest.approx(100 * 2 / 30, abs=0.006)
    # Without the baseline of a fold, the others' gain is told as theirs.
    assert re.search(r"[+]10\.00 \[\S+ \S+\] of 2 runs", comparison([*alone[:2], *taught]))
    half = 4.303 * 100 * np.std([0.1, 0.1, 0], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.02)


def test_a_teacher_of_another_fold_is_what_it_was_measured_to_be_in_each():
    """Its own result is of its own fold alone; teachers of other recipes make other tables."""
    taught = [taught_on_a_fold(fold, wrong) for fold, wrong in enumerate(([0, 1], [], [5, 6]))]
    for student in taught:
        student["teacher"] |= {"run": on_a_fold(0, [])["run"], "digest": "same"}
        student["teacher"]["test"] = student["test"] | {
            "accuracy": student["test"]["accuracy"] - 0.5
        }
    own = on_a_fold(0, [0, 1, 2]) | {"digest": "same"}
    own["table"]["test_accuracy"] = 0.7
    first = tables(comparison([own, *taught]))[0]
    assert first[0][1] == "Teacher, 3 folds"
    assert first[7][:2] == ["Test accuracy", "50.00 ± 20.00%"]  # 0.7 itself, 0.5, 0.3
    taught[2]["teacher"]["recipe"] = {"epochs": 60}
    assert len(re.findall("^### ", comparison([own, *taught]), re.M)) == 2


@pytest.mark.parametrize(
    "other", [{"photos_digest": "bbbb"}, {"photos_division": "bb"}, {"photos_name": "fog"}], ids=str
)
def test_folds_of_other_divisions_are_not_pooled(other):
    text = render([on_a_fold(0, [0]), on_a_fold(1, [1]), on_a_fold(2, [2], **other)])
    heads = [table[1][:3] for table in tables(text) if table[0][1] == "Test photos"]
    assert sorted(head[1:] for head in heads) == [["10", "1 fold"], ["20", "2 folds"]]
    plain = result(photos_split="0")
    assert len(re.findall("^## ", render([on_a_fold(0, [0]), plain]), re.M)) == 2


def test_crops_of_an_earlier_version_make_another_recipe():
    """Crops were cut short at the edges; their results say nothing of crops."""
    now, earlier = result(seed=1), result()
    del earlier["recipe"]["crops"]
    assert whole_recipe(earlier)["crops"] != whole_recipe(now)["crops"]
    text = section([now, earlier])
    assert tables(text)[0][0] == ["", "resnet18", "resnet18 #2"]
    assert "- crops: cut short (resnet18), RandomResizedCrop (resnet18 #2)" in text
    student, alone = measured(taught_on_a_split("1", 0, [0])), measured(on_a_split("1", 0, [0, 1]))
    assert "+10.00 [" in comparison([alone, student])
    del alone["recipe"]["crops"]
    assert "+10.00 [" not in comparison([alone, student])


def test_the_sample_is_never_taken_for_photos():
    drawn = "Drawn by this repo, not photographed."
    assert drawn in section([result(photos_name="sample", photos_sample=True)])
    assert drawn not in section([result()])


def test_a_model_that_this_version_does_not_know_comes_last():
    assert first_table(result("alexnet"), result("resnet18"))[0] == ["", "resnet18", "alexnet"]


def test_tables_are_aligned_for_the_eye():
    for table in section([result(seed=0), result(seed=1), result("resnet50", tag="x")]).split(
        "\n\n"
    ):
        widths = {len(line) for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1


def write(folder: Path, *results: dict[str, Any]) -> Path:
    for place, content in enumerate(results):
        run = folder / "results" / f"run{place}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps(content), "utf-8")
    return folder


def report(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "utils.report", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_prints_and_writes_the_report_of_finished_runs(tmp_path):
    results = write(tmp_path, result(), result(seed=1), result("resnet50")) / "results"
    (results / "unfinished").mkdir()
    (results / "unfinished" / "settings.json").write_text("{}")
    run = report("--output", tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    written = (results / "report.md").read_text("utf-8")
    assert run.stdout == written + "\n"
    assert written == "# Results\n\n" + render(read_results(results))
    assert "resnet18, 2 seeds" in written
    assert sorted(path.name for path in results.iterdir() if path.is_file()) == [
        "report.md", "runs.csv",
    ]  # fmt: skip


def test_a_second_report_replaces_the_first(tmp_path):
    results = write(tmp_path, result()) / "results"
    first = write_report(results)
    write(tmp_path / "more", result("resnet50"))
    (tmp_path / "more" / "results" / "run0").rename(results / "another")
    assert write_report(results) == (results / "report.md").read_text("utf-8") != first


BROKEN: dict[str, bytes] = {
    "cut off": json.dumps(result()).encode()[:-300],
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "something else": b'{"model": "resnet18"}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_result_is_named(tmp_path, kind):
    write(tmp_path, result(), result(seed=1))
    broken = tmp_path / "results" / "run1" / "result.json"
    broken.write_bytes(BROKEN[kind])
    with pytest.raises(UserError) as problem:
        write_report(tmp_path / "results")
    assert str(problem.value).startswith(f"{broken}: not a readable result")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "results" / "report.md").exists()


@pytest.mark.parametrize("key", ["model", "seed", "tag", "photos", "recipe", "table", "test"])
def test_a_result_that_lacks_a_part_is_named(tmp_path, key):
    lacking = copy.deepcopy(result())
    del lacking[key]
    write(tmp_path, lacking)
    with pytest.raises(UserError, match=r"run0/result\.json: not a readable result"):
        write_report(tmp_path / "results")


def test_the_command_ends_with_one_line_and_status_2_where_nothing_can_be_read(tmp_path):
    run = report("--output", tmp_path / "nowhere")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: {tmp_path / 'nowhere' / 'results'}: no finished run is there; " \
        "train.py makes them\n"  # fmt: skip
    broken = write(tmp_path, {"seed": 3}) / "results" / "run0" / "result.json"
    run = report("--output", tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {broken}: not a readable result")
    assert run.stderr.count("\n") == 1


def test_unknown_and_abbreviated_flags_are_errors():
    for words in (["--out", "x"], ["--nothing"]):
        run = report(*words)
        assert run.returncode == 2
        assert f"unrecognized arguments: {' '.join(words)}" in run.stderr
