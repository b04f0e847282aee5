"""utils.predict as a user runs it: names as in a run's evaluation, whatever files it is given."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from data.batches import cached_side
from data.cache import decode_photos, read_square
from data.photos import find_photos
from models.checkpoint import load_checkpoint, load_classifier
from tests.photo_folders import CLASSES, make_photos
from utils.predict import BATCH, classify, main, read_all

ROOT = Path(__file__).parents[1]
RUN = "weather-32px-resnet18-seed0"


def command(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == status, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos") / "weather")


@pytest.fixture(scope="module")
def output(photos) -> Path:
    """The output of a finished run in float32."""
    folder = photos.parent / "output"
    command(
        "train.py", "--data", photos, "--image-size", 32, "--batch-size", 8, "--models", "resnet18",
        "--epochs", 1, "--precision", "float32", "--device", "cpu", "--output", folder,
        "--cache", photos.parent / "cache",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def best(output) -> Path:
    return output / "checkpoints" / RUN / "best.pt"


@pytest.fixture(scope="module")
def tested(output, photos) -> tuple[list[str], torch.Tensor]:
    """The paths of the run's test photos, and their probabilities in the run's evaluation."""
    results = output / "results" / RUN
    with (results / "split.csv").open(encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    probabilities = torch.from_numpy(np.load(results / "test_logits.npz")["logits"]).softmax(1)
    assert len(paths) == len(probabilities) >= 4
    assert (probabilities.amax(0) - probabilities.amin(0)).max() > 0.01  # tell photos apart
    return [str(photos / path) for path in paths], probabilities


def named(line: str) -> tuple[str, list[str], list[float]]:
    """Path, classes and probabilities of a line of output."""
    path, answers = line.rsplit(": ", 1)
    parts = [re.fullmatch(r"(\w+) (\d+\.\d) %", answer) for answer in answers.split(", ")]
    assert all(parts), line
    return path, [part[1] for part in parts if part], [float(p[2]) / 100 for p in parts if p]


def test_the_test_photos_get_the_probabilities_of_the_runs_evaluation(best, tested):
    paths, expected = tested
    times = BATCH // len(paths) + 1  # more photos than are classified at once
    run = command("-m", "utils.predict", best, *paths * times, "--top", 4)
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths) * times > BATCH
    for line, path, row in zip(lines, paths * times, expected.repeat(times, 1), strict=True):
        name, classes, probabilities = named(line)
        assert name == path
        assert sorted(classes) == sorted(CLASSES)
        assert probabilities == sorted(probabilities, reverse=True)
        of_class = dict(zip(classes, probabilities, strict=True))
        assert [of_class[c] for c in CLASSES] == pytest.approx(row.tolist(), abs=0.00051)
        assert row[CLASSES.index(classes[0])] == pytest.approx(row.max().item(), abs=1e-5)


def test_unrounded_probabilities_are_those_of_the_evaluation(best, tested):
    paths, expected = tested
    model, about = load_classifier(best)
    model.train()  # whatever came before, evaluation is in eval mode
    squares = [pixels for _, pixels, _ in read_all(paths, cached_side(32))]
    probabilities = classify(model, about, np.stack(squares))
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=1e-4)


def test_photos_are_normalised_by_the_checkpoints_own_mean_and_std(best, tested):
    model, about = load_classifier(best)
    _, pixels, _ = next(read_all(tested[0], cached_side(32)))
    even = pixels[None, ::2, ::2] // 2 * 2  # of the network's size, so that nothing is rounded
    expected = classify(model, about, even)
    halves = {name: [value / 2 for value in about[name]] for name in ("mean", "std")}
    # (x/2 − mean/2) / (std/2) is (x − mean) / std.
    torch.testing.assert_close(classify(model, about | halves, even // 2), expected)
    assert (classify(model, about | halves, even) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("side", [64, 300])
def test_photos_are_decoded_as_the_cache_decodes_them(side, tmp_path):
    draw = np.random.default_rng(0)
    for name in ("rain/1.jpg", "snow/1.png"):  # so large that a JPEG may be decoded at a fraction
        noise = draw.integers(0, 256, (1040, 560, 3)).astype(np.uint8)
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    found = find_photos(tmp_path / "photos", tmp_path)
    decoded = decode_photos(found, side, tmp_path / "cache", workers=1, strict=True)
    for path, row in zip(found.paths, decoded.rows, strict=True):
        np.testing.assert_array_equal(read_square(found.root / path, side), decoded.pixels[row])


@pytest.fixture(scope="module")
def odd(photos) -> Path:
    """A folder of odd files: readable and not, named well and not."""
    folder = photos.parent / "odd"
    (folder / "inner.jpg").mkdir(parents=True)
    upright = Image.open(photos / "rain" / "0.jpg")
    upright.save(folder / "a upright.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "b turned.png", exif=exif)
    transparent = upright.convert("RGBA")
    transparent.putalpha(120)
    transparent.save(folder / "c alpha.PNG")
    (folder / "d broken.jpg").write_bytes((photos / "rain" / "1.jpg").read_bytes()[:500])
    upright.convert("L").save(folder / "e grey.png")
    upright.save(folder / "f\nerror: 100 %.png")
    upright.save(folder / "g\udcff\x1b[31m.png")
    (folder / "h phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    (folder / "notes.txt").write_text("no photo, and not named like one")
    (folder / ".hidden.png").write_bytes(b"not shown")
    (folder / "inner.jpg" / "1.jpg").write_bytes((photos / "rain" / "2.jpg").read_bytes())
    return folder


def test_odd_files_stop_neither_each_other_nor_the_command(best, odd, photos):
    after = photos / "snow" / "3.jpg"
    run = command("-m", "utils.predict", best, odd, odd / "gone.jpg", after, status=2)
    lines = run.stdout.splitlines()
    paths, classes, probabilities = zip(*map(named, lines), strict=True)
    assert paths == (
        f"{odd}/a upright.png", f"{odd}/b turned.png", f"{odd}/c alpha.PNG", f"{odd}/e grey.png",
        f"'{odd}/f\\nerror: 100 %.png'", f"'{odd}/g\\udcff\\x1b[31m.png'", str(after),
    )  # fmt: skip
    for same in (1, 4, 5):
        assert classes[same] == classes[0]
        assert probabilities[same] == probabilities[0]
    assert all(len(answers) == 3 for answers in classes)
    broken, phone, gone = run.stderr.splitlines()
    assert phone == f"error: {odd}/h phone.heic: .heic is not decoded here: save it as JPEG"
    assert broken.startswith(f"error: {odd}/d broken.jpg: ")
    assert gone == f"error: {odd}/gone.jpg: No such file or directory"


def test_lines_and_errors_keep_the_order_also_where_letters_are_missing(best, odd, tmp_path):
    good, broken = tmp_path / "é.jpg", odd / "d broken.jpg"
    good.write_bytes((odd / "inner.jpg" / "1.jpg").read_bytes())
    run = subprocess.run(
        [sys.executable, "-m", "utils.predict", best, *[good, broken] * BATCH],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""},
        cwd=ROOT, text=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines = run.stdout.splitlines()
    assert len(lines) == 2 * BATCH
    assert all(line.startswith(f"{tmp_path}/\\xe9.jpg: ") for line in lines[::2])
    assert all(line.startswith(f"error: {broken}: ") for line in lines[1::2])


def test_a_folder_without_photos_of_its_own_says_what_to_give(best, photos, capsys):
    assert main([str(best), str(photos)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"error: {photos}: no photo directly in this folder; name its sub-folders or files\n"
    )


@pytest.mark.parametrize(("top", "count"), [("1", 1), ("2", 2), ("99", 4)])
def test_top_is_the_number_of_classes_in_a_line(top, count, best, photos, capsys):
    assert main(["--top", top, str(best), str(photos / "fog" / "0.jpg")]) == 0
    assert len(named(capsys.readouterr().out.rstrip())[1]) == count


def test_last_pt_names_photos_as_well(best, tested, capsys):
    paths, _ = tested
    answers = []
    for checkpoint in (best, best.with_name("last.pt")):  # of one epoch, so both are the same
        assert main([str(checkpoint), *paths]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def unusable(best) -> dict[str, Path]:
    """Paths of checkpoints that are none, by what is wrong with them."""
    folder = best.parent / "unusable"
    folder.mkdir()
    files = {kind: folder / f"{kind}.pt" for kind in ("text", "cut", "foreign", "missing")}
    files["text"].write_text("not a checkpoint\n")
    files["cut"].write_bytes(best.read_bytes()[:10_000])
    torch.save(load_checkpoint(best)["model"], files["foreign"])
    return files | {"newline": folder / "a\nb.pt", "folder": folder}


@pytest.mark.parametrize("kind", ["text", "cut", "foreign", "missing", "newline", "folder"])
def test_an_unusable_checkpoint_is_told_in_a_line_before_any_photo(kind, unusable, capsys):
    assert main([str(unusable[kind]), "no/photo/here.jpg"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1
    assert "here.jpg" not in printed.err
    assert f"unusable/{kind}" in printed.err or kind in ("newline", "folder")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--top", "0"), "'0' is not allowed: a whole number from 1 up"),
        (("--top", "two"), "'two' is not allowed: a whole number from 1 up"),
        (("--to", "2"), "unrecognized arguments: --to"),
        (("--device", "cuda"), "unrecognized arguments: --device"),
    ],
)
def test_wrong_flags_are_refused(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["best.pt", "photo.jpg", *words])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert len(printed.err.splitlines()) <= 2
