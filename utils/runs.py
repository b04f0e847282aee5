"""One training run after another: claim the names, train, test once, write what was measured.

Both scripts are made of these steps; what they add is the objective that a run minimises.
"""

import csv
import json
import platform
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor

from config import EARLIER_CROPS, Config, UserError, recipe
from data.locks import taken, write_whole
from data.split import to_csv
from models.checkpoint import FORMAT, load_checkpoint, save_checkpoint, weights_digest
from models.factory import MEAN, STD, create_model, to_device
from utils import ranks
from utils.engine import (
    Objective,
    Row,
    Training,
    fit,
    is_best,
    make_optimizer,
    predict,
    validation_rank,
)
from utils.metrics import agreement, measure
from utils.setup import Setup, device_kind, fold_name, forget_peak_memory, peak_memory
from utils.tables import read_result_file
from utils.teacher import Teacher, measure_validation
from utils.tracking import Tracker

# Raised whenever a reader of older results would misread newer ones.
RESULT_FORMAT = 1
MISTAKES_SHOWN = 24


@dataclass(frozen=True)
class Run:
    """One training run: a model, a seed, its photos and settings, and the folders of its name.

    `lesson` is what a student learns from a teacher, as plain values; a baseline has none.
    """

    name: str
    model: str
    seed: int
    setup: Setup = field(compare=False, repr=False)
    config: Config
    lesson: dict[str, Any] | None = None

    @property
    def logs(self) -> Path:
        return self.config.output / "logs" / self.name

    @property
    def checkpoints(self) -> Path:
        return self.config.output / "checkpoints" / self.name

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation accuracy."""
        return self.checkpoints / "best.pt"

    @property
    def results(self) -> Path:
        return self.config.output / "results" / self.name

    @property
    def finished(self) -> bool:
        """result.json is written last, and whole."""
        return (self.results / "result.json").exists()


def plan(setup: Setup, seeds: Sequence[int], models: Sequence[str]) -> list[Run]:
    """One baseline for each seed and model, seed by seed."""
    config = setup.config
    return [
        Run(run_name(setup, config, model, seed), model, seed, setup, config)
        for seed in seeds
        for model in models
    ]


def run_name(setup: Setup, config: Config, what: str, seed: int) -> str:
    """A run's name: what is in it tells runs apart that may stand side by side."""
    start = "-pretrained" if config.pretrained else ""
    tag = f"-{config.tag}" if config.tag else ""
    split = f"-split{config.split_seed}" if config.split_seed else ""
    ending = f"{start}{tag}{split}{fold_name(config)}-seed{seed}"
    return f"{setup.photos_name}-{setup.image_size}px-{what}{ending}"


@contextmanager
def claimed(runs: Sequence[Run], needed: Sequence[Run] = ()) -> Iterator[None]:
    """Make the runs' folders and keep them for this process, or raise UserError where earlier runs
    stand in the way or another process is at them.

    `needed` are runs that the others build on: finished ones are used as they are, whatever
    --resume and --overwrite say. All names are checked before the first run starts, so that none
    is refused after hours of work. Rank 0 does it for all ranks.
    """
    if not ranks.is_first():
        ranks.wait()
        yield
        return
    used = [run for run in needed if run.finished]
    mine = [run for run in [*needed, *runs] if run not in used]
    with ExitStack() as until_done:
        for folder in dict.fromkeys(run.results for run in mine):
            folder.mkdir(parents=True, exist_ok=True)
            if not until_done.enter_context(taken(folder)):
                raise UserError(
                    f"{folder.name} is being trained by another process: wait for it, or give "
                    "this run a name of its own with --tag NAME"
                )
        check_and_make_folders(mine, used)
        ranks.wait()
        yield


