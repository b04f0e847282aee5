"""knowledge_distillation.py as a user runs it: whole commands on small folders of photos."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

import train
from config import UserError
from knowledge_distillation import main
from models.checkpoint import save_checkpoint
from tests.boards import tensorboard, wait_for
from tests.photo_folders import CLASSES, make_photos
from utils.comparison import difference_rows
from utils.metrics import mean_interval
from utils.tables import read_result_file

ROOT = Path(__file__).parents[1]
QUICK = ("--image-size", "32", "--batch-size", "8", "--epochs", "2")
PAIR = ("--teacher", "resnet50", "--student", "resnet18")
KD = "resnet18-from-resnet50-kd-a0.7-T2"
FITNET = "resnet18-from-resnet50-fitnet-a0.7-T2-w1"


def command(*words: object, script: str = "knowledge_distillation.py") -> str:
    run = subprocess.run(
        [sys.executable, *script.split(), *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, ""), run.stdout + run.stderr
    return run.stdout


def name_of(what: str, seed: int = 0) -> str:
    return f"weather-32px-{what}-seed{seed}"


def result_of(output: Path, what: str, seed: int = 0) -> dict[str, Any]:
    content = (output / "results" / name_of(what, seed) / "result.json").read_text("utf-8")
    return dict(json.loads(content))


def logits_of(output: Path, what: str, seed: int = 0) -> dict[str, np.ndarray]:
    with np.load(output / "results" / name_of(what, seed) / "test_logits.npz") as saved:
        return dict(saved)


def weights(output: Path, what: str, kind: str = "last", seed: int = 0) -> dict[str, Any]:
    path = output / "checkpoints" / name_of(what, seed) / f"{kind}.pt"
    return dict(torch.load(path, weights_only=True))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather", per_class=20)


@pytest.fixture(scope="module")
def words(photos, tmp_path_factory) -> tuple[str, ...]:
    """Arguments of every command; their files are kept together in a folder of the tests."""
    folder = tmp_path_factory.mktemp("runs")
    place = ("--output", str(folder / "output"), "--cache", str(folder / "cache"))
    return ("--data", str(photos), *QUICK, *place)


@pytest.fixture(scope="module")
def output(words) -> Path:
    return Path(words[words.index("--output") + 1])


@pytest.fixture(scope="module")
def printed(words) -> str:
    """What the first command says: two seeds, two methods, no baseline there yet but one."""
    command(*words, "--models", "resnet18", "--seeds", 1, script="train.py")
    return command(*words, *PAIR, "--method", "kd", "fitnet", "--seeds", 0, 1)


def test_missing_baselines_are_trained_first_and_those_of_train_py_are_used(printed):
    trained = re.findall(r"^(\S+): there is no such baseline yet", printed, re.M)
    assert trained == [name_of("resnet50"), name_of("resnet18"), name_of("resnet50", 1)]
    assert f"{name_of('resnet18', 1)}: finished before, kept" in printed
    # Three baselines, and two lessons for each of two seeds.
    assert re.findall(r"^(\d) of 7 runs done", printed, re.M) == list("123456")


def test_it_ends_with_the_users_table(printed, output):
    head, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in printed.splitlines()
        if line.startswith("|") and not set(line) <= set("|-: ")
    ]
    assert head == ["", "Teacher, 2 seeds", "Student, 2 seeds", "KD Student, 2 seeds"]
    assert [title for title, *_ in rows][:9] == [
        "Best validation loss", "Best validation accuracy", "Final training loss",
        "Final validation loss", "Final validation accuracy", "Test loss", "Test accuracy",
        "Parameters", "Inference images per second",
    ]  # fmt: skip
    both = {what: [result_of(output, what, seed) for seed in (0, 1)] for what in (KD, FITNET)}
    best = max(both, key=lambda what: sum(r["val"]["accuracy"] for r in both[what]))
    columns = [[result_of(output, "resnet50", seed) for seed in (0, 1)],
               [result_of(output, "resnet18", seed) for seed in (0, 1)], both[best]]  # fmt: skip
    for cell, results in zip(rows[6][1:], columns, strict=True):
        accuracies = [100 * r["test"]["accuracy"] for r in results]
        expected = f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f}%"
        assert cell == expected


def test_the_differences_are_those_of_the_test_photos(printed, output):
    pattern = r"^\| (\w+, α [^|]+?) +\|.*?\| +(\S+ \[\S+ \S+\]) \| +(\S+ \[\S+ \S+\]) \|"
    rows = {name: gains for name, *gains in re.findall(pattern, printed, re.M)}
    assert len(rows) == 2
    for what, cells in (
        (KD, rows["kd, α 0.7, T 2"]),
        (FITNET, rows["fitnet, α 0.7, T 2, weight 1"]),
    ):
        for other, cell in zip(("resnet18", "resnet50"), cells, strict=True):
            right = [
                np.stack([saved["logits"].argmax(1) == saved["labels"] for saved in by_seed])
                for by_seed in (
                    [logits_of(output, name, seed) for seed in (0, 1)] for name in (what, other)
                )
            ]
            expected = mean_interval([right[0].astype(float) - right[1]])
            assert expected[0] == pytest.approx(right[0].mean() - right[1].mean())
            measured = [float(value) for value in re.findall(r"[-+][\d.]+", cell)]
            assert measured == pytest.approx(100 * np.clip(expected, -1, 1), abs=0.01)


def test_the_agreement_is_with_the_teacher_of_the_seed(printed, output):
    for seed in (0, 1):
        own, teacher = logits_of(output, KD, seed), logits_of(output, "resnet50", seed)
        np.testing.assert_allclose(own["teacher_logits"], teacher["logits"], atol=1e-5)
        p, q = (np.exp(z["logits"].astype(float)) for z in (teacher, own))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        agreement = result_of(output, KD, seed)["agreement"]
        assert agreement["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)
        assert agreement["top1"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())


def test_every_run_was_tested_with_its_best_epoch_on_validation(printed, output):
    for path in sorted(output.glob("results/*/result.json")):
        result = json.loads(path.read_text("utf-8"))
        with (path.parent / "history.csv").open() as file:
            history = list(csv.DictReader(file))
        ranks = [(float(row["accuracy/val"]), -float(row["loss/val"])) for row in history]
        assert result["best_epoch"] == 1 + ranks.index(max(ranks))
        best = torch.load(output / "checkpoints" / path.parent.name / "best.pt", weights_only=True)
        assert len(best["history"]) == result["best_epoch"]


def test_a_student_is_plain_torchvision_and_holds_nothing_of_its_teacher(printed, output):
    for what in (KD, FITNET):
        best = weights(output, what, "best")
        student = resnet18(num_classes=4)
        student.load_state_dict(best["model"])
        tensors = [key for key, value in best.items() if isinstance(value, torch.Tensor | dict)]
        assert set(tensors) == {"model", "recipe", "lesson"}
        last = weights(output, what)
        assert last["model"].keys() == student.state_dict().keys()
        adapter = {"adapter.weight", "adapter.bias"} if what == FITNET else set()
        assert set(last["objective"]) == adapter


def test_tensorboard_has_every_part_of_the_loss_and_the_runs_side_by_side(printed, output):
    with tensorboard(output / "logs") as board:
        wait_for(lambda: board.scalars(name_of(FITNET), "test/agreement"))
        tags = board.ask("/plugin/scalars/tags")[name_of(FITNET)]
        parts = {"loss", "accuracy", "ce", "kd", "fitnet", "agreement"}
        assert {f"{part}/{split}" for part in parts for split in ("train", "val")} <= set(tags)
        row = wait_for(board.sessions)[name_of(FITNET)]["hparams"]
        assert (row["method"], row["alpha"], row["temperature"]) == ("fitnet", 0.7, 2.0)
        assert (row["weight"], row["teacher"]) == (1.0, "resnet50")
        layout = board.ask("/plugin/custom_scalars/layout")["category"]
        (charts,) = [c["chart"] for c in layout if c["title"] == "runs side by side"]
        for chart in charts:
            (pattern,) = chart["multiline"]["tag"]
            for run in (name_of(KD), name_of("resnet18"), name_of("resnet50")):
                curve = board.ask("/plugin/custom_scalars/scalars", run=run, tag=pattern)
                assert len(curve["tag_to_events"][chart["title"]]) == 2


def test_the_report_compares_the_methods_and_writes_csv(printed, output):
    text = command("--output", output, script="-m utils.report")
    assert "### resnet50 teaches resnet18" in text
    assert re.search(r"^\| fitnet, α 0.7, T 2, weight 1 +\| +2 \|", text, re.M)
    # Distilled students are no column of the baselines' table.
    head = next(line for line in text.splitlines() if line.startswith("|"))
    assert "from" not in head
    with (output / "results" / "comparison.csv").open() as file:
        lessons = {row["lesson"]: row for row in csv.DictReader(file)}
    assert list(lessons) == ["no teacher", "fitnet, α 0.7, T 2, weight 1", "kd, α 0.7, T 2"]
    accuracies = [result_of(output, KD, seed)["test"]["accuracy"] for seed in (0, 1)]
    row = lessons["kd, α 0.7, T 2"]
    assert float(row["test accuracy"]) == pytest.approx(np.mean(accuracies))
    assert float(row["test accuracy std"]) == pytest.approx(np.std(accuracies, ddof=1))
    with (output / "results" / "runs.csv").open() as file:
        runs = {row["run"]: row for row in csv.DictReader(file)}
    assert runs[name_of(KD, 1)]["temperature"] == "2.0"
    assert runs[name_of("resnet50", 1)]["temperature"] == ""


def test_finished_students_are_refused_and_with_resume_only_read(printed, words, output):
    path = output / "checkpoints" / name_of(KD) / "best.pt"
    before = path.stat().st_mtime_ns
    with pytest.raises(UserError, match=f"{name_of(KD)} is finished: --resume"):
        main([*words, *PAIR])
    text = command(*words, *PAIR, "--resume")
    assert text.count("finished before, kept") == 3
    assert "| Test accuracy" in text
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "broken",
    [
        f"results/{name_of(KD)}/result.json", f"results/{name_of('resnet50')}/result.json",
        f"results/{name_of('resnet18')}/settings.json",
        f"checkpoints/{name_of('resnet50')}/best.pt",
    ],
)  # fmt: skip
@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_a_broken_file_of_an_earlier_run_is_named(printed, words, output, broken, left):
    path = output / broken
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    try:
        # The teacher is wanted for a new student only.
        lesson = ["--alpha", "0.6"] if path.name == "best.pt" else []
        with pytest.raises(UserError, match=re.escape(str(path))) as problem:
            main([*words, *PAIR, *lesson, "--resume"])
        assert len(str(problem.value).splitlines()) == 1
    finally:
        path.write_bytes(whole)


def test_a_result_that_does_not_tell_which_photos_were_wrong_has_no_gain(printed, output):
    results = {r["run"]: r for r in map(read_result_file, output.glob("results/*/result.json"))}
    del results[name_of("resnet18", 1)]["test"]["wrong"]  # as earlier versions wrote it
    rows = difference_rows([results[name_of(KD, seed)] for seed in (0, 1)], results)
    only_seed_0 = difference_rows([results[name_of(KD)]], results)
    assert rows[1].gain == only_seed_0[1].gain
    for seed in (0, 1):
        del results[name_of(KD, seed)]["test"]["wrong"]
    rows = difference_rows([results[name_of(KD, seed)] for seed in (0, 1)], results)
    assert (rows[1].gain, rows[1].over_teacher) == (None, None)


def test_a_baseline_of_another_recipe_is_no_baseline(printed, words):
    with pytest.raises(UserError, match=r"started with --lr 0\.001, not 0\.01.*--tag"):
        main([*words, *PAIR, "--alpha", "0.1", "--lr", "0.01"])


def test_alpha_0_is_the_baseline_bit_for_bit(printed, words, output):
    main([*words, *PAIR, "--alpha", "0"])
    what = KD.replace("a0.7", "a0")
    first, second = weights(output, "resnet18"), weights(output, what)
    assert all(torch.equal(value, second["model"][key]) for key, value in first["model"].items())
    for row, other in zip(first["history"], second["history"], strict=True):
        assert all(row[key] == other[key] for key in row if "/" in key), row
    assert np.array_equal(
        logits_of(output, what)["logits"], logits_of(output, "resnet18")["logits"]
    )


def test_a_network_teaches_itself_and_the_roles_are_swapped(printed, words, output):
    main([*words, "--teacher", "resnet18", "--student", "resnet18", "--teacher-epochs", "3"])
    own = result_of(output, "resnet18-from-resnet18.3epochs-kd-a0.7-T2")
    assert own["teacher"]["run"] == name_of("resnet18-3epochs")
    assert own["teacher"]["epochs"] == 3
    assert own["lesson"]["baseline"] == name_of("resnet18")
    assert len(weights(output, "resnet18-3epochs")["history"]) == 3

    main([*words, "--experiment", "experiment_2", "--reverse"])
    reverse = result_of(output, "resnet50-from-resnet18-kd-a0.7-T2")
    assert (reverse["model"], reverse["teacher"]["arch"]) == ("resnet50", "resnet18")
    assert reverse["lesson"]["baseline"] == name_of("resnet50")


def test_a_teacher_of_any_recipe_is_named_by_its_tag(printed, words, output, capsys):
    lesson = [*PAIR, "--teacher-tag", "slow", "--seeds", "0", "1"]
    before = sorted(output.rglob("*"))
    with pytest.raises(UserError, match=rf"no finished run {name_of('resnet50-slow')}; .* --tag"):
        main([*words, *lesson])
    assert sorted(output.rglob("*")) == before
    recipe = ["--models", "resnet50", "--tag", "slow", "--lr", "0.0001", "--mixup", "0.2"]
    train.main([*words, *recipe, "--seeds", "0"])
    with pytest.raises(UserError, match=f"no finished run {name_of('resnet50-slow', 1)}"):
        main([*words, *lesson])
    other = [word if word != "0.2" else "0.3" for word in recipe]
    train.main([*words, *other, "--seeds", "1"])
    with pytest.raises(UserError, match="were trained by different recipes"):
        main([*words, *lesson])
    train.main([*words, *recipe, "--seeds", "1", "--overwrite"])
    capsys.readouterr()
    main([*words, *lesson])
    text = capsys.readouterr().out
    assert "### resnet50.slow teaches resnet18\n" in text
    assert "there is no such baseline yet" not in text
    for seed in (0, 1):
        student = result_of(output, "resnet18-from-resnet50.slow-kd-a0.7-T2", seed)
        slow = result_of(output, "resnet50-slow", seed)
        assert (student["teacher"]["run"], student["teacher"]["digest"]) == (
            slow["run"], slow["digest"],
        )  # fmt: skip
        assert student["lesson"]["baseline"] == name_of("resnet18", seed)
        assert (student["recipe"]["lr"], slow["recipe"]["lr"]) == (0.001, 0.0001)


def test_a_tagged_teacher_may_be_pretrained_where_its_student_is_not(printed, words, output):
    """Told by its name alone: this one is a copy of another."""
    name = name_of("resnet50-pretrained-big")
    for folder in (output / "checkpoints", output / "results"):
        shutil.copytree(folder / name_of("resnet50"), folder / name)
    main([*words, *PAIR, "--teacher-tag", "big"])
    student = result_of(output, "resnet18-from-resnet50.pretrained.big-kd-a0.7-T2")
    assert student["teacher"]["run"] == name
    assert student["lesson"]["baseline"] == name_of("resnet18")


def test_photos_of_the_same_names_are_not_taken_for_those_of_the_baselines(
    printed, words, photos, output, tmp_path
):
    """One photo of another folder holds something else, and a copy of the folder does not."""
    copy = tmp_path / "weather"
    shutil.copytree(photos, copy)
    there = [str(copy) if word == str(photos) else word for word in words]
    train.main([*there, "--models", "resnet18", "--resume"])
    before = sorted((output / "checkpoints").rglob("*"))
    (copy / "rain" / "0.jpg").write_bytes((copy / "rain" / "1.jpg").read_bytes() + b"\0")
    for wanted in ([*PAIR, "--alpha", "0.45"], ["--teacher", "resnet18", "--student", "resnet18"]):
        with pytest.raises(UserError, match=r"other photos, though of the same names: .*--tag"):
            main([*there, *wanted])
    with pytest.raises(UserError, match="other photos, though of the same names"):
        train.main([*there, "--models", "resnet18", "--resume"])
    assert sorted((output / "checkpoints").rglob("*")) == before


@pytest.mark.parametrize("left", [("result.json", "settings.json"), ("settings.json",)])
def test_without_its_settings_a_run_is_still_known_by_what_is_left(
    left, printed, words, output, tmp_path
):
    """An unfinished run by its last checkpoint, a finished one by its result."""
    name = name_of("resnet18")
    for kind in ("checkpoints", "results"):
        shutil.copytree(output / kind / name, tmp_path / kind / name)
    for file in left:
        (tmp_path / "results" / name / file).unlink()
    there = [str(tmp_path) if word == str(output) else word for word in words]
    again = [*there, "--models", "resnet18", "--resume"]
    with pytest.raises(UserError, match=r"was started with --lr 0\.001, not 0\.05"):
        train.main([*again, "--lr", "0.05"])
    shutil.copytree(words[1], tmp_path / "weather")
    (tmp_path / "weather" / "rain" / "0.jpg").rename(tmp_path / "weather" / "rain" / "a.jpg")
    with pytest.raises(UserError, match="was started with split "):
        train.main(["--data", str(tmp_path / "weather"), *again[2:]])
    train.main(again)
    assert result_of(tmp_path, "resnet18")["digest"] == result_of(output, "resnet18")["digest"]


def test_runs_of_another_split_stand_beside_the_others(printed, words, output, capsys):
    """Its student is compared with, and taught by, runs of the same split."""
    before = result_of(output, "resnet18")
    other = [*words, "--split-seed", "3"]
    with pytest.raises(UserError, match=r"no finished run .*resnet18-slow-split3-.* --split-seed"):
        main([*other, "--teacher", "resnet18", "--student", "resnet18", "--teacher-tag", "slow"])
    train.main([*other, "--models", "resnet18"])
    capsys.readouterr()
    main([*other, "--teacher", "resnet18", "--student", "resnet18"])
    text = capsys.readouterr().out
    assert f"{name_of('resnet18-split3')}: finished before, kept" in text
    assert "there is no such baseline yet" not in text
    student = result_of(output, "resnet18-from-resnet18-kd-a0.7-T2-split3")
    alone = result_of(output, "resnet18-split3")
    assert student["teacher"]["run"] == student["lesson"]["baseline"] == alone["run"]
    assert student["photos"]["split"] == alone["photos"]["split"] != before["photos"]["split"]
    assert result_of(output, "resnet18") == before
    sections = command("--output", output, script="-m utils.report").split("## weather at")
    assert sum(student["photos"]["split"] in section for section in sections) == 1


def test_over_folds_each_photo_is_tested_once_by_networks_that_never_saw_it(words, tmp_path):
    there = [str(tmp_path) if word == str(words[words.index("--output") + 1]) else word
             for word in words] + ["--epochs", "1", "--folds", "4"]  # fmt: skip
    itself = ["--teacher", "resnet18", "--student", "resnet18"]
    with pytest.raises(UserError, match=r"train\.py .*--tag slow .* --folds 4 --fold 0$"):
        main([*there, *itself, "--teacher-tag", "slow"])
    printed = command(*there, *itself)
    assert re.findall(r"^(\d) of 8 runs done; the others take about", printed, re.M) == list(
        "1234567"
    )
    tested: list[str] = []
    gained = []
    for fold in range(4):
        alone, taught = (
            result_of(tmp_path, f"{what}-fold{fold}of4")
            for what in ("resnet18", "resnet18-from-resnet18-kd-a0.7-T2")
        )
        assert taught["teacher"]["run"] == taught["lesson"]["baseline"] == alone["run"]
        assert not taught["teacher"]["other_split"]
        assert (alone["photos"]["folds"], alone["photos"]["fold"]) == (4, fold)
        with (tmp_path / "results" / alone["run"] / "split.csv").open(newline="") as file:
            parts = {row["path"]: row["split"] for row in csv.DictReader(file)}
        here = [path for path, part in parts.items() if part == "test"]
        assert len(here) == alone["test"]["photos"] == taught["test"]["photos"]
        tested += here
        wrong = np.zeros((2, len(here)))
        for row, run in zip(wrong, (alone, taught), strict=True):
            row[run["test"]["wrong"]] = 1
        gained.append(wrong[:1] - wrong[1:])
    assert sorted(tested) == sorted(parts)
    expected = 100 * np.clip(mean_interval(gained), -1, 1)
    (cell,) = re.findall(r"^\| kd, α 0\.7, T 2 +\| +4 \|[^|]+\|[^|]+\|([^|]+)\|", printed, re.M)
    assert [float(x) for x in re.findall(r"[-+][\d.]+", cell)] == pytest.approx(expected, abs=0.006)
    # Each fold can be had alone, and what is finished is kept.
    kept = command(*there, "--models", "resnet18", "--fold", 2, "--resume", script="train.py")
    assert "resnet18-fold2of4-seed0: finished before, kept" in kept
    checkpoint = tmp_path / "checkpoints" / name_of("resnet18-fold1of4") / "best.pt"
    with pytest.raises(UserError, match="it has seen the student's test photos"):
        main([*there, "--student", "resnet18", "--teacher-checkpoint", str(checkpoint)])


def test_a_run_with_crops_of_an_earlier_version_is_not_resumed(printed, words, output, tmp_path):
    name = name_of("resnet18")
    for kind in ("checkpoints", "results"):
        shutil.copytree(output / kind / name, tmp_path / kind / name)
    for file in ("result.json", "settings.json"):
        path = tmp_path / "results" / name / file
        content = json.loads(path.read_text("utf-8"))
        (content if file == "settings.json" else content["recipe"]).pop("crops")
        path.write_text(json.dumps(content), "utf-8")
    there = [str(tmp_path) if word == str(output) else word for word in words]
    with pytest.raises(UserError, match="an earlier version, whose crops were others: --overwrite"):
        train.main([*there, "--models", "resnet18", "--resume"])


def test_a_tagged_teacher_that_does_not_fit_is_refused_before_any_work(printed, words, output):
    folder = output / "checkpoints" / name_of("resnet50-foreign")
    results = output / "results" / name_of("resnet50-foreign")
    shutil.copytree(output / "checkpoints" / name_of("resnet50"), folder)
    shutil.copytree(output / "results" / name_of("resnet50"), results)
    before = sorted(output.rglob("*"))
    try:
        for change, says in (
            ({"split": "0123456789abcdef"}, "it has seen the student's test photos"),
            ({"photos": "0123456789abcdef"}, "other photos of the same names"),
            ({"image_size": 64}, "was trained at 64 px"),
        ):
            shutil.copy(output / "checkpoints" / name_of("resnet50") / "best.pt", folder)
            changed(folder / "best.pt", **change)
            with pytest.raises(UserError, match=says):
                main([*words, *PAIR, "--teacher-tag", "foreign"])
        assert sorted(output.rglob("*")) == before
    finally:
        for made in (folder, results):
            shutil.rmtree(made)


@pytest.fixture
def brought(printed, output, tmp_path) -> Path:
    """A teacher's checkpoint from elsewhere."""
    path = tmp_path / "elsewhere" / "best.pt"
    path.parent.mkdir()
    shutil.copy(output / "checkpoints" / name_of("resnet50") / "best.pt", path)
    return path


