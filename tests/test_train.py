"""train.py as a user runs it: whole commands on small folders of photos."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from tests.boards import tensorboard, wait_for
from tests.photo_folders import CLASSES, make_photos
from utils.script import run_script

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
QUICK = ("--image-size", "32", "--batch-size", "8", "--models", "resnet18")


def command(*words: object, script: str = "train.py", fails: bool = False):
    run = subprocess.run(
        [sys.executable, *script.split(), *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (run.returncode != 0) == fails, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Arguments that keep a command's files together in a folder of the tests."""
    folder = tmp_path_factory.mktemp("runs")
    return ("--output", folder / "output", "--cache", folder / "cache")


@pytest.fixture(scope="module")
def finished(photos, place):
    """Two seeds of one baseline, and what the command printed."""
    run = command("--data", photos, *QUICK, "--epochs", 2, "--seeds", 0, 1, *place)
    return place[1], run


def test_it_ends_with_the_seven_rows_and_says_where_things_are(finished):
    output, run = finished
    rows = re.findall(r"^\| ([A-Z][a-z ]+?) +\| +([\d.]+) ± ([\d.]+)%? +\|$", run.stdout, re.M)
    assert [title for title, _, _ in rows][:7] == [
        "Best validation loss", "Best validation accuracy", "Final training loss",
        "Final validation loss", "Final validation accuracy", "Test loss", "Test accuracy",
    ]  # fmt: skip
    results = [json.loads(p.read_text()) for p in sorted(output.glob("results/*/result.json"))]
    accuracies = [100 * r["test"]["accuracy"] for r in results]
    assert float(rows[6][1]) == pytest.approx(np.mean(accuracies), abs=0.01)
    assert float(rows[6][2]) == pytest.approx(np.std(accuracies, ddof=1), abs=0.01)
    assert "tensorboard --logdir=" in run.stdout
    assert len(re.findall(r"^epoch +\d/2 ", run.stdout, re.M)) == 4
    assert len(re.findall(r"^1 of 2 runs done; the others take about 0:", run.stdout, re.M)) == 1
    assert run.stderr == ""  # no bars where nobody watches, no warnings


def test_a_runs_files_agree_with_each_other(finished):
    output, _ = finished
    name = "weather-32px-resnet18-seed1"
    folder = output / "results" / name
    result = json.loads((folder / "result.json").read_text())
    saved = np.load(folder / "test_logits.npz")
    accuracy = (saved["logits"].argmax(1) == saved["labels"]).mean()
    assert result["test"]["accuracy"] == pytest.approx(accuracy)
    wrong = np.flatnonzero(saved["logits"].argmax(1) != saved["labels"])
    assert result["test"]["wrong"] == wrong.tolist()
    assert np.array(result["test"]["confusion"]).sum() == len(saved["labels"])
    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert result["table"]["final_val_loss"] == float(history[-1]["loss/val"])
    assert result["table"]["best_val_loss"] == min(float(row["loss/val"]) for row in history)
    with (folder / "split.csv").open() as file:
        split = list(csv.DictReader(file))
    assert len(split) == 4 * 14
    test = [CLASSES.index(row["class"]) for row in split if row["split"] == "test"]
    assert test == saved["labels"].tolist()
    assert not list(output.rglob("*unfinished*"))


