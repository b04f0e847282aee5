"""One training run, of either script: lock its name, train, test once, write what was measured."""

import io
import os
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from config import ROOT, Config, KDConfig, UserError, network_name, plain_name, shown
from data.batches import MEAN, STD, EvalBatches, TrainBatches
from data.dataset import Dataset, load_datasets
from data.files import atomic_write, csv_text, explained, locks, read_json, remove, write_json
from data.listing import PARTS, UNLABELLED
from data.split import describe_duplicates, list_duplicates
from models.checkpoint import load_checkpoint, read_tensors, save_checkpoint, weights_digest
from models.factory import channels_last, check_network, initial_model, multiply_adds, source_digest
from utils import ranks
from utils.device import Device, find_device
from utils.engine import CrossEntropy, Row, Training, evaluate, fit, validation_rank
from utils.metrics import accuracy, measure
from utils.tables import Result
from utils.tracking import Tracker

# Written to the settings.json and result.json of each run that this process trains.
PROCESS = {"process": secrets.token_hex(8), "commit": ""}
GIT = ["git", f"--git-dir={ROOT}/.git", f"--work-tree={ROOT}", "describe", "--always", "--dirty"]
with suppress(OSError):  # where there is no git
    described = subprocess.run(GIT, capture_output=True, encoding="utf-8", errors="replace")
    PROCESS["commit"] = described.stdout.strip()


