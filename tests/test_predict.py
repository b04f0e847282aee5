"""utils.predict as a user runs it: as a run's evaluation, whatever files it is given."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from config import UserError
from data.cache import read_square
from models.classifier import load_classifier
from tests.photo_folders import CLASSES, make_photos, python, training
from utils.predict import classify, main


def command(*words, **options):
    """Exit status, lines of stdout and lines of stderr."""
    done = python("-m", *words, timeout=120, **options)
    return done.returncode, (done.stdout or "").splitlines(), done.stderr.splitlines()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos") / "weather")


@pytest.fixture(scope="module")
def best(photos):
    """The checkpoint of a finished run in float32."""
    more = ("--models", "resnet18", "--precision", "float32", "--device", "cpu")
    assert command("train", *training(photos, photos.parent, *more))[0] == 0
    return photos.parent / "output/checkpoints/weather-32px-resnet18-seed0/best.pt"


def named(line):
    """Path, classes and probabilities of a line of output."""
    assert re.fullmatch(r".*: \w+ \d+\.\d %(, \w+ \d+\.\d %)*", line)
    path, _, answers = line.rpartition(": ")
    found = re.findall(r"(\w+) (\d+\.\d) %", answers)
    return path, [name for name, _ in found], [float(percent) / 100 for _, percent in found]


def test_test_photos_get_the_probabilities_of_the_runs_evaluation(best, photos):
    results = photos.parent / "output" / "results" / best.parent.name
    rows = csv.DictReader((results / "split.csv").read_text("utf-8").splitlines())
    paths = [str(photos / row["path"]) for row in rows if row["split"] == "test"]
    expected = torch.from_numpy(np.load(results / "test_logits.npz")["logits"]).softmax(1)
    assert (expected.amax(0) - expected.amin(0)).max() > 0.01  # photos differ
    model, about = load_classifier(best)
    computed = torch.stack([classify(model, about, read_square(Path(p), 64)) for p in paths])
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=0)

    status, lines, errors = command("utils.predict", best, *paths, "--top", 9)
    assert (status, len(lines), errors) == (0, len(paths), [])
    for line, path, row in zip(lines, paths, expected.tolist(), strict=True):
        name, classes, probabilities = named(line)
        assert (name, sorted(classes)) == (path, sorted(CLASSES))
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities == pytest.approx([row[CLASSES.index(c)] for c in classes], abs=6e-4)


def test_photos_are_normalised_by_the_checkpoints_own_mean_and_std(best, photos):
    model, about = load_classifier(best)
    pixels = read_square(photos / "rain" / "0.jpg", 64)[::2, ::2] // 2 * 2
    halves = {name: [value / 2 for value in about[name]] for name in ("mean", "std")}
    expected = classify(model, about, pixels)  # (x/2 − mean/2) / (std/2) is (x − mean) / std
    torch.testing.assert_close(classify(model, about | halves, pixels // 2), expected)
    assert (classify(model, about | halves, pixels) - expected).abs().max() > 1e-3


def test_odd_files_stop_neither_each_other_nor_the_command(best, photos):
    folder = photos.parent / "odd"
    (folder / "inner.jpg").mkdir(parents=True)
    jpeg = (photos / "rain" / "0.jpg").read_bytes()
    for name in ("a.jpg", "c\nerror: é \udcff\x1b[31m.jpg", ".hidden.jpg"):
        (folder / name).write_bytes(jpeg)
    (folder / "b broken.jpg").write_bytes(jpeg[:500])
    (folder / "notes.txt").write_text("no photo, and not named like one")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    given = [folder, folder / "gone.jpg", folder / "inner.jpg", folder / "a.jpg"]
    status, lines, errors = command("utils.predict", best, *given, "--top", 2, env=ascii_only)
    paths, classes, probabilities = zip(*map(named, lines), strict=True)
    odd_name = rf"{folder}/c\nerror: \xe9 \udcff\x1b[31m.jpg"
    assert paths == (f"{folder}/a.jpg", odd_name, f"{folder}/a.jpg")
    assert len({*map(tuple, classes)}) == len({*map(tuple, probabilities)}) == 1
    assert (status, len(classes[0])) == (2, 2)
    assert errors[0].startswith(f"error: {folder}/b broken.jpg: ")
    assert errors[1] == f"error: {folder}/gone.jpg: No such file or directory"
    assert errors[2].startswith(f"error: {folder}/inner.jpg: no readable photo directly in this")
    assert errors[3:] == ["error: 3 of these could not be read"]


def test_a_closed_pipe_ends_the_command(best, photos):
    end, pipe = os.pipe()
    os.close(end)
    run = command("utils.predict", best, photos / "rain", stdout=pipe)
    os.close(pipe)
    assert run == (141, [], ["stopped, as nothing reads its output"])


@pytest.mark.parametrize("name", ["cut.pt", "missing.pt", "."])
def test_an_unusable_checkpoint_is_one_line(name, best, tmp_path):
    (tmp_path / "cut.pt").write_bytes(best.read_bytes()[:10_000])
    with pytest.raises(UserError, match=f"^{tmp_path}.*$"):
        main([str(tmp_path / name), "no/photo/here.jpg"])


@pytest.mark.parametrize("words", ["--top 0", "--top two", "--to 2", "--device cuda"])
def test_wrong_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["best.pt", "photo.jpg", *words.split()])
    assert words.split()[0] in capsys.readouterr().err.splitlines()[-1]
