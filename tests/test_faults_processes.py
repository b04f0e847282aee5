"""Several processes train the same and overlapping runs at random: each run marked as finished is
complete and the work of one process. FAULTS=whole pytest tests/test_faults_processes.py runs it."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from config import Config
from data.files import read_json
from models.checkpoint import load_classifier, weights_digest
from tests.faults import only_whole
from tests.photo_folders import make_photos, start, training
from tests.test_train import rows_of

ROUNDS = int(os.environ.get("ROUNDS", "50"))
PAIR = ["knowledge_distillation.py", "--teacher", "resnet18", "--student", "resnet18"]
COMMANDS = [
    *(["train.py", "--models", "resnet18", "--seeds", *seeds] for seeds in ("0", "01", "12")),
    *([*PAIR, "--seeds", *seeds] for seeds in ("0", "10", "12")),
    [*PAIR, "--method", "kd", "fitnet"],
    ["-m", "utils.report"],
]


@only_whole
@pytest.mark.timeout(0)
def test_finished_runs_are_whole_and_of_one_process(tmp_path):
    draw = random.Random(int(os.environ.get("SEED", "0")))
    photos = make_photos(tmp_path / "weather", per_class=6)
    shared = training(photos, tmp_path, "--batch-size", 6, "--epochs", 2, "--warmup-epochs", 0)
    for _ in range(ROUNDS):
        processes = []
        for _ in range(draw.choice([2, 3, 5])):
            words = [*draw.choice(COMMANDS)]
            how = draw.choice([[], ["--resume"], ["--resume"], ["--overwrite"]])
            words += shared[2:4] if words[0] == "-m" else [*shared, *how]
            processes.append(start(*words, env=os.environ | {"OMP_NUM_THREADS": "1"}))
            time.sleep(draw.choice([0, 0, draw.uniform(0, 5)]))
        time.sleep(draw.uniform(0, 8))
        for process in processes:
            if draw.random() < 0.2:
                process.kill()
        for process in processes:
            _, errors = process.communicate(timeout=300)
            lines = [line for line in errors.splitlines() if line[:7] not in ("waiting", "NOTE: l")]
            kinds = process.returncode, [line[:7] for line in lines[:1]]
            assert kinds in ((0, []), (2, ["error: "])) or kinds[0] == -9, (process.args, errors)
            assert len(lines) <= 2, errors
        for path in tmp_path.glob("output/results/*/result.json"):
            check(path.parent)


def check(folder: Path) -> None:
    """All files of a finished run are of the process that wrote its result."""
    result, settings = (read_json(folder / f"{name}.json") for name in ("result", "settings"))
    assert (result["run"], result["process"]) == (folder.name, settings["process"])
    model, about = load_classifier(folder.parents[1] / "checkpoints" / folder.name / "best.pt")
    assert (about["run"], weights_digest(model)) == (folder.name, result["digest"])
    best = rows_of(folder / "history.csv")[result["best_epoch"] - 1]
    assert float(best["accuracy/val"]) == result["val"]["accuracy"]
    with np.load(folder / "test_logits.npz") as saved:
        wrong = np.flatnonzero(saved["logits"].argmax(1) != saved["labels"])
        assert ("teacher_logits" in saved) == ("teacher" in result)
    assert wrong.tolist() == result["test"]["wrong"]
    assert len(list((folder.parents[1] / "logs" / folder.name).rglob("*.*"))) == 3
    recipe = Config(epochs=2, batch_size=6, warmup_epochs=0.0).recipe
    assert result["recipe"] == settings["recipe"] == recipe
