"""knowledge_distillation.py as a user runs it: whole commands on small folders of photos."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from config import UserError
from data.files import atomic_write, read_json, remove, write_json
from knowledge_distillation import main
from models.checkpoint import save_checkpoint
from models.factory import create_model
from tests.photo_folders import training
from tests.test_models import OWN
from tests.test_train import refused as refused_by
from tests.test_train import result_of, rows_of

PAIR = ["--teacher", "resnet50", "--student", "resnet18"]
KD = "resnet18-from-resnet50-kd-a0.7-T2"
FITNET = "resnet18-from-resnet50-fitnet-a0.7-T2-w1"
refused = partial(refused_by, command=main)


def name_of(what: str, seed: int = 0) -> str:
    return f"weather-32px-{what}-seed{seed}"


def best_of(output: Path, what: str, seed: int = 0) -> Path:
    return output / "checkpoints" / name_of(what, seed) / "best.pt"


def changed(path: Path, **values: object) -> None:
    save_checkpoint(path, torch.load(path, weights_only=True) | values)


def printed_by(words: list[str], when: str = "\0", action: Callable[[], Any] = int) -> str:
    """What a command prints; `action` is called when it prints `when`."""

    class Printed(io.StringIO):
        def write(self, text: str) -> int:
            if when in text:
                action()
            return super().write(text)

    with contextlib.redirect_stdout(Printed()) as printed:
        main(words)
    return printed.getvalue()


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> tuple[Path, list[str], str]:
    """The output of two seeds and two methods after one baseline; arguments; what was printed."""
    folder = tmp_path_factory.mktemp("runs")
    words = training(photos, folder, "--batch-size", 14)
    train.main([*words, "--models", "resnet18", "--seeds", "1"])
    printed = printed_by([*words, *PAIR, "--seeds", "0", "1", "--method", "kd", "fitnet"])
    return folder / "output", words, printed


@pytest.fixture
def copied(finished, tmp_path) -> tuple[Path, list[str]]:
    """The finished runs for a test that changes them, and the arguments of its commands."""
    # Files are linked, as none is written in its place.
    output = shutil.copytree(finished[0], tmp_path / "output", copy_function=os.link)
    return output, [*finished[1][:3], str(output), *finished[1][4:]]


def test_it_trains_what_is_missing_and_ends_with_teacher_student_and_kd_student(finished):
    _, _, printed = finished
    trained = re.findall(r"^(\S+): not trained yet", printed, re.M)
    assert trained == [name_of("resnet50"), name_of("resnet18"), name_of("resnet50", 1)]
    assert f"{name_of('resnet18', 1)}: already finished" in printed
    assert "4 of 4  " in printed  # two students for each of two seeds
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    head = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert head == ["", "Teacher, 2 seeds", "Student, 2 seeds", "KD Student, 2 seeds"]


@pytest.mark.parametrize("what", [KD, FITNET])
def test_a_student_is_measured_against_its_teacher(finished, what):
    output, _, _ = finished
    result = result_of(output, what, 1)
    runs = [output / "results" / name_of(name, 1) for name in (what, "resnet50")]
    own, teacher = (np.load(run / "test_logits.npz") for run in runs)
    np.testing.assert_allclose(own["teacher_logits"], teacher["logits"], atol=1e-5)
    same = [saved["logits"].argmax(1) for saved in (own, teacher)]
    assert result["agreement"]["top1"] == np.mean(same[0] == same[1])
    (row,) = rows_of(output / "results" / result["run"] / "history.csv")
    parts = {"ce", "kd", "agreement", result["distillation"]["method"]}
    assert {f"{part}/{split}" for part in parts for split in ("train", "val")} <= set(row)


def test_alpha_0_is_the_baseline_bit_for_bit_and_each_alpha_is_a_run(copied):
    output, words = copied
    printed = printed_by([*words, *PAIR, "--alpha", "0", "1"])
    of_0, of_1 = (result_of(output, KD.replace("0.7", alpha))["digest"] for alpha in "01")
    assert of_0 == result_of(output, "resnet18")["digest"] != of_1
    assert len(re.findall(r"^\| kd, α [01], T 2", printed, re.M)) == 2


def test_a_teacher_of_any_recipe_is_named_by_its_tag(copied):
    output, words = copied
    tagged = [*words, "--teacher", "resnet18", "--student", "resnet18", "--teacher-tag", "slow"]
    tagged += ["--seeds", "0", "1"]
    refused(tagged, rf"no finished run {name_of('resnet18-slow')}; .* --tag slow")
    train.main([*words, "--models", "resnet18", "--tag", "slow", "--lr", "0.0001", *tagged[-3:]])
    printed = printed_by(tagged)
    assert re.search(r"^### resnet18.slow \(.*lr 0\.0001.*\) teaches resnet18", printed, re.M)
    assert "not trained yet" not in printed
    for seed in (0, 1):
        student = result_of(output, "resnet18-from-resnet18.slow-kd-a0.7-T2", seed)
        teacher = result_of(output, "resnet18-slow", seed)
        assert student["teacher"]["digest"] == teacher["digest"]
        assert student["distillation"]["baseline"] == name_of("resnet18", seed)
    result = output / "results" / name_of("resnet18-slow", 1) / "result.json"
    write_json(result, teacher | {"recipe": {"mixup": 0.2}})
    refused(tagged, "were trained by different recipes")
    changed(best_of(output, "resnet18-slow"), held_out="0123456789abcdef")
    refused(tagged, "it may have seen the student's test photos.\nTrain one")


def test_each_photo_is_tested_once_over_folds_by_networks_that_never_saw_it(photos, tmp_path):
    output, words = tmp_path / "output", training(photos, tmp_path, "--folds", 3, "--tag", "own")
    printed = printed_by([*words, "--teacher", "resnet18", "--student", "resnet18"])
    assert len(re.findall(r"^\d of 3  ", printed, re.M)) == 3
    tested = []
    for fold in range(3):
        names = ("resnet18", "resnet18-from-resnet18-kd-a0.7-T2")
        alone, taught = (result_of(output, f"{what}-own-fold{fold}of3") for what in names)
        assert taught["teacher"]["run"] == taught["distillation"]["baseline"] == alone["run"]
        assert (alone["photos"]["folds"], alone["photos"]["fold"]) == (3, fold)
        split = rows_of(output / "results" / alone["run"] / "split.csv")
        tested += [row["path"] for row in split if row["split"] == "test"]
    assert sorted(tested) == sorted(row["path"] for row in split)
    assert re.search(r"^\| kd, α 0\.7, T 2 +\| +3 \|", printed, re.M)


@pytest.fixture
def given(copied, tmp_path) -> tuple[Path, list[str]]:
    """A teacher's checkpoint from elsewhere, and the arguments by which it teaches."""
    path = Path(shutil.copy(best_of(copied[0], "resnet50"), tmp_path))
    return path, [*copied[1], "--student", "resnet18", "--teacher-checkpoint", str(tmp_path)]


