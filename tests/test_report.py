"""Tables: the right numbers in the right columns, and nothing averaged that does not belong."""

import copy
import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import Config, UserError
from data.files import write_json
from docs.build import kept
from tests.photo_folders import python
from utils.metrics import mean_interval
from utils.report import comparison, main, write_report
from utils.tables import SEVEN_ROWS, cell, section

Made = dict[str, Any]


def result(model: str = "resnet18", seed: int = 0, wrong: Any = (), **more: Any) -> Made:
    """A baseline on ten test photos, `wrong` of them missed; `recipe_lr` is an inner value."""
    made: Made = copy.deepcopy(kept()["weather-64px-resnet18-seed0"])
    made |= {"run": f"{model} {more} seed{seed}".replace("/", ""), "arch": model, "seed": seed}
    made["recipe"] = Config().recipe
    made["photos"] |= {"counts": made["photos"]["counts"] | {"test": 10}, "labels_per_class": None}
    made["test"] |= {"photos": 10, "wrong": list(wrong), "accuracy": 1 - len(wrong) / 10}
    made["test"]["recall"] = dict.fromkeys(made["photos"]["classes"], 0.5)
    made["val"]["accuracy"] = 1 - len(wrong) / 10
    base = 0.5 + seed / 100 + len(model) / 1000
    made["table"] = {key: base + place / 10_000 for place, key in enumerate(made["table"])}
    for key, value in more.items():
        outer, _, inner = key.partition("_")
        made[outer] = made[outer] | {inner: value} if inner else value
    return made


def student_of(alone: Made, wrong: Any, **how: Any) -> Made:
    """The KD student compared with a baseline; its teacher gets half of the photos right."""
    name = "weather-64px-resnet18-from-resnet50.60epochs-kd-a0.7-T2-seed0"
    made: Made = copy.deepcopy(kept()[name])
    made["distillation"] |= {"baseline": alone["run"], **how}
    half = result("resnet50", alone["seed"], range(5))
    made["teacher"] |= {key: half[key] for key in ("run", "digest", "val", "test", "recipe")}
    changes = result(wrong=wrong) | {key: alone[key] for key in ("seed", "tag", "photos", "recipe")}
    return made | changes | {"run": f"{alone['run']} {sorted(how.items())}"}


