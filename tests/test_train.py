"""train.py as a user runs it: whole commands on small folders of photos."""

import contextlib
import csv
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import resnet18
from torchvision.transforms import v2

from config import UserError
from data.files import read_json, write_json
from data.photos import open_rgb
from tests.photo_folders import CLASSES, make_photos, python, start, training
from train import main
from utils.script import run_script

NAME = "weather-32px-resnet18-seed0"


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
    path = output / "results" / f"weather-32px-{what}-seed{seed}" / "result.json"
    return dict(json.loads(path.read_text("utf-8")))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> tuple[Path, str]:
    """The output folder of two seeds of one baseline, and what their command printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = python("train.py", *words_for(photos, folder), "--seeds", 0, 1)
    # Without a terminal, stderr has no bars.
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "output", done.stdout


@pytest.fixture
def copied(finished, photos, tmp_path) -> tuple[Path, list[str]]:
    """A copy of the finished runs that a test may change, and the words of their command."""
    return shutil.copytree(finished[0], tmp_path / "output"), words_for(photos, tmp_path)


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
    assert printed.count("1 of 2 runs done; the others take about 0:") == 1
    assert "tensorboard --logdir=" in printed


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
    split = rows_of(output / "results" / NAME / "split.csv")
    assert len(split) == 4 * 14
    test = [row for row in split if row["split"] == "test"]
    assert [CLASSES.index(row["class"]) for row in test] == saved["labels"].tolist()
    assert not list(output.rglob("*.tmp"))

    checkpoint = torch.load(output / "checkpoints" / NAME / "best.pt", weights_only=True)
    model = resnet18(num_classes=4).eval()
    model.load_state_dict(checkpoint["model"])
    # The photos read by themselves: 48 px squashed to 64, as they are kept, then to 32.
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    normal = v2.Normalize(checkpoint["mean"], checkpoint["std"])
    steps = v2.Compose([v2.Resize((64, 64)), v2.Resize((32, 32)), to_float, normal])
    with torch.inference_mode():
        logits = model(torch.stack([steps(open_rgb(photos / row["path"], 256)) for row in test]))
    atol = 0.1 * float(np.ptp(saved["logits"]))
    np.testing.assert_allclose(logits.numpy(), saved["logits"], atol=atol)


def test_finished_runs_are_kept_or_done_again_as_asked_and_end_with_the_same_bits(copied, capsys):
    output, words = copied
    refused(words, f"{NAME} is finished: --resume .*--overwrite .*--tag")
    before = (output / "checkpoints" / NAME / "best.pt").stat().st_mtime_ns
    main([*words, "--resume"])
    assert re.search(r"finished before, kept(.|\n)*\| Test accuracy", capsys.readouterr().out)
    refused([*words, "--resume", "--lr", "0.01"], "written with --lr 0.001, not 0.01: .*--tag")
    assert (output / "checkpoints" / NAME / "best.pt").stat().st_mtime_ns == before
    digest = result_of(output)["digest"]
    (output / "results" / NAME / ".ipynb_checkpoints").mkdir()  # as a notebook leaves them
    main([*words, "--overwrite"])
    main([*words, "--tag", "twin"])
    assert not (output / "results" / NAME / ".ipynb_checkpoints").exists()
    for what in ("resnet18", "resnet18-twin"):
        assert result_of(output, what)["digest"] == digest


def test_overwrite_never_resumes_and_unlinks_a_folder_of_another_place(copied, tmp_path):
    output, words = copied
    elsewhere = (output / "checkpoints" / NAME).rename(tmp_path / "elsewhere")
    (output / "checkpoints" / NAME).symlink_to(elsewhere)
    main([*words, "--overwrite", "--lr", "0.01"])
    assert (elsewhere / "last.pt").exists()
    main([*words, "--output", str(tmp_path / "fresh"), "--lr", "0.01"])
    assert result_of(output)["digest"] == result_of(tmp_path / "fresh")["digest"]


def test_a_run_that_is_killed_is_resumed_to_the_same_bits(finished, photos, tmp_path, capsys):
    words = words_for(photos, tmp_path)
    last = tmp_path / "output" / "checkpoints" / NAME / "last.pt"
    best = last.with_name("best.pt")
    process = start("train.py", *words)
    while not best.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    refused(words, f"{NAME} was started before: --resume .*--overwrite")
    at_last, at_best = (torch.load(path, weights_only=True) for path in (last, best))
    (row,) = at_last["history"]
    other, better = row | {"loss/val": 0}, row | {"accuracy/val": 1.1}
    mixed = "best.pt and last.pt are not of the same training, or one of them is gone:\n--overwrite"
    for path, content, says in (
        (last, at_last | {"seed": 1}, r"last\.pt was written with --seeds 1, not 0: .*--overwrite"),
        (best, at_best | {"computed_in": "f16"}, r"best\.pt .* computed_in f16, not "),
        (best, at_best | {"history": [other]}, mixed),
        (best, at_best | {"history": 3 * [row]}, mixed),
        (last, at_last | {"history": [row, better, row]}, mixed),
        (last, at_best, mixed),
        (last, None, mixed),
    ):
        torch.save(content, path) if content else path.unlink()
        refused([*words, "--resume"], says)
        torch.save(at_last, last)
        torch.save(at_best, best)
    torch.save(at_last | {"optimizer": {}}, last)
    refused([*words, "--resume"], r"last\.pt cannot be resumed: --overwrite trains it anew")
    torch.save(at_last | {"device": "cpu, 99 threads"}, last)
    best.unlink()  # as when killed just before it was written
    main([*words, "--resume"])
    printed = capsys.readouterr().out
    assert f"{NAME}: resumed after epoch 1" in printed
    assert "NOTE     begun on cpu, 99 threads: the result is the same but for rounding" in printed
    assert result_of(tmp_path / "output")["digest"] == result_of(finished[0])["digest"]


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"recipe": 1, "distillation": 2}', None])
def test_a_broken_or_missing_settings_file_is_named(broken, copied):
    path = copied[0] / "results" / NAME / "settings.json"
    path.unlink() if broken is None else path.write_text(broken)
    refused([*copied[1], "--resume"], rf"{NAME}/settings\.json is missing, damaged, .*--overwrite")


def test_the_result_of_another_run_is_not_taken_for_this_ones(copied):
    output, words = copied
    own, others = (output / "results" / NAME.replace("0", n) / "result.json" for n in "01")
    for content in (read_json(others), read_json(own) | {"process": "another"}):
        write_json(own, content)
        refused([*words, "--resume"], rf"{NAME}/result\.json is of another run: .*--overwrite")


def test_a_run_that_another_process_trains_is_left_to_it(copied):
    pytest.importorskip("fcntl")
    output, words = copied
    with holding(output, NAME, shared=True):  # as a command does that builds on it
        main([*words, "--resume"])
        refused([*words, "--overwrite"], f"{NAME} is being trained or used by another .*--tag")
    with holding(output, NAME, shared=False):
        refused([*words, "--resume"], f"{NAME} is being trained or used by another process: ")


@contextlib.contextmanager
def holding(output: Path, name: str, *, shared: bool) -> Iterator[None]:
    """While another process holds a run."""
    code = "from data.files import locks; from pathlib import Path; import sys\n"
    code += f"with locks(Path({str(output)!r})) as hold:\n"
    code += f"    print(hold({name!r}, shared={shared}), flush=True); sys.stdin.read()"
    with start("-c", code, stdin=-1) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "True\n"
        yield
        other.stdin.close()


def test_a_run_whose_folder_is_taken_from_it_ends_without_a_result(photos, tmp_path, monkeypatch):
    """As where somebody deletes it, and on a disk without locks, where two train the same run."""
    words, results = words_for(photos, tmp_path), tmp_path / "output" / "results" / NAME
    changes = {"missing": lambda: shutil.rmtree(results),
               "another process has started it": lambda: write_json(
                   results / "settings.json", {"process": "another"})}  # fmt: skip
    for says, change in changes.items():
        with monkeypatch.context() as patched:
            patched.setattr("utils.runs.Tracker.epoch", lambda *_, change=change: change())
            with pytest.raises(UserError, match=says):
                main([*words, "--overwrite"])
        assert not list(tmp_path.rglob("result.json"))


def test_photos_that_changed_under_the_same_names_are_noticed(copied, photos, tmp_path):
    other = shutil.copytree(photos, tmp_path / "weather")
    words = [*copied[1], "--data", str(other), "--resume"]
    main(words)  # a copy of the folder is the same photos
    (other / "rain" / "0.jpg").write_bytes((other / "rain" / "0.jpg").read_bytes() + b"\0")
    refused(words, r"was written with photos \w{16}, not \w{16}: .* --tag")


def test_shots_of_one_scene_can_be_told_apart_and_classes_of_one_look_are_named(tmp_path, capsys):
    made = make_photos(tmp_path / "made", per_class=1)
    for name, scene in {"Rain": "fog", "rain": "hail"}.items():
        (tmp_path / "weather" / name).mkdir(parents=True)
        image = open_rgb(made / scene / "0.jpg", 256)
        for number in range(12):  # in changing light; the last two are equal files
            levels = [level * (30 - min(number, 10)) // 30 for level in range(256)]
            image.point(3 * levels).save(tmp_path / "weather" / name / f"{number}.jpg")
    photos = tmp_path / "weather"
    words = words_for(photos, tmp_path)
    refused(words, r"'Rain' has too few photos: 1 .*12 with .*; --duplicates exact or off keeps")
    main([*words, "--duplicates", "exact"])
    printed = capsys.readouterr().out
    assert "WARNING  classes that look the same: 'Rain', 'rain'" in printed
    assert "duplicates: 4 photos show 2 pictures" in printed
    rows = rows_of(tmp_path / "output" / "results" / NAME / "split.csv")
    part = {row["path"]: row["split"] for row in rows}
    assert all(part[f"{name}/10.jpg"] == part[f"{name}/11.jpg"] for name in ("Rain", "rain"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--data nowhere", "nowhere"),
        ("--batch-size 57", "40 training photos are less than a batch of 57: .* --batch-size 40"),
        ("--device cuda:77", "--device cuda:77: this machine has . GPUs"),
        ("--output {file}", "File exists: .*file"),
        ("--cache {file}/below", "Not a directory: .*file/below"),
        ("--pretrained", "--pretrained: no weights of resnet18 .*by hand"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(more, says, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    (tmp_path / "file").touch()
    refused([*words_for(photos, tmp_path), *more.format(file=tmp_path / "file").split()], says)


def test_a_full_disk_and_ranks_without_torchrun_are_one_line(photos, tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    status = run_script(main, words_for(photos, tmp_path), resumes=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert re.fullmatch(r"error: .*large; once fixed, --resume .*\n", capsys.readouterr().err)
    assert not list((tmp_path / "output").rglob("*.pt*"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_script(main, words_for(photos, tmp_path)) == 2
    assert capsys.readouterr().err == "error: WORLD_SIZE is set, but not by torchrun: unset it\n"
