"""What uses a trained student, as a user runs it: utils.predict, utils.export, utils.evaluate."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config import UserError
from data.cache import decode_photos, read_square
from data.files import read_json
from data.listing import find_photos
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.photo_folders import CLASSES, python, training
from tests.test_readme import PYTHON
from utils import evaluate, export
from utils.export import load_any, load_exported
from utils.predict import main

FILES = ("cut.pt", "missing.pt", ".", "x.onnx", "x.pt2")
FLAGS = ("--top 0", "--top two", "--to 2", "--device cuda")


def command(*words, **options):
    """Exit status, lines of stdout and lines of stderr."""
    done = python("-m", *words, timeout=120, **options)
    return done.returncode, (done.stdout or "").splitlines(), done.stderr.splitlines()


@pytest.fixture(scope="module")
def best(photos):
    """The checkpoint of a finished run in float32."""
    more = ("--models", "resnet18", "--precision", "float32", "--device", "cpu", "--epochs", 4)
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
    classify, _ = load_any(best)
    computed = classify(torch.tensor(np.stack([read_square(Path(p), 64) for p in paths])))
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=0)

    status, lines, errors = command("utils.predict", best.parent, paths[0], "--top", 9, *paths[1:])
    assert (status, len(lines), errors) == (0, len(paths), [])
    for line, path, row in zip(lines, paths, expected.tolist(), strict=True):
        name, classes, probabilities = named(line)
        assert (name, sorted(classes)) == (path, sorted(CLASSES))
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities == pytest.approx([row[CLASSES.index(c)] for c in classes], abs=6e-4)


def test_tables_objects_and_stdin_say_the_same(best, photos):
    names = [str(path) for path in sorted(photos.rglob("*.jpg"))[:3]]
    _, lines, _ = command("utils.predict", best, *names, "--top", 2)
    text = [(path, *zip(*found, strict=True)) for path, *found in map(named, lines)]
    words, text_in = ("utils.predict", best, "-", "--top", 2, "--json"), "\n".join(names)
    status, lines, _ = command(*words, input=text_in)
    objects = [(o["path"], *o["classes"].items()) for o in map(json.loads, lines)]
    _, lines, _ = command("utils.predict", best, photos, "--top", 2, "--csv")
    rows = list(csv.DictReader(lines))
    assert len(rows) == 2 * len(list(photos.rglob("*.jpg")))
    table = {(row["path"], row["class"]): float(row["probability"]) for row in rows}
    assert (status, len(objects)) == (0, len(text))
    for (path, *answers), (also, *others) in zip(text, objects, strict=True):
        assert (path, [name for name, _ in answers]) == (also, [name for name, _ in others])
        for (name, percent), (_, share) in zip(answers, others, strict=True):
            assert share == table[path, name] == pytest.approx(percent, abs=6e-4)


def test_photos_are_normalised_by_the_checkpoints_own_mean_and_std(best, photos, tmp_path):
    """(x/2 − mean/2) / (std/2) is (x − mean) / std."""
    content = load_checkpoint(best)
    halves = {name: [value / 2 for value in content[name]] for name in ("mean", "std")}
    save_checkpoint(tmp_path / "half.pt", content | halves)
    pixels = read_square(photos / "rain" / "0.jpg", 64)[None, ::2, ::2] // 2 * 2
    whole, half = (load_any(path)[0] for path in (best, tmp_path / "half.pt"))
    expected = whole(torch.tensor(pixels))
    torch.testing.assert_close(half(torch.tensor(pixels // 2)), expected)
    assert (half(torch.tensor(pixels)) - expected).abs().max() > 1e-3


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
    assert errors[2] == f"error: {folder}/inner.jpg: a folder without photos, or given on stdin"
    assert errors[3:] == ["error: 3 photos could not be read"]


def test_a_closed_pipe_ends_the_command(best, photos):
    end, pipe = os.pipe()
    os.close(end)
    run = command("utils.predict", best, photos / "rain", stdout=pipe)
    os.close(pipe)
    assert run == (141, [], ["stopped: nothing reads its output"])


@pytest.mark.parametrize("words", [*FILES, *map("best.pt {}".format, FLAGS)])
def test_what_cannot_be_used_is_refused_in_a_line(words, best, tmp_path, caplog):
    (tmp_path / "cut.pt").write_bytes(best.read_bytes()[:10_000])
    for name in ("x.onnx", "x.pt2"):
        (tmp_path / name).write_bytes(b"no network")
    file, *flags = words.split()
    why = ": cannot be read as an export" if file[0] == "x" else ".*(truncated|no such checkpoint)"
    with pytest.raises(UserError, match=flags[0] if flags else f"^{tmp_path / file}{why}.*$"):
        main([str(tmp_path / file), "no/photo/here.jpg", *flags])
    assert not caplog.records


USE = {
    "onnx": PYTHON[0],
    "pt2": """