def test_the_best_checkpoint_loads_in_plain_torchvision_and_repeats_the_logits(finished, photos):
    output, _ = finished
    name = "weather-32px-resnet18-seed0"
    checkpoint = torch.load(output / "checkpoints" / name / "best.pt", weights_only=True)
    model = resnet18(num_classes=4)
    model.load_state_dict(checkpoint["model"])
    assert checkpoint["arch"] == "resnet18"
    assert checkpoint["classes"] == list(CLASSES)
    assert "optimizer" not in checkpoint
    saved = np.load(output / "results" / name / "test_logits.npz")
    with (output / "results" / name / "split.csv").open() as file:
        test = [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    # Plain torchvision transforms, with the photo read by itself: 48 px squashed to 64, then 32.
    from torchvision.transforms import v2

    from data.photos import open_rgb

    steps = v2.Compose(
        [
            v2.Resize((64, 64)), v2.Resize((32, 32)), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(checkpoint["mean"], checkpoint["std"]),
        ]
    )  # fmt: skip
    images = torch.stack([steps(open_rgb(photos / path, 256)) for path in test])
    with torch.inference_mode():
        logits = model.eval()(images)
    spread = float(np.ptp(saved["logits"]))
    np.testing.assert_allclose(logits.numpy(), saved["logits"], atol=0.1 * spread)


def test_tensorboard_shows_the_runs(finished):
    output, _ = finished
    name = "weather-32px-resnet18-seed0"
    with (output / "results" / name / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    with tensorboard(output / "logs") as board:
        curve = wait_for(lambda: board.scalars(name, "loss/val"))
        wait_for(lambda: board.scalars(name, "test/accuracy"))
        tags = board.ask("/plugin/scalars/tags")
        assert sorted(tags) == [name, name.replace("seed0", "seed1")]
        curves = {"loss/train", "loss/val", "accuracy/train", "accuracy/val", "lr"}
        assert curves | {"images_per_second"} <= set(tags[name])
        assert [(step, value) for _, step, value in curve] == [
            (int(row["epoch"]), pytest.approx(float(row["loss/val"]), rel=1e-6)) for row in history
        ]
        layout = board.ask("/plugin/custom_scalars/layout")
        charts = [chart for category in layout["category"] for chart in category["chart"]]
        assert {"loss", "accuracy"} <= {chart["title"] for chart in charts}
        row = wait_for(board.sessions)[name]
        assert row["hparams"]["lr"] == 0.001
        assert row["hparams"]["model"] == "resnet18"
        assert "test/accuracy" in {value["name"]["tag"] for value in row["metricValues"]}
        images = board.ask("/plugin/images/tags")[name]
        assert set(images) == {"test/confusion_matrix", "test/most_confident_errors"}
        sample = board.ask("/plugin/images/images", run=name, tag="test/confusion_matrix", sample=0)
        picture = board.fetch(f"/plugin/images/individualImage?{sample[0]['query']}&")
        assert Image.open(io.BytesIO(picture)).format == "PNG"


def test_a_finished_run_is_never_overwritten_unasked(finished, photos):
    output, _ = finished
    words = ("--data", photos, *QUICK, "--epochs", 2, "--output", output,
             "--cache", output.parent / "cache")  # fmt: skip
    weights = output / "checkpoints" / "weather-32px-resnet18-seed0" / "best.pt"
    before = weights.stat().st_mtime_ns

    refused = command(*words, fails=True)
    assert refused.returncode == 2
    assert "is finished: --resume" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    kept = command(*words, "--resume")
    assert "finished before, kept" in kept.stdout
    assert "| Test accuracy" in kept.stdout
    other = command(*words, "--resume", "--lr", 0.01, fails=True)
    assert "started with --lr 0.001, not 0.01" in other.stderr
    assert weights.stat().st_mtime_ns == before

    # What a notebook leaves beside the results it has shown.
    twin = output / "results" / "weather-32px-resnet18-twin-seed0"
    (twin / ".ipynb_checkpoints").mkdir(parents=True)
    again = command(*words, "--overwrite", "--tag", "twin")
    assert not (twin / ".ipynb_checkpoints").exists()
    assert "resnet18 (twin)" in again.stdout
    assert weights.stat().st_mtime_ns == before
    report = command("--output", output, script="-m utils.report")
    assert "resnet18, 2 seeds" in report.stdout
    assert "resnet18 (twin) |" in report.stdout
    assert (output / "results" / "report.md").read_text() in report.stdout + "\n"


def test_the_same_command_twice_gives_the_same_bits(finished):
    output, _ = finished
    names = [f"weather-32px-resnet18{tag}-seed0" for tag in ("", "-twin")]
    folders = [output / "checkpoints" / name for name in names]
    if not folders[1].exists():
        pytest.skip("the run before it failed")
    first, second = (torch.load(f / "last.pt", weights_only=True)["model"] for f in folders)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "nowhere/at/all"), "nowhere/at/all"),
        (("--batch-size", "57"), "--batch-size 57: at most the number of training photos"),
        (("--models", "densenet169", "--image-size", "28"), "28: densenet169 needs 29"),
        (("--models", "densenet169", "--grow-from", "0.5"), "0.5: densenet169 needs 29"),
        (("--device", "cuda:77"), "--device cuda:77"),
        (("--epochs", "0"), "--epochs"),
        (("--epoch", "3"), "did you mean --epochs?"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_any_work(words, says, photos, tmp_path):
    given = () if "--data" in words else ("--data", photos)
    run = command(
        *given, "--image-size", 32, "--output", tmp_path / "o", "--cache", tmp_path / "c", *words,
        fails=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert says in run.stderr
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_weights_that_cannot_be_had_are_missed_before_any_work(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody answers there
    run = command(
        "--data", photos, *QUICK, "--pretrained", "--output", tmp_path / "o", "--cache",
        tmp_path / "c", fails=True,
    )  # fmt: skip
    assert run.returncode == 2
    errors = [line for line in run.stderr.splitlines() if not line.startswith("Downloading")]
    assert len(errors) == 1
    assert errors[0].startswith("error: --pretrained: ")
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "c").exists()


def test_a_command_that_is_stopped_tells_how_to_go_on(capsys):
    def stopped(arguments: Sequence[str]) -> None:
        raise KeyboardInterrupt

    for words, says in (
        (["--epochs", "9"], "the same command with --resume goes on"),
        (["--overwrite"], "once an epoch is done, --resume instead of --overwrite goes on"),
    ):
        assert run_script(stopped, words) == 130
        assert capsys.readouterr().err == f"\nstopped; {says}\n"


def test_a_file_where_a_folder_of_the_output_belongs_is_told_in_one_line(photos, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "results").touch()
    run = command(
        "--data", photos, *QUICK, "--output", tmp_path / "o", "--cache", tmp_path / "c", fails=True
    )
    assert run.returncode == 2
    assert re.fullmatch(r"error: \S+/o/results\S*: .*\n", run.stderr)


def test_a_disk_that_is_full_is_told_in_one_line(photos, tmp_path):
    full = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from train import main; from utils.script import run_script;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000,) * 2);"
        "sys.exit(run_script(main, sys.argv[1:]))"
    )
    run = command(
        full, "--data", photos, *QUICK, "--epochs", 1, "--output", tmp_path / "o", "--cache",
        tmp_path / "c", script="-c", fails=True,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert not list((tmp_path / "o").rglob("*.pt*"))


def test_without_photos_it_says_loudly_that_it_draws_a_sample(tmp_path):
    if (ROOT / "data" / "weather").exists():
        pytest.skip("there are photos")
    run = command(
        "--models", "resnet18", "--image-size", 32, "--epochs", 1, "--output", tmp_path / "o",
        "--cache", tmp_path / "c",
    )  # fmt: skip
    assert "SAMPLE" in run.stdout
    assert "## sample at 32 px" in run.stdout
    assert [p.name for p in (tmp_path / "o" / "results").glob("sample*")] == [
        "sample-32px-resnet18-seed0"
    ]


@pytest.mark.skipif(not (SHARED / "originals").exists(), reason="needs the photos as found")
def test_photos_as_found_train_without_a_warning(tmp_path):
    run = command(
        "--data", SHARED / "originals", *QUICK, "--epochs", 1, "--output", tmp_path / "o",
        "--cache", tmp_path / "c",
    )  # fmt: skip
    assert run.stderr == ""
    assert "cannot be read" not in run.stdout