@dataclass(frozen=True)
class Run:
    """One training run: its settings, photos and device, and the folders of its name."""

    config: Config
    data: Dataset = field(compare=False, repr=False)
    device: Device = field(compare=False, repr=False)
    teacher: str = ""  # of a student: the teacher's network and, if there could be several, which

    @property
    def name(self) -> str:
        """The name of its folders; an output folder holds one run of each name."""
        config = self.config
        parts = [self.data.name, f"{config.image_size}px", network_name(config.model)]
        if config.kd:
            parts += ["from", self.teacher, str(config.kd)]
        if config.labels_per_class:
            parts.append(f"labels{config.labels_per_class:.15g}")
        parts += [config.tag] * bool(config.tag)
        parts += [f"split{config.split_seed}"] * bool(config.split_seed)
        parts += [f"fold{config.fold}of{config.folds}"] * bool(config.folds)
        return "-".join([*parts, f"seed{config.seed}"])

    @property
    def kd(self) -> KDConfig:
        """How this student is taught."""
        assert self.config.kd
        return self.config.kd

    def path(self, kind: str, file: str = "") -> Path:
        """This run's folder in `logs`, `checkpoints` or `results`, or a file in it."""
        return self.config.output / kind / self.name / file

    @property
    def best(self) -> Path:
        """The weights with the highest validation accuracy, once the run is finished."""
        return self.path("checkpoints", "best.pt")

    @property
    def last(self) -> Path:
        """The checkpoint to resume from, until then."""
        return self.path("checkpoints", "last.pt")

    @property
    def finished(self) -> bool:
        """Whether result.json exists, which is written last and atomically."""
        return self.path("results", "result.json").exists()

    @property
    def baseline(self) -> "Run":
        """The same run without a teacher."""
        return replace(self, config=replace(self.config, kd=None), teacher="")

    @property
    def distillation(self) -> dict[str, Any] | None:
        """A student's method, its settings and teacher, as plain values; None for a baseline."""
        if self.config.kd is None:
            return None
        how = {key: getattr(self.kd, key) for key in ("method", "alpha", "temperature", "weight")}
        return how | {
            "teacher": self.teacher,
            "baseline": self.baseline.name,
            "unlabelled": self.kd.unlabelled and plain_name(self.kd.unlabelled),
            "unlabelled_photos": len(self.data.unlabelled),
            "unlabelled_digest": self.data.decoded.unlabelled_digest,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the weights, but precision and the teacher; also describes checkpoints."""
        return {
            "run": self.name,
            "arch": network_name(self.config.model),
            "source": source_digest(self.config.model),
            "seed": self.config.seed,
            "classes": list(self.data.classes),
            "image_size": self.config.image_size,
            "mean": list(MEAN),
            "std": list(STD),
            "split": self.data.split.hash,
            "photos": self.data.decoded.digest,
            "recipe": self.config.recipe,
            "distillation": self.distillation,
        }

    def result(self) -> Result:
        """The content of a finished run's result.json. Raises UserError if it is of another run, or
        if another process wrote the settings.json beside it."""
        paths = [self.path("results", f"{name}.json") for name in ("result", "settings")]
        result, settings = map(read_json, paths)
        if (result["run"], result.get("process")) != (self.name, settings.get("process")):
            raise UserError(f"{paths[0]} belongs to another run: {self.name} needs --overwrite")
        return result

    def check_taught_by(self, digest: str) -> None:
        """Raise UserError if this student was started with a teacher of other weights."""
        begun = {} if self.finished or not self.last.exists() else load_checkpoint(self.last)
        found = self.result()["teacher"]["digest"] if self.finished else begun.get("teacher_digest")
        if found not in (None, digest):
            why = "was distilled from an earlier teacher, which was trained again"
            hint = "--overwrite distils it again; give its settings, seed and fold alone"
            raise UserError(f"{self.name} {why}: {hint}")

    def train_batches(self) -> TrainBatches:
        """The training photos and a student's unlabelled ones: this rank's shard of each batch."""
        data, config, shard = self.data, self.config, ranks.shard(self.config.batch_size)
        rows, labels = data.rows_and_labels("train")
        if config.kd:
            rows = np.concatenate([rows, data.unlabelled])
            labels = np.concatenate([labels, np.full(len(data.unlabelled), -1)])
        classes, device = len(data.classes), self.device.device
        return TrainBatches(data.pixels, rows, labels, classes, config, device, shard)

    def eval_batches(self, part: str) -> EvalBatches:
        """The photos of `val` or `test`."""
        size, device = self.config.image_size, self.device.device
        return EvalBatches(self.data.pixels, *self.data.rows_and_labels(part), size, device)

    def measure_part(self, model: nn.Module, part: str) -> tuple[dict[str, Any], Tensor, Tensor]:
        """A model's metrics on `val` or `test`, its logits and the labels."""
        logits, labels, _ = evaluate(model, CrossEntropy(), self.eval_batches(part), self.device)
        return measure(logits, labels, self.data.classes), logits, labels


@dataclass(frozen=True)
class Teacher:
    """A trained network that fits the photos, and what result.json says about it."""

    model: nn.Module
    about: dict[str, Any]  # its metrics on the validation photos as `val`


def prepare(configs: Sequence[Config]) -> list[Run]:
    """A run for each configuration; raises UserError, before any training, for what cannot work."""
    config, device = configs[0], find_device(configs[0])
    for network in dict.fromkeys(c.model for c in configs):
        check_network(network, config.image_size, config.pretrained or config.weights)
    if kd := config.kd:
        new = not (kd.teacher_checkpoint or kd.teacher_tag)
        check_network(kd.teacher, config.image_size, config.pretrained and new, trained=new)
    datasets = load_datasets(configs, device.device, ranks.count())
    runs = [Run(config, datasets[config.fold], device) for config in configs]
    about = read_tensors(config.weights) if config.weights else {}  # a run's has more than weights
    same = about.get("photos") == runs[0].data.decoded.digest
    for run in runs:
        if same and about.get("held_out") != run.data.split.held_out:
            why = "or its teacher was trained on another split, perhaps on test photos of"
            raise UserError(f"--weights {config.weights} {why} {run.name}: give its split and fold")
    if "split" in about and not (same and about.get("labels") == runs[0].data.split.hash):
        what = "labels of this split" if same else "photos, perhaps on these test photos"
        print(f"NOTE     --weights was trained on other {what}\n")
    return runs


def describe(runs: Sequence[Run]) -> None:
    """Print which photos and device are used, and what was found wrong with the photos."""
    config, data, device = runs[0].config, runs[0].data, runs[0].device
    photos = data.decoded.photos
    counts = ", ".join(f"{part} {count:,}" for part, count in data.counts.items())
    if config.folds:
        counts = f"of {config.folds} folds, fold {config.fold} has {counts}"
    about = f"{len(photos):,} in {len(data.classes)} classes, {counts}; split {data.split.hash}"
    print(f"photos   {data.name}: {about}")
    sizes = zip(photos.classes, np.bincount(photos.labels), strict=True)
    classes = [f"{shown(name, keep='')} {size:,}" for name, size in sizes]
    print(f"classes  {', '.join(classes[:24])}{', ...' * (len(classes) > 24)}")
    for note in photos.notes:
        print(f"NOTE     {shown(note)}")
    for fold, each in {run.config.fold: run.data for run in runs}.items():
        of = f" of fold {fold}" if config.folds else ""
        for part in PARTS[1:]:
            if lacking := len(classes) - len({*each.rows_and_labels(part)[1].tolist()}):
                print(f"NOTE     {part}{of} has no photo of {lacking} of the classes")
    if (count := len(data.unlabelled)) or (config.kd and config.kd.unlabelled):
        copies = len(data.split.indices(UNLABELLED)) + len(data.decoded.unlabelled) - count
        left_out = f"{copies:,} copies of val and test photos are left out"
        print(f"NOTE     {count:,} unlabelled photos, used only for distillation; {left_out}")
    if config.data == "sample":
        print("NOTE     synthetic photos, which say nothing about real ones: give --data FOLDER")
    looks = ["".join(normalize("NFKC", name).casefold().split()) for name in photos.classes]
    if alike := [ascii(n) for i, n in enumerate(photos.classes) if looks.count(looks[i]) > 1]:
        print(f"WARNING  class names that look the same: {', '.join(alike)}")
    for note in describe_duplicates(data.split, data.groups):
        print(note)
    if device.device.type == "cpu" and config.image_size > 128:
        print("NOTE     slow on a CPU: --image-size 64 is several times as fast, and less accurate")
    print(f"device   {device}, {device.precision}{', CUDA graphs' * device.graphs}\n")


@contextmanager
def lock_runs(
    runs: Sequence[Run], needed: Sequence[Run] = (), teachers: Iterable[Run] = ()
) -> Iterator[Callable[[Run], None]]:
    """Lock the runs for this process; raises UserError if an earlier run or another process is in
    the way. Yields a function that lets other processes use a finished run. `needed` are runs that
    the others depend on: finished ones are used as they are, regardless of --resume and
    --overwrite, as are `teachers`, of any recipe. Rank 0 checks all names before the first run."""
    mine = list(dict.fromkeys([*needed, *runs]))
    if len({run.name for run in mine}) < len(mine):
        raise UserError("two runs would have the same name: rename a network's file or a tag")
    ranks.check_same([(run.name, run.settings, run.device.precision) for run in mine])
    if not ranks.is_first():
        ranks.barrier()
        yield lambda _: None
        return
    with locks(runs[0].config.output) as hold_name:

        def hold(run: Run, keep: bool) -> None:
            if not hold_name(run.name, shared=keep) or (keep and not run.finished):
                hint = "wait for it, or give this run a name of its own with --tag NAME"
                raise UserError(f"{run.name} is being trained or used by another process: {hint}")

        for run in teachers:
            hold(run, keep=True)
        for run in mine:
            hold(run, keep=run.finished and (run in needed or not run.config.overwrite))
            check_earlier(run, used=run in needed and run.finished)
        for run in mine:
            if run.config.overwrite and not (run in needed and run.finished):
                remove(run.path("results", "result.json"))  # which says that it is finished
                for kind in ("checkpoints", "logs", "results"):
                    remove(run.path(kind))
            if not run.finished:
                for unfinished in run.config.output.glob(f"*/{run.name}/.*.tmp"):  # when killed
                    remove(unfinished)
                write_json(run.path("results", "settings.json"), run.settings | PROCESS)
                run.last.parent.mkdir(parents=True, exist_ok=True)  # or fail before an epoch
        ranks.barrier()
        yield lambda run: hold(run, keep=True)


def check_earlier(run: Run, *, used: bool) -> None:
    """Raise UserError for an earlier run that must not be resumed or, if `used`, used as it is."""
    weights, overwritten = run.config.weights, run.config.overwrite and not used
    if overwritten and weights and weights.resolve().parent == run.best.resolve().parent:
        raise UserError(f"--overwrite would delete --weights {weights}: give --tag NAME")
    started = run.finished or any(map(os.path.lexists, (run.best, run.last)))
    if overwritten or not started:
        return
    if not run.finished and not os.path.lexists(run.last):
        raise UserError(f"{run.name}: last.pt or result.json is gone: --overwrite trains it again")
    path = run.path("results", "settings.json")
    check_settings(path, read_json(path), run.settings)
    if run.finished:
        found = run.result()["environment"]  # raises UserError if it is damaged
        check_settings(path.with_name("result.json"), found, {"precision": run.device.precision})
    if not run.config.resume and not used:
        state = "is finished" if run.finished else "was started before"
        hint = "--overwrite trains it again, --tag NAME makes a new run beside it"
        raise UserError(f"{run.name} {state}: --resume keeps what exists and does the rest, {hint}")


def check_settings(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError where a file of an earlier start has other settings than this command."""
    for key, value in wanted.items():
        found = saved.get(key)
        if isinstance(found, dict) and isinstance(value, dict):
            check_settings(path, found, value)
        elif found != value:
            hashed = key in ("classes", "split", "photos")  # which cannot be read off their hashes
            other = "other photos, or another split" if hashed else f"{key} {found}, not {value}"
            hint = "--overwrite to start over (baselines and teachers by train.py) or another --tag"
            raise UserError(f"{path} was written with {other}: give the same settings, or {hint}")


def train_and_test(
    run: Run, objective: CrossEntropy, runs: Sequence[Run], teacher: Teacher | None = None
) -> Result:
    """Train one of the runs, from its last checkpoint if it has one, test it once, return its
    result; of a finished run, only that. Prints the time that it and all of the runs will take."""
    if run.finished:
        return load_finished(run)
    config, data, device = run.config, run.data, run.device
    size, classes = config.image_size, len(data.classes)
    weights = config.pretrained or config.weights
    model, loaded = initial_model(config.model, classes, size, seed=config.seed, weights=weights)
    training = Training(channels_last(model, device.device), objective, config, device)
    if ranks.is_first():  # counted now: to build networks during an epoch would reseed its dropout
        steps, whole = work(run)
        others = sum(work(other)[1] for other in runs if other != run and not other.finished)
        training.forecast = partial(forecast, whole / steps, others / steps)
    header = run.settings | {
        "precision": device.precision,  # which the settings may leave to the machine
        # "" where its teacher may have seen other photos or labels, for students of its own.
        "held_out": "" if teacher and teacher.about["other_split"] else data.split.held_out,
        "labels": "" if teacher and teacher.about["other_labels"] else data.split.hash,
        "teacher_digest": teacher.about["digest"] if teacher else None,
    }
    resume(run, training, header)
    if loaded and not training.history:
        print(f"weights  {loaded}")
    # All ranks train; the first one measures and writes.
    plain = header | config.recipe | (run.distillation or {})
    plain = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    logs = run.path("logs")
    with Tracker(logs, training.history, plain) if ranks.is_first() else nullcontext() as tracker:

        def after_epoch() -> None:
            check_owner(run)
            save_checkpoint(run.last, header | training.state())
            if tracker:
                tracker.epoch(training.history[-1])

        fit(training, run.train_batches(), run.eval_batches("val"), after_epoch)
        if tracker:
            model.load_state_dict(training.best)
            result = measure_run(run, training, teacher)
            save_checkpoint(run.best, header | {"model": training.best})
            write_results(run, training.history, tracker, result)
            remove(run.last)  # four fifths of what a run writes
    ranks.barrier()
    result = run.result()
    print(f"best epoch {result['best_epoch']}, test accuracy {result['test']['accuracy']:.2%}\n")
    return result


def work(run: Run) -> tuple[float, float]:
    """Multiply-adds of a run's steps (a backward pass is two forward ones), and with validation."""
    config, data, kd = run.config, run.data, run.config.kd
    networks = [config.model, *([kd.teacher] if kd else [])]
    own, *teacher = [multiply_adds(n, len(data.classes), config.image_size) or 1 for n in networks]
    photos = data.counts["train"] + len(data.unlabelled) * bool(kd)
    steps = config.epochs * photos * (3 * own + sum(teacher))
    return steps, steps + config.epochs * data.counts["val"] * (own + sum(teacher))


def forecast(whole: float, others: float, seconds: float, left: float) -> None:
    """Print the time left for this run and all runs. `seconds` is for all steps of this run, `left`
    the share to do; `whole` is its work, `others` the other runs', both relative to its steps."""
    times = seconds * whole * left, seconds * (whole * left + others)
    this, every = (timedelta(seconds=round(time)) for time in times)
    tqdm.write(f"about {this} for this run" + f", {every} for all remaining runs" * bool(others))


def resume(run: Run, training: Training, header: dict[str, Any]) -> None:
    """Print the run's name; continue from last.pt, if any. Raises UserError if it does not fit."""
    if not os.path.lexists(run.last):
        print(run.name + ": nothing to resume, starting at epoch 1" * run.config.resume)
        return
    state = load_checkpoint(run.last)
    check_settings(run.last, state, header)
    with explained(f"{run.last} cannot be resumed: --overwrite trains it again"):
        training.load_state(state)
    print(f"{run.name}: resumed after epoch {len(training.history)}")
    if len(training.devices) > 1:
        print(f"NOTE     started on {state['devices'][0][0]}: the result may differ slightly")


def check_owner(run: Run) -> None:
    """Raise UserError if another process has started this run since this process did."""
    if read_json(run.path("results", "settings.json"))["process"] != PROCESS["process"]:
        raise UserError(f"{run.name}: another process is training it as well: stopping this one")


def load_finished(run: Run) -> Result:
    """The result of a run that was finished before; prints a line, and removes a stale last.pt."""
    with suppress(OSError):  # the folder belongs to another user
        remove(run.last)  # left where a run was killed at its very end
    print(f"{run.name}: already finished")
    return run.result()


def measure_run(run: Run, training: Training, teacher: Teacher | None) -> Result:
    """Measure the best weights on val and, this once, test, for result.json; write test logits."""
    config, data, history, settings = run.config, run.data, training.history, run.settings | PROCESS
    val, _, _ = run.measure_part(training.model, "val")
    test, logits, labels = run.measure_part(training.model, "test")
    arrays: dict[str, Any] = {"logits": logits.numpy(), "labels": labels.numpy()}
    best, final = max(history, key=validation_rank), history[-1]
    result: Result = settings | {
        "tag": config.tag,
        "photos": {
            "name": data.name,
            "sample": config.data == "sample",
            "counts": data.counts,
            "division": data.division,
            "digest": data.decoded.digest,
            **{key: settings[key] for key in ("image_size", "classes", "split")},
            **{key: getattr(config, key) for key in ("folds", "fold", "labels_per_class")},
        },
        "environment": {
            "device": ", then ".join(device for device, _ in training.devices),
            "precision": run.device.precision,
            "ranks": max(count for _, count in training.devices),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        },
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "digest": weights_digest(training.model),
        "table": {
            "best_val_loss": min(row["loss/val"] for row in history),
            "final_train_loss": final["loss/train"],
            "final_val_loss": final["loss/val"],
            "final_val_accuracy": final["accuracy/val"],
        },
        "best_epoch": best["epoch"],
        "seconds": sum(row["seconds"] for row in history),
        "val": val,
        "test": test,
    }
    if teacher:
        theirs, teacher_logits, _ = run.measure_part(teacher.model, "test")
        arrays["teacher_logits"] = teacher_logits.numpy()
        result["teacher"] = teacher.about | {"test": theirs}
        result["agreement"] = {"top1": accuracy(logits, teacher_logits.argmax(1))}
    check_owner(run)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    atomic_write(run.path("results", "test_logits.npz"), packed.getbuffer())
    return result


def write_results(run: Run, history: Sequence[Row], tracker: Tracker, result: Result) -> None:
    """Write what measure_run found; result.json comes last: where it is, all else is, too."""
    metrics = {f"test/{name}": result["test"][name] for name in ("accuracy", "loss", "macro_f1")}
    metrics["best/accuracy/val"] = result["val"]["accuracy"]
    results, unreadable = run.path("results"), run.data.decoded.unreadable
    rows = [history[0], *(row.values() for row in history)]
    atomic_write(results / "history.csv", csv_text(rows))
    atomic_write(results / "split.csv", run.data.split.manifest)
    if unreadable:
        atomic_write(results / "unreadable.csv", csv_text([("path", "reason"), *unreadable]))
    if copies := list_duplicates(run.data.split, run.data.groups):
        head = ("picture", "path", "class", "split")
        atomic_write(results / "duplicates.csv", csv_text([head, *copies]))
    tracker.finish(metrics, result["test"]["confusion"], run.data.classes)
    check_owner(run)
    write_json(results / "result.json", result)