import json, numpy, torch
from PIL import Image
facts = {"classes": ""}
student = torch.export.load("student.pt2", extra_files=facts).module()
pixels = torch.tensor(numpy.asarray(Image.open("output/cache/sample/files/snow/0000.jpg")))[None]
print(json.loads(facts["classes"])[student(pixels)[0].argmax()])
""",
}


@pytest.mark.parametrize("kind", USE)
def test_an_export_gives_the_same_probabilities_without_the_repo(kind, best, photos, tmp_path):
    file = tmp_path / "new" / f"student.{kind}"
    words = ("utils.export", best.parent, photos, "--format", kind, "--output", file)
    status, lines, errors = command(*words)
    assert (status, errors) == (0, [])
    assert lines[0].startswith(f"{file}: ")
    assert re.fullmatch(r"(\d+) of \1 photos have the class .*", lines[1])
    assert float(re.findall(r"differ by (0\.\d+) at most", lines[2])[0]) < 0.05
    # At the cache's resolution, only the resize rounds, and evaluation has the same resize.
    squares = torch.tensor(np.stack([read_square(p, 64) for p in sorted(photos.rglob("*.jpg"))]))
    classify, about = load_exported(file)
    expected, _ = load_any(best)
    torch.testing.assert_close(classify(squares), expected(squares), atol=0.01, rtol=0)
    assert about["classes"] == [*CLASSES]
    one = squares[:1, :40, :57]  # other sizes than it was traced with
    torch.testing.assert_close(classify(one.repeat(3, 1, 1, 1)), classify(one).repeat(3, 1))
    (folder := file.parent / "output/cache/sample/files/snow").mkdir(parents=True)
    Image.fromarray(squares[0].numpy()).save(folder / "0000.jpg", "png")
    alone = python("-I", "-c", USE[kind], cwd=file.parent, check=True)  # without this repo
    assert alone.stdout == f"{CLASSES[expected(squares[:1]).argmax()]}\n"

    where = ("--cache", photos.parent / "cache", "--mistakes", tmp_path / "mistakes.csv")
    status, lines, errors = command("utils.evaluate", best.parent, file, file, photos, *where)
    assert (status, errors, str(lines).count("predicted →")) == (0, [], 2)
    result = read_json(photos.parent / "output/results" / best.parent.name / "result.json")
    count, accuracy = result["test"]["photos"], result["test"]["accuracy"]
    assert lines[0].startswith(f"{count} test photos of split {result['photos']['split']}; cpu, ")
    rows = {cells[1]: cells[2:4] for line in lines if (cells := re.split(r" *\| *", line))[2:]}
    assert rows["Accuracy"] == 2 * [f"{accuracy:.2%}"]
    assert rows["Parameters"] == [f"{result['parameters']:,}", "–"]
    # ResNet18 has 1,814 million at 224 px, and 49 times fewer at 32 but for its last layer.
    assert float(rows["Multiply-adds, millions"][0]) == pytest.approx(1814 / 49, rel=0.02)
    mistakes = list(csv.DictReader((tmp_path / "mistakes.csv").read_text("utf-8").splitlines()))
    assert len(mistakes) == 2 * len(result["test"]["wrong"])
    assert all(row["class"] == row["path"].split("/")[0] != row["predicted"] for row in mistakes)


def test_photos_that_networks_have_seen_are_not_measured_as_new(best, photos, tmp_path, capsys):
    copy = shutil.copy(best, tmp_path / "alone.pt")  # without a split.csv
    where = ("--cache", photos.parent / "cache", "--mistakes", tmp_path / "mistakes.csv")
    status, lines, (error,) = command("utils.evaluate", copy, photos, *where)
    assert (status, lines, error.count("their test photos are unknown or differ")) == (2, [], 1)
    for program, flag in ((evaluate, "--mistakes"), (export, "--output")):
        with pytest.raises(UserError, match=f"^{flag}: '{tmp_path}' is a folder or a device"):
            program.main([str(copy), str(photos), flag, str(tmp_path)])

    def evaluated(*words):
        evaluate.main([*map(str, (*words[:1], *where, *words[1:]))])
        printed = capsys.readouterr()
        return printed.out.partition(";")[0], printed.err

    runs = shutil.copytree(photos.parent / "output", tmp_path / "output")
    split = runs / "results" / best.parent.name / "split.csv"
    split.write_text(split.read_text("utf-8").replace("train", "test"), "utf-8")
    with pytest.raises(UserError, match="are unknown or differ"):
        evaluated(runs / "checkpoints" / best.parent.name, photos)
    others = tmp_path / "others"
    for name in ("rain", "sun"):
        (others / name / "other").mkdir(parents=True)
        shutil.copy(photos / "rain" / "0.jpg", others / name / "other")
    says = f"^{others} has a class 'sun' that the networks do not have$"
    with pytest.raises(UserError, match=says):
        evaluated(copy, others)
    (others / "sun").rename(others / "snow")
    alone = "2 photos, assuming that no network was trained with their labels"
    assert evaluated(copy, others) == (alone, "")
    assert best.parent.name in (tmp_path / "mistakes.csv").read_text()  # whatever its file's name
    measured, said = evaluated(copy, best.parent, others)
    assert measured == "2 photos"
    split = photos.parent / "output/results" / best.parent.name / "split.csv"
    rows = csv.DictReader(split.read_text("utf-8").splitlines())
    old = {row["path"] for row in rows if row["split"] != "test"} & {"rain/0.jpg", "snow/0.jpg"}
    assert f"{len(old)} photos have the class and file name of a network's training photos" in said
    digest = decode_photos(find_photos(others, tmp_path), 64, tmp_path).digest
    for more, says in (
        ({"held_out": ""}, ": its teacher may have seen these photos"),
        ({"distillation": {"unlabelled_digest": digest}}, " has seen these photos without labels"),
    ):
        save_checkpoint(copy, load_checkpoint(best) | more)
        assert evaluated(copy, others) == (alone, f"WARNING: {copy}{says}\n")