def changed(path: Path, **values: object) -> Path:
    save_checkpoint(path, torch.load(path, weights_only=True) | values)
    return path


def bring(words, path: Path, *others: str) -> list[str]:
    return [*words, "--student", "resnet18", "--teacher-checkpoint", str(path), *others]


def test_a_weak_teacher_is_measured_and_warned_of(brought, words, output, capsys):
    model = torch.load(brought, weights_only=True)["model"]
    model["fc.weight"].zero_()
    model["fc.bias"] = torch.tensor([9.0, 0, 0, 0])  # it says fog, whatever it sees
    main(bring(words, changed(brought, model=model)))
    text = capsys.readouterr().out
    baseline = result_of(output, "resnet18")["val"]["accuracy"]
    assert f"validation accuracy 25.00%; the student without it: {baseline:.2%}" in text
    assert "WARNING  this teacher is weaker than its student" in text
    # Of its past nothing is known but what was measured.
    assert re.search(r"^\| Final training loss +\| +– \|", text, re.M)
    assert re.search(r"^\| Best validation accuracy +\| +25\.00% \|", text, re.M)


def test_a_teacher_of_another_split_is_refused_or_marked(brought, words, capsys):
    changed(brought, split="0123456789abcdef")
    with pytest.raises(UserError, match="it has seen the student's test photos") as problem:
        main(bring(words, brought))
    assert len(str(problem.value).splitlines()) == 2
    main(bring(words, brought, "--allow-other-split", "--tag", "foreign"))
    text = capsys.readouterr().out
    assert "WARNING  this teacher learnt from another split" in text
    assert "WARNING: the teacher learnt from another split and may have seen the test" in text


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"classes": ["hail", "fog", "rain", "snow"]},
            "other classes, or the same in another order",
        ),
        ({"image_size": 64}, "was trained at 64 px"),
        ({"mean": [0.5, 0.5, 0.5]}, "normalised in another way"),
        ({"arch": "resnet18"}, "not those of a resnet18 with 4 classes"),
        ({"arch": "vgg11"}, "'vgg11' is none of the models"),
        ({"arch": 7}, "does not say its arch"),
        ({"classes": ["fog", "hail", "rain"]}, "not those of a resnet50 with 3 classes"),
        ({"format": 99}, "newer version"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_any_work(
    values, says, brought, words, output
):
    before = sorted(output.rglob("*"))
    with pytest.raises(UserError, match=re.escape(says)) as problem:
        main(bring(words, changed(brought, **values)))
    assert len(str(problem.value).splitlines()) <= 2
    assert sorted(output.rglob("*")) == before


class Evil:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_file_that_is_no_checkpoint_is_refused_and_no_code_in_it_runs(brought, words, tmp_path):
    whole = brought.read_bytes()
    files = {"text": b"not weights\n", "empty": b"", "half": whole[: len(whole) // 2]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint"):
            main(bring(words, tmp_path / name))
    torch.save({"format": 1, "model": Evil(tmp_path / "made")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        main(bring(words, tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()
    torch.save(resnet18().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"not a checkpoint of train\.py"):
        main(bring(words, tmp_path / "plain.pt"))
    with pytest.raises(UserError, match="there is no such checkpoint"):
        main(bring(words, tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match="is a resnet50; omit --teacher"):
        main(bring(words, brought, "--teacher", "densenet169"))


def test_dkd_with_two_classes_is_refused_before_any_work(photos, words, tmp_path):
    for name in CLASSES[:2]:
        shutil.copytree(photos / name, tmp_path / "two" / name)
    place = ["--output", str(tmp_path / "o"), "--cache", str(tmp_path / "c")]
    with pytest.raises(UserError, match="--method dkd: it needs three classes"):
        main(["--data", str(tmp_path / "two"), *QUICK, *place, *PAIR, "--method", "dkd"])
    assert not (tmp_path / "o").exists()


def test_a_teacher_whose_first_images_would_be_too_small_is_refused(words):
    """A student of one epoch sees whole images at once, its teacher of ten does not."""
    lesson = ["--teacher", "densenet169", "--student", "resnet18", "--grow-from", "0.5"]
    with pytest.raises(UserError, match=r"--grow-from 0\.5: densenet169 needs 29 pixels"):
        main([*words, *lesson, "--epochs", "1", "--teacher-epochs", "10"])


def test_a_teacher_that_was_trained_again_is_not_taken_for_the_one_that_taught(
    printed, words, output, capsys
):
    path = output / "results" / name_of("resnet50") / "result.json"
    whole = path.read_text("utf-8")
    other = json.loads(whole) | {"digest": "0" * 16}
    path.write_text(json.dumps(other), "utf-8")
    with pytest.raises(UserError, match=r"before that was trained again: --overwrite"):
        main([*words, *PAIR, "--resume"])
    path.write_text(whole, "utf-8")
    best = output / "checkpoints" / name_of("resnet50") / "best.pt"
    best.rename(best.with_suffix(".hidden"))
    with pytest.raises(UserError, match=r"best\.pt is gone: train the teacher again"):
        main([*words, *PAIR, "--alpha", "0.3"])
    best.with_suffix(".hidden").rename(best)


def test_another_teacher_does_not_go_on_with_an_unfinished_student(printed, words, output):
    """The teacher was trained again in between: its student would have two teachers."""
    what = KD.replace("a0.7", "a0.25")
    main([*words, *PAIR, "--alpha", "0.25"])
    (output / "results" / name_of(what) / "result.json").unlink()
    path = output / "checkpoints" / name_of(what) / "last.pt"
    changed(path, teacher="0" * 16)
    with pytest.raises(UserError, match="started with a teacher of other weights: --overwrite"):
        main([*words, *PAIR, "--alpha", "0.25", "--resume"])
    changed(path, format=1)
    with pytest.raises(UserError, match="started by an earlier version of this repo: --overwrite"):
        main([*words, *PAIR, "--alpha", "0.25", "--resume"])