def on_folds(*wrong: int, **more: Any) -> list[Made]:
    """One baseline per fold, of three folds, with these numbers of misclassified photos."""
    return [
        result(wrong=range(some), photos_split=f"{fold}", photos_folds=3, photos_fold=fold, **more)
        for fold, some in enumerate(wrong)
    ]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table, head first, rulers left out."""
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.M)]
    assert all(len(set(map(len, block))) == 1 for block in blocks), "not aligned"
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
        for head, _, *lines in blocks
    ]


def report(folder: Path, *results: Made) -> str:
    """The text of a report on these results."""
    for made in results:
        write_json(folder / "results" / made["run"] / "result.json", made)
    return write_report(folder / "results")


def test_the_rows_have_a_column_for_each_model_tag_and_recipe_and_spreads_over_seeds():
    runs = [result(seed=seed) for seed in (0, 1, 5)]
    alone = result("densenet169", val_accuracy=0.25)
    first, more = tables(section([alone, *runs, result(tag="b", recipe_lr=0.5)]))
    assert first[0] == ["", "densenet169", "resnet18, 3 seeds", "resnet18 (b, lr 0.5)"]
    assert more[1] == ["Parameters", *3 * ["11,182,155"]]
    names = ("best_val_loss", "final_train_loss", "final_val_loss", "final_val_accuracy")
    best, *final = map(alone["table"].get, names)
    values = [best, 0.25, *final, alone["test"]["loss"], alone["test"]["accuracy"]]
    rows = zip(first[1:], SEVEN_ROWS.items(), values, strict=True)
    for (title, single, several, _), (name, row), value in rows:
        assert (title, single) == (name, format(value, ".2%" if "accuracy" in title else ".4f"))
        assert several == cell(runs, row)
    test, shown = runs[0]["test"], dict(row[:2] for row in more)
    assert shown["Test macro-F1"] == f"{test['macro_f1']:.4f}"
    for name, value in test["recall"].items():
        assert shown[f"Test recall, {name}"] == f"{value:.1%}"


def test_photos_resolutions_splits_and_divisions_are_not_mixed(tmp_path):
    others = [{"name": "fog"}, {"image_size": 96}, {"split": "ffff"}, {"name": "s", "sample": True}]
    others += [{"labels_per_class": 5.0}, {"labels_per_class": 0.1}]
    plain = [result() | {"run": f"{one}", "photos": result()["photos"] | one} for one in others]
    plain += [result(environment_precision="float32"), result(environment_device="cuda:0, H100")]
    text = report(tmp_path, result(), *plain, *on_folds(0, 1), *on_folds(0, 1, photos_digest="b"))
    assert len(re.findall("^## .*", text, re.M)) == 10
    assert text.count("Computed in float32: cpu, 1 threads, torch ") == 1
    assert re.search(r"in bf16: cpu, 1 threads, torch 2\.\S+; cuda:0, H100, torch 2\.\S+\.", text)
    assert text.count("Labels per class: at most 5.") == 1
    assert text.count("Labels per class: a fraction of 0.1.") == 1
    assert text.count("11 classes, split ffff: train 2614, val 750, test 10.") == 1
    assert text.count("Synthetic images, not photographs.") == 1


def test_the_command_leaves_out_copies_and_needs_a_finished_run(tmp_path):
    alone = result()
    text = report(tmp_path, alone, student_of(alone, [3]))
    results = tmp_path / "results"
    shutil.copytree(results / alone["run"], results / "a-backup")
    done = python("-m", "utils.report", "--output", tmp_path)
    note = f"NOTE: copies of other runs left out: {results / 'a-backup'}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, text + "\n", note)
    assert (results / "report.md").read_text("utf-8") == text
    with pytest.raises(UserError, match=r"nowhere/results: no finished run is there; "):
        main(["--output", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("key", ["recipe_lr", "photos_split", "environment_precision"])
def test_a_baseline_retrained_with_another_recipe_or_split_is_not_compared(key):
    alone = result(wrong=range(2))
    changed: Made = {key: 9}
    other = result(wrong=range(2), **changed) | {"run": alone["run"]}
    for baseline, there in ((alone, True), (other, False)):
        text = comparison([baseline, student_of(alone, [0])])
        assert ("| no teacher" in text) == ("+10.00 [" in text) == there


def test_the_first_table_is_of_the_method_with_most_runs_and_of_no_other_seed():
    """One lucky seed of another temperature is no better than two seeds of this."""
    alone = [result(seed=seed, wrong=range(3)) for seed in range(3)]
    steady = [student_of(one, range(6)) for one in alone[:2]]
    text = comparison([student_of(alone[2], (), temperature=4.0), *steady, *alone])
    assert tables(text)[0][0] == ["", "Teacher, 2 seeds", "Student, 2 seeds", "KD Student, 2 seeds"]
    assert "The KD student is kd, α 0.7, T 2: most runs" in text
    better = [student_of(one, (), method="dkd", weight=8.0) for one in alone[:2]]
    text = comparison([*steady, *better, *alone])
    assert "The KD student is dkd, α 0.7, T 2, weight 8: most runs" in text


def test_folds_are_pooled_and_differences_paired_with_their_interval():
    alone = on_folds(3, 1, 2)
    taught = [student_of(one, range(k)) for one, k in zip(alone, (2, 0, 2), strict=True)]
    text = section([*alone, *taught]) + "\n" + comparison([*alone, *taught])
    assert "3 of 3 folds of division" in text
    assert "Test accuracy over all photos" in text
    assert "over the folds of each network" in section([*alone, *on_folds(0, tag="b")])
    first, pooled, _, kd, (head, *rows) = tables(text)
    assert first[0] == ["", "resnet18, 3 folds"]
    hits = [np.repeat([0.0, 1], [wrong, 10 - wrong])[None] for wrong in (3, 1, 2)]
    mean, low, high = 100 * np.minimum(mean_interval(hits), 1)
    assert pooled[1:] == [["resnet18", f"{mean:.2f} [{low:.2f}, {high:.2f}]"]]
    assert [name.split(",")[0] for name in kd[0]] == ["", "Teacher", "Student", "KD Student"]
    assert [row[:2] for row in rows] == [["no teacher", "3"], ["kd, α 0.7, T 2", "3"]]
    half, middle = 4.303 * 100 * np.std([0.1, 0.1, 0], ddof=1) / 3**0.5, 100 * 2 / 30
    row = dict(zip(head, rows[1], strict=True))
    gains = [row[f"KD − {whom} [95 %]"] for whom in ("baseline", "teacher")]
    over_baseline, over_teacher = (list(map(float, re.findall(r"[-+][\d.]+", t))) for t in gains)
    assert over_baseline == pytest.approx([middle, middle - half, middle + half], abs=0.02)
    assert over_teacher[0] == pytest.approx(100 * (26 - 15) / 30, abs=0.006)
    # Without the baseline of a fold, the others' gain is named as theirs.
    assert re.search(r"[+]10\.00 \[\S+ \S+\] of 2 runs", comparison([*alone[:2], *taught]))


def test_a_teacher_that_differs_from_the_kept_one_is_shown_as_measured_at_distillation():
    taught = [student_of(result(seed=seed), ()) for seed in range(2)]
    kept = [result("resnet50", seed) for seed in range(2)]
    known, measured = ("0.5130 ± 0.0071", "100.00 ± 0.00%"), ("–", "50.00 ± 0.00%")
    for digest, expected in ((kept[0]["digest"], known), ("new", measured)):
        found = comparison([*(one | {"digest": digest} for one in kept), *taught])
        assert tuple(tables(found)[0][row][1] for row in (1, 7)) == expected
    taught[0]["teacher"]["other_split"] = True
    found = comparison([*kept, *taught])
    assert "WARNING: the teacher's split differs" in found
    assert tables(found)[0][1][1] == "–"
    assert "WARNING: a teacher was trained again" not in found
    taught.append(taught[0] | {"teacher": taught[0]["teacher"] | {"digest": "later"}})
    assert "WARNING: a teacher was trained again" in comparison([*kept, *taught])


def test_names_are_nothing_but_text():
    classes = ["<img src=x onerror=alert(1)>", "a|b\n# c\x1b[2J"]
    made = result(photos_name="<b>", photos_classes=classes, photos_split="<i>", tag="<u>")
    made["test"]["recall"] = dict.fromkeys(classes, 0.5)
    text = section([made])
    assert not {"<", "\x1b"} & {*text}
    assert tables(text)[1][-1] == [r"Test recall, a&#124;b\n# c\x1b[2J", "50.0%"]


def test_a_line_for_each_run_is_sorted_filtered_and_in_one_csv(tmp_path, capsys):
    alone = [result(seed=seed, wrong=range(wrong)) for seed, wrong in enumerate((3, 1, 2))]
    alone[2]["recipe"] = alone[2]["recipe"] | {"lr": 0.5}
    report(tmp_path, *alone, student_of(alone[0], ()))
    main(["--output", str(tmp_path)])
    first = tables(capsys.readouterr().out)[0]
    assert first[0][:4] == ["run", "settings", "val/accuracy", "test/accuracy"]
    assert [row[3] for row in first[1:]] == ["1", "0.9", "0.8", "0.7"]
    assert first[3][:2] == [alone[2]["run"], "lr 0.5"]
    rows = list(csv.DictReader((tmp_path / "results" / "runs.csv").read_text("utf-8").splitlines()))
    accuracies = {row["run"]: float(row["test/accuracy"]) for row in rows}
    assert [accuracies[made["run"]] for made in alone] == [0.7, 0.9, 0.8]
    assert {row["distillation/method"] for row in rows} == {"", "kd"}
    main(["--output", str(tmp_path), "--filter", "resnet18*seed[12]", "--sort", "recipe/lr"])
    shown = tables(capsys.readouterr().out)[0]
    assert [row[0] for row in shown[1:]] == [alone[2]["run"], alone[1]["run"]]
    assert shown[0][-1] == "recipe/lr"
    assert len((tmp_path / "results" / "runs.csv").read_text("utf-8").splitlines()) == 5
    main(["--output", str(tmp_path), "--filter", "*]"])  # the student alone
    assert "+30.00 [" in capsys.readouterr().out
    for words, says in (
        (["--filter", "x*"], "no finished run .* has such a name"),
        (["--sort", "speed"], "not a column of runs.csv"),
    ):
        with pytest.raises(UserError, match=says):
            main(["--output", str(tmp_path), *words])