@pytest.mark.parametrize(
    ("values", "more", "says"),
    [
        ({"held_out": "0123456789abcdef"}, "", "have seen the student's test photos.\nTrain one"),
        ({"photos": "0123456789abcdef"}, "", "on other photos: .*\nTrain one"),
        ({"classes": ["hail", "fog", "rain", "snow"]}, "", "has classes .*hail.*, the student"),
        ({}, "/own.py", "damaged, or not a checkpoint"),
        ({}, "/w.pt", "w.pt has only weights: give --teacher and --allow-other-split"),
        ({}, "/w.pt --allow-other-split --teacher {}/own.py:soft", "soft returns probabilities"),
        ({}, "/w.pt --allow-other-split --teacher resnet18", "not the weights of this resnet18"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(values, more, says, given, tmp_path):
    changed(given[0], **values)
    (own := tmp_path / "own.py").write_text(OWN)
    torch.save(create_model(f"{own}:small", 4, 32, seed=0).state_dict(), tmp_path / "w.pt")
    refused(f"{' '.join(given[1])}{more.format(tmp_path)}".split(), says)


def test_a_weak_teacher_and_one_of_another_split_are_warned_of(given, copied):
    path, words = given
    printed = printed_by([*words, "--labels-per-class", "5"])  # a teacher of all labels
    assert re.findall(r"trained .*other (\w+ \w+)", printed) == ["labels of", "labels than"]
    model = torch.load(path, weights_only=True)["model"]
    model["fc.weight"].zero_()
    model["fc.bias"] = torch.tensor([9.0, 0, 0, 0])  # it says fog, whatever it sees
    changed(path, model=model, held_out="0123456789abcdef")
    baseline = result_of(copied[0])
    baseline["val"]["accuracy"] = 0.5
    write_json(copied[0] / "results" / name_of("resnet18") / "result.json", baseline)
    printed = printed_by([*words, "--allow-other-split"])
    assert "WARNING  this teacher is worse than its student" in printed
    assert "WARNING  this teacher was trained on another split" in printed
    assert "WARNING: the teacher" in printed.partition("###")[2]
    for name, key in (("T2", "held_out"), ("T2-labels5", "labels")):  # if the student teaches
        (best,) = copied[0].glob(f"checkpoints/*-from-resnet50.*-{name}-seed0/best.pt")
        assert torch.load(best, weights_only=True)[key] == ""
    # Of its past nothing is known but what was measured.
    assert re.search(r"^\| Final training loss +\| +– \|", printed, re.M)
    assert re.search(r"^\| Best validation accuracy +\| +25\.00% \|", printed, re.M)


def test_a_teacher_or_baseline_replaced_during_a_command_is_never_mixed_in(given, copied):
    (path, words), (output, _) = given, copied
    first, other = (best_of(output, "resnet50", seed) for seed in (0, 1))
    with pytest.raises(UserError, match=r"best\.pt has changed since it was evaluated: start"):
        printed_by(words, "device ", lambda: shutil.copy(other, path))

    def replace() -> None:
        shutil.copy(first, path)
        remove(output / "results" / name_of("resnet18", 1) / "result.json")

    printed = printed_by([*words, "--seeds", "0", "1"], "best epoch", replace)
    digest = result_of(output, "resnet50", 1)["digest"]
    for seed in (0, 1):  # the second student has the same teacher as the first
        student = result_of(output, f"resnet18-from-resnet50.{digest[:8]}-kd-a0.7-T2", seed)
        assert student["teacher"]["digest"] == digest
    assert "not trained yet" not in printed
    assert len(re.findall(r"^\| Test accuracy [^±]* ± [^±]* ± ", printed, re.M)) == 1


def test_a_finished_student_is_kept_with_the_teacher_that_it_was_started_with(copied):
    output, words = copied
    resume, best = [*words, *PAIR, "--resume"], best_of(output, KD)
    path = output / "results" / name_of(KD) / "result.json"
    student = read_json(path)
    done = student["environment"]["precision"]  # what auto means here
    best_of(output, "resnet50").with_name("last.pt").touch()  # as left by a run killed at its end
    assert printed_by([*resume, "--precision", done]).count("already finished") == 3
    assert not list(output.rglob("last.pt"))
    other = "bf16" if done == "float32" else "float32"
    refused([*resume, "--precision", other], f"with precision {done}, not {other}: give the same")
    for more, says in (
        ([], f"{name_of(KD)} is finished: --resume .*--overwrite"),
        (["--alpha", "0.1", "--lr", "0.01"], "written with lr 0.001, not 0.01: .*--tag"),
        (["--method", "dkd", "--mixup", "0.2", "--data", "none"], "--method dkd .*--mixup"),
    ):
        refused([*words, *PAIR, *more], says)
    write_json(path, student | {"teacher": student["teacher"] | {"digest": "0" * 16}})
    with pytest.raises(UserError, match=r"which was trained again: --overwrite"):
        printed_by(resume)
    remove(path)
    last = best.rename(best.with_name("last.pt"))
    for key, says in (
        ("teacher_digest", f"{name_of(KD)} was distilled from .*, which was trained again: --over"),
        ("precision", rf"last.pt was written with precision 0000, not {done}"),
    ):
        before = torch.load(last, weights_only=True)[key]
        changed(last, **{key: "0000"})
        refused(resume, says)
        changed(last, **{key: before})
    atomic_write(best_of(output, "resnet50", 1), "PK")
    refused([*resume, "--seeds", "0", "1"], "damaged, or not a checkpoint")
    remove(best_of(output, "resnet50"))
    refused(resume, r"best\.pt: no such checkpoint: --resume its run if unfinished, or repeat it")