def check_and_make_folders(claimed: Sequence[Run], used: Sequence[Run]) -> None:
    """What `claimed` says, for runs that no other process is at."""
    for run in used:
        check_same(run, settings_of(run))
    for run in claimed:
        if run.config.overwrite:
            continue
        started = run.checkpoints / "last.pt"
        if not run.config.resume and (run.finished or started.exists()):
            state = "is finished" if run.finished else "was started before"
            raise UserError(
                f"{run.name} {state}: --resume keeps what is there and does the rest, --overwrite "
                "does it again, --tag NAME puts a new run beside it"
            )
        if run.config.resume:
            check_same(run, settings_of(run))
    for run in claimed:
        if run.config.overwrite:
            # First what says that the run is finished; the folder itself keeps others away.
            (run.results / "result.json").unlink(missing_ok=True)
            for path in (run.checkpoints, run.logs, *run.results.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        if not run.finished:
            write_json(run.results / "settings.json", settings_of(run))


def settings_of(run: Run) -> dict[str, Any]:
    """What a run has to have in common with the run that it resumes."""
    setup = run.setup
    return {
        "model": run.model,
        "seed": run.seed,
        "image_size": setup.image_size,
        "classes": list(setup.classes),
        "split": setup.split.hash,
        "photos": setup.decoded.digest,
        **recipe(run.config),
        **(run.lesson or {}),
    }


def check_same(run: Run, wanted: dict[str, Any]) -> None:
    """Raise UserError when the run under this name was started with other settings."""
    # A setting that did not exist then had what is its default now, and of the photos of earlier
    # versions only the names are known.
    defaults = recipe(Config()) | {"crops": EARLIER_CROPS, "photos": wanted["photos"]}
    earlier = defaults | started_with(run, wanted)
    for key, value in wanted.items():
        if earlier.get(key) == value:
            continue
        if key == "photos":
            raise UserError(
                f"{run.name} was trained on other photos, though of the same names: give a new run "
                "a name of its own with --tag NAME, or do the earlier one again with its script's "
                "--overwrite"
            )
        if key == "crops":
            raise UserError(
                f"{run.name} was trained by an earlier version, whose crops were others: "
                "--overwrite trains it anew, --tag NAME puts a new run beside it"
            )
        what = "--" + key.replace("_", "-") if hasattr(run.config, key) else key
        raise UserError(
            f"{run.name} was started with {what} {earlier.get(key)}, not {value}: resume it "
            "with the same, or give a new run a name of its own with --tag NAME"
        )


def started_with(run: Run, wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that was started before, as settings.json has them or, if that is gone,
    result.json or the last checkpoint; as `wanted` when it never was."""
    path, last = run.results / "settings.json", run.checkpoints / "last.pt"
    if path.exists():
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as problem:
            raise UserError(
                f"{path}: not readable; delete {path.parent} and {run.checkpoints} to train it anew"
            ) from problem
    if run.finished:
        known = read_result(run)
        known |= known["photos"] | {"photos": known["photos"].get("digest", wanted["photos"])}
    elif last.exists():
        known = load_checkpoint(last)
        known["model"] = known.get("arch")
    else:
        return wanted
    known |= known.get("recipe", {}) | (known.get("lesson") or {})
    return {key: known[key] for key in wanted if key in known}


def train_and_test(
    run: Run, make_objective: Callable[[], Objective], teacher: Teacher | None = None
) -> dict[str, Any]:
    """Train a run to its end, from its last checkpoint if it has one, and test it once.

    Returns the content of its result.json; a finished run is only read.
    """
    if run.finished:
        print(f"{run.name}: finished before, kept\n")
        return read_result(run)
    setup, config, hardware = run.setup, run.config, run.setup.hardware
    forget_peak_memory(hardware.device)
    model = create_model(run.model, len(setup.classes), pretrained=config.pretrained, seed=run.seed)
    model = to_device(model, hardware.device)
    objective = make_objective()
    training = Training(model, objective, make_optimizer(model, objective.own, config))
    header: dict[str, Any] = {
        "arch": run.model,
        "classes": list(setup.classes),
        "image_size": setup.image_size,
        "mean": list(MEAN),
        "std": list(STD),
        "split": setup.split.hash,
        "photos": setup.decoded.digest,
        "seed": run.seed,
        "recipe": recipe(config),
        "lesson": run.lesson,
        "teacher": teacher.digest if teacher else None,
    }
    last = run.checkpoints / "last.pt"
    if last.exists():
        go_on(run, training, load_checkpoint(last), header["teacher"])
    else:
        print(run.name)
    with tracked(run, training.history) as tracker:

        def after_epoch(training: Training) -> None:
            state = training.state()
            if is_best(training.history):
                plain = {"model": state["model"], "history": training.history}
                save_checkpoint(run.best, header | plain)
            save_checkpoint(last, header | state)
            if tracker:
                tracker.epoch(training.history[-1])

        fit(
            training,
            setup.train_batches(config, run.seed),
            setup.eval_batches("val"),
            config,
            hardware,
            seed=run.seed,
            after_epoch=after_epoch,
        )
        model.load_state_dict(load_checkpoint(run.best)["model"])
        result, arrays = measure_run(run, training, teacher)
        if tracker:
            write_results(run, training.history, tracker, result, arrays)
    ranks.wait()
    memory = result["environment"]["peak_gpu_memory"]
    print(
        f"best epoch {result['best_epoch']}, test accuracy {result['test']['accuracy']:.2%}"
        + (f", {memory / 1e9:.1f} GB of GPU memory\n" if memory else "\n")
    )
    return read_result(run)


def tracked(run: Run, history: Sequence[Row]) -> AbstractContextManager[Tracker | None]:
    """The run's curves; None on all ranks but the first."""
    if ranks.is_first():
        return Tracker(run.logs, history, settings_of(run))
    return nullcontext()


def go_on(run: Run, training: Training, state: dict[str, Any], teacher: str | None) -> None:
    """Load the state of an unfinished run; raises UserError when its teacher was another one, or
    its optimizer's averages are not in the order of today's."""
    if state["format"] < FORMAT:
        raise UserError(
            f"{run.name} was started by an earlier version of this repo: --overwrite starts it anew"
        )
    if state.get("teacher") != teacher:
        raise UserError(
            f"{run.name} was started with a teacher of other weights: --overwrite starts it anew"
        )
    training.load_state(state)
    print(f"{run.name}: resumed after epoch {len(training.history)}")


def read_result(run: Run) -> dict[str, Any]:
    """The result.json of a finished run, and where it lies."""
    return read_result_file(run.results / "result.json")


def measure_run(
    run: Run, training: Training, teacher: Teacher | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Measure the best weights on validation and, this once, on test.

    Returns the content of result.json, and what goes into test_logits.npz.
    """
    setup = run.setup
    logits, labels = predict(training.model, setup.eval_batches("test"), setup.hardware)
    val, speed = measure_validation(setup, training.model)
    arrays = {"logits": logits, "labels": labels}
    test = measure(logits, labels, setup.classes)
    result = {
        "format": RESULT_FORMAT,
        "run": run.name,
        "model": run.model,
        "seed": run.seed,
        "tag": run.config.tag,
        "photos": {
            "name": setup.photos_name,
            "sample": setup.is_sample,
            "image_size": setup.image_size,
            "classes": list(setup.classes),
            "counts": setup.counts,
            "split": setup.split.hash,
            "division": setup.division,
            "folds": run.config.folds,
            "fold": run.config.fold[0] if run.config.fold else None,
            "digest": setup.decoded.digest,
            "unreadable": len(setup.decoded.unreadable),
        },
        "recipe": recipe(run.config),
        "environment": environment(setup),
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "digest": weights_digest(training.model),
        "inference_images_per_second": speed,
        **summarise(training.history, test),
        "val": val,
        "test": test,
    }
    if teacher:
        theirs, _ = predict(teacher.model, setup.eval_batches("test"), setup.hardware)
        arrays["teacher_logits"] = theirs
        result["lesson"] = run.lesson
        result["teacher"] = teacher.about | {"test": measure(theirs, labels, setup.classes)}
        result["agreement"] = agreement(logits, theirs)
    return result, arrays


def write_results(
    run: Run,
    history: Sequence[Row],
    tracker: Tracker,
    result: dict[str, Any],
    arrays: dict[str, Tensor],
) -> None:
    """Write down what measure_run has found.

    result.json comes last: where it stands, the run is finished and everything else is there.
    """
    setup = run.setup
    metrics = {f"test/{name}": result["test"][name] for name in ("accuracy", "loss", "macro_f1")}
    metrics["best/accuracy/val"] = result["val"]["accuracy"]
    if "agreement" in result:
        metrics["test/agreement"] = result["agreement"]["top1"]
    saved: dict[str, Any] = {name: array.numpy() for name, array in arrays.items()}
    np.savez(run.results / "test_logits.npz", **saved)
    write_history(run.results / "history.csv", history)
    setup.split.write_manifest(run.results / "split.csv")
    if unreadable := setup.decoded.unreadable:
        write_whole(run.results / "unreadable.csv", to_csv([("path", "reason"), *unreadable]))
    mistakes = most_confident_errors(setup, arrays["logits"], arrays["labels"])
    tracker.finish(metrics, np.array(result["test"]["confusion"]), setup.classes, mistakes)
    write_json(run.results / "result.json", result)


def summarise(history: Sequence[Row], test: dict[str, Any]) -> dict[str, Any]:
    """The seven rows of the table, the best epoch, and how fast training was."""
    best, final = max(history, key=validation_rank), history[-1]
    # The first epoch also pays for warming up.
    steady = [row["images_per_second"] for row in history[1:] or history]
    return {
        "table": {
            "best_val_loss": min(row["loss/val"] for row in history),
            "best_val_accuracy": best["accuracy/val"],
            "final_train_loss": final["loss/train"],
            "final_val_loss": final["loss/val"],
            "final_val_accuracy": final["accuracy/val"],
            "test_loss": test["loss"],
            "test_accuracy": test["accuracy"],
        },
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "images_per_second": statistics.median(steady),
        "seconds": sum(row["seconds"] for row in history),
    }


def environment(setup: Setup) -> dict[str, Any]:
    """What the numbers were computed with."""
    return {
        "device": device_kind(setup.hardware.device),
        "peak_gpu_memory": peak_memory(setup.hardware.device),
        "precision": "bf16" if setup.hardware.bf16 else "float32",
        "ranks": ranks.count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def most_confident_errors(
    setup: Setup, logits: torch.Tensor, labels: torch.Tensor
) -> list[tuple[np.ndarray, str, str, float]]:
    """The wrongly classified test photos, most confident first: photo, true and predicted class,
    probability."""
    rows, _ = setup.rows_and_labels("test")
    confidence, predicted = logits.softmax(1).max(1)
    wrong = torch.nonzero(predicted != labels).flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True)][:MISTAKES_SHOWN]
    return [
        (
            np.asarray(setup.decoded.pixels[rows[i]]),
            setup.classes[labels[i]],
            setup.classes[predicted[i]],
            confidence[i].item(),
        )
        for i in wrong.tolist()
    ]


def write_history(path: Path, history: Sequence[Row]) -> None:
    """One line an epoch, one column for each curve."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, history[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Readable JSON that appears under its name only when it is complete."""
    write_whole(path, json.dumps(content, indent=1) + "\n")
