"""train.py as a user runs it: whole commands on small folders of photos."""

import csv
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.transforms import v2

from config import UserError, parse
from data.dataset import load_datasets
from data.files import read_json, write_json
from data.photos import open_rgb
from tests.photo_folders import CLASSES, make_photos, python, start, training
from train import main
from utils.runs import prepare
from utils.script import run_script

NAME = "weather-32px-resnet18-seed0"
FEW = "56 photos leave 40 to train on, less than a batch of 57: .* --batch-size 20"


def words_for(photos: Path, folder: Path) -> list[str]:
    return training(photos, folder, "--models", "resnet18", "--epochs", 2)


def refused(words: list[str], says: str, command: Callable[[list[str]], None] = main) -> None:
    """The command is refused in as many lines as `says` has, before it writes a file."""

    def files() -> list[Path]:
        assert words[2] == "--output"
        return sorted(path for path in Path(words[3]).rglob("*") if path.is_file())

    before = files()
    with pytest.raises((UserError, OSError), match=says) as problem:
        command(words)
    assert str(problem.value).count("\n") == says.count("\n")
    assert files() == before


def result_of(output: Path, what: str = "resnet18", seed: int = 0) -> dict[str, Any]:
    return read_json(output / "results" / f"weather-32px-{what}-seed{seed}" / "result.json")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> tuple[Path, str]:
    """The output folder of two seeds of one baseline, and what their command printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = python("train.py", *words_for(photos, folder), "--seeds", 0, 1)
    assert (done.returncode, done.stderr) == (0, "")  # no bars without a terminal
    return folder / "output", done.stdout


@pytest.fixture
def copied(finished, photos, tmp_path) -> tuple[Path, list[str]]:
    """The finished runs for a test that replaces their files, and the words of their command."""
    output = shutil.copytree(finished[0], tmp_path / "output", copy_function=os.link)
    return output, words_for(photos, tmp_path)


def test_it_ends_with_the_seven_rows_and_says_where_things_are(finished):
    output, printed = finished
    rows = re.findall(r"^\| ([A-Z][a-z ]+?) +\| +([\d.]+) ± ([\d.]+)%? +\|$", printed, re.M)
    assert [title for title, _, _ in rows][:7] == [
        "Best validation loss", "Best validation accuracy", "Final training loss",
        "Final validation loss", "Final validation accuracy", "Test loss", "Test accuracy",
    ]  # fmt: skip
    tested = [100 * result_of(output, seed=seed)["test"]["accuracy"] for seed in (0, 1)]
    shown = [float(value) for value in rows[6][1:]]
    assert shown == pytest.approx([np.mean(tested), np.std(tested, ddof=1)], abs=0.01)
    assert len(re.findall(r"^epoch +\d/2 ", printed, re.M)) == 4
    assert re.findall(r"^(\d of \d)  ", printed, re.M) == ["1 of 2", "2 of 2"]
    assert "tensorboard --logdir=" in printed
    times = re.findall(r"^about .*$", re.sub(r"\d:\d\d:\d\d", "T", printed), re.M)
    assert times == ["about T for this run, T for all remaining runs", "about T for this run"]


def test_a_runs_files_agree_with_each_other_and_with_plain_torchvision(finished, photos):
    output, _ = finished
    result, saved = result_of(output), np.load(output / "results" / NAME / "test_logits.npz")
    wrong = np.flatnonzero(saved["logits"].argmax(1) != saved["labels"])
    assert result["test"]["wrong"] == wrong.tolist()
    assert result["test"]["accuracy"] == pytest.approx(1 - len(wrong) / len(saved["labels"]))
    history = rows_of(output / "results" / NAME / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert result["table"]["final_val_loss"] == float(history[-1]["loss/val"])
    assert result["table"]["best_val_loss"] == min(float(row["loss/val"]) for row in history)
    best = max(history, key=lambda row: (float(row["accuracy/val"]), -float(row["loss/val"])))
    assert result["best_epoch"] == int(best["epoch"])
    split = rows_of(output / "results" / NAME / "split.csv")
    assert len(split) == 4 * 14
    test = [row for row in split if row["split"] == "test"]
    assert [CLASSES.index(row["class"]) for row in test] == saved["labels"].tolist()
    assert not list(output.rglob("*.tmp"))

    checkpoint = torch.load(output / "checkpoints" / NAME / "best.pt", weights_only=True)
    (model := resnet18(num_classes=4).eval()).load_state_dict(checkpoint["model"])
    # The photos read by themselves: 48 px squashed to 64, as they are kept, then to 32.
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    normal = v2.Normalize(checkpoint["mean"], checkpoint["std"])
    steps = v2.Compose([v2.Resize((64, 64)), v2.Resize((32, 32)), to_float, normal])
    with torch.inference_mode():
        logits = model(torch.stack([steps(open_rgb(photos / row["path"], 256)) for row in test]))
    atol = 0.1 * float(np.ptp(saved["logits"]))
    np.testing.assert_allclose(logits.numpy(), saved["logits"], atol=atol)


def test_finished_runs_are_kept_or_done_again_as_asked(copied, tmp_path, capsys):
    output, words = copied
    checkpoints, before = output / "checkpoints" / NAME, result_of(output)
    refused(words, f"{NAME} is finished: --resume .*--overwrite .*--tag")
    for how in ([], ["--resume"]):
        refused([*words, *how, "--lr", "0.01"], "written with lr 0.001, not 0.01: .*--tag")
    other = ["--split-seed", "3", "--weights", str(checkpoints / "best.pt")]
    refused([*words, *other], "was trained on another split, perhaps on test photos of ")
    refused([*words, "--overwrite", *other[2:]], "--overwrite would delete --weights .*: give")
    prepare(parse([*words, "--labels-per-class", "9", *other[2:]], ""))
    assert "--weights was trained on other labels of this split" in capsys.readouterr().out
    main([*words, "--resume"])
    assert re.search(r"already finished(.|\n)*\| Test accuracy", capsys.readouterr().out)
    assert result_of(output) == before

    elsewhere = checkpoints.rename(tmp_path / "elsewhere")
    checkpoints.symlink_to(elsewhere)
    (output / "results" / NAME / ".ipynb_checkpoints").mkdir()  # as a notebook leaves them
    for how in (["--overwrite"], ["--tag", "twin"]):
        main([*words, *how, "--lr", "0.01"])
    assert [path.name for path in elsewhere.iterdir()] == ["best.pt"]
    assert not (output / "results" / NAME / ".ipynb_checkpoints").exists()
    # An overwritten run is not resumed: it ends bitwise identical to a new run.
    digest = result_of(output)["digest"]
    assert digest == result_of(output, "resnet18-twin")["digest"] != before["digest"]


def test_a_run_that_is_killed_is_resumed_to_the_same_bits(finished, photos, tmp_path, capsys):
    words = words_for(photos, tmp_path)
    last = tmp_path / "output" / "checkpoints" / NAME / "last.pt"
    process = start("train.py", *words)
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    refused(words, f"{NAME} was started before: --resume .*--overwrite")
    state = torch.load(last, weights_only=True)
    cannot = r"last\.pt cannot be resumed: --overwrite trains it again"
    for change, says in (
        ({"seed": 1}, r"last\.pt was written with seed 1, not 0: .*--overwrite"),
        ({"best": {}}, cannot),
        ({"optimizer": {}}, cannot),
    ):
        torch.save(state | change, last)
        refused([*words, "--resume"], says)
    last.rename(last.with_name("best.pt"))
    refused([*words, "--resume"], "last.pt or result.json is gone: --overwrite")
    torch.save(state | {"devices": [("cpu, 99 threads", 3)]}, last)
    last.with_name(".best.pt.tmp").touch()  # as when killed while it was written
    main([*words, "--resume"])
    printed = capsys.readouterr().out
    assert f"{NAME}: resumed after epoch 1" in printed
    assert "NOTE     started on cpu, 99 threads: the result may differ" in printed
    whole, resumed = result_of(finished[0]), result_of(tmp_path / "output")
    assert resumed["digest"] == whole["digest"]
    both = f"cpu, 99 threads, then {whole['environment']['device']}"
    assert resumed["environment"] == whole["environment"] | {"device": both, "ranks": 3}
    assert re.fullmatch(r"([\w.-]*[0-9a-f]{7,}(-dirty)?)?", resumed["commit"])
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "output" / "logs" / NAME).rglob("*.*"))) == 3


def test_results_and_settings_that_are_damaged_or_of_another_run_are_named(copied):
    output, words = copied
    own, others = (output / "results" / NAME.replace("0", n) / "result.json" for n in "01")
    for content in (read_json(others), read_json(own) | {"process": "another"}):
        write_json(own, content)
        refused([*words, "--resume"], rf"{NAME}/result\.json belongs to another run: .*--overwrite")
    own.with_name("settings.json").unlink()
    refused([*words, "--resume"], rf"{NAME}/settings\.json is missing, damaged, .*--overwrite")


def test_a_fold_that_lacks_a_class_is_noted(tmp_path, capsys):
    make_photos(tmp_path / "weather", per_class=6)
    rows = [f"weather/{c}/{n}.jpg,{c},{n % (4 - (c == 'rain'))}" for c in CLASSES for n in range(6)]
    (tmp_path / "folds.csv").write_text("\n".join(["path,class,split", *rows]))
    main([*words_for(tmp_path / "folds.csv", tmp_path), "--folds", "4", "--epochs", "1"])
    says = "NOTE     val of fold 2 has no photo of 1 of the classes\nNOTE     test of fold 3 has"
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(("shared", "how"), [(True, "--overwrite"), (False, "--resume")])
def test_a_run_that_another_process_uses_or_trains_is_left_to_it(shared, how, copied):
    pytest.importorskip("fcntl")
    output, words = copied
    code = "from data.files import locks; from pathlib import Path\n"
    code += f"with locks(Path({str(output)!r})) as hold:\n"
    code += f"    print(hold({NAME!r}, shared={shared}), flush=True); input()"
    with start("-c", code, stdin=-1) as other:
        assert other.stdout
        assert other.stdout.readline() == "True\n"
        if shared:
            main([*words, "--resume"])
        refused([*words, how], f"{NAME} is being trained or used by another process: .*--tag")
        other.communicate("\n")


@pytest.mark.parametrize("says", ["missing", "another process is training it"])
def test_a_run_whose_folder_is_taken_ends_without_a_result(says, photos, tmp_path, monkeypatch):
    """As where somebody deletes it, and on a disk without locks, where two train the same run."""
    results = tmp_path / "output" / "results" / NAME

    def take(*_: object) -> None:
        if says == "missing":
            shutil.rmtree(results, ignore_errors=True)
        else:
            write_json(results / "settings.json", {"process": "another"})

    monkeypatch.setattr("utils.runs.save_checkpoint", take)
    with pytest.raises(UserError, match=says):
        main([*words_for(photos, tmp_path), "--batch-size", "40"])
    assert not list(tmp_path.rglob("result.json"))


def test_shots_of_one_scene_are_kept_together_or_told_apart_as_asked(tmp_path):
    photos = make_photos(tmp_path / "weather", per_class=6)
    photo = photos / "rain" / "0.jpg"
    shutil.copy(photo, photo.with_name("copy.jpg"))
    open_rgb(photo, 256).point(lambda level: level * 0.9).save(photo.with_name("dark.jpg"))
    for how, groups in (("near", 24), ("exact", 25), ("off", 26)):
        configs = parse([*training(photos, tmp_path), "--duplicates", how], "")
        assert len(np.unique(load_datasets(configs, torch.device("cpu"))[None].groups)) == groups


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--batch-size 57", FEW),
        ("--device cuda:77", "--device cuda:77: this machine has . GPUs"),
        ("--cache {file}/below", "Not a directory: .*file/below"),
        ("--pretrained", "--pretrained: no weights of resnet18 .*by hand"),
        ("--data {file}.csv --folds 5", "--folds would draw a new split, but these photos have"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(more, says, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    (tmp_path / "file").touch()
    (tmp_path / "file.csv").write_text("path,class,split\nfile,a,train\nfile.csv,b,train")
    refused([*words_for(photos, tmp_path), *more.format(file=tmp_path / "file").split()], says)


def test_a_full_disk_and_ranks_without_torchrun_are_one_line(photos, tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    words = [*words_for(photos, tmp_path), "--batch-size", "40"]
    status = run_script(main, words, resumes=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert re.fullmatch(r"error: .*large; once fixed, --resume .*\n", capsys.readouterr().err)
    assert not list((tmp_path / "output").rglob("*.pt*"))
    says = "error: WORLD_SIZE is set, but not by torchrun: unset it\n"
    for size in ("2", ""):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert (run_script(main, words), capsys.readouterr().err) == (2, says)
