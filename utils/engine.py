"""The one training loop. What is learned from is the objective's business, not the loop's.

    loss, logits, parts = objective(model, images, labels)

`loss` is a scalar to minimise, `logits` (N, C) are the trained model's, and `parts` names further
scalars to log. `labels` are (N,) class numbers, or (N, C) probabilities where photos are mixed.
"""

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from config import Config, UserError
from utils import ranks
from utils.graphs import GraphedStep, Step
from utils.metrics import accuracy

Row = dict[str, float]
Batch = tuple[Tensor, Tensor]


class Objective(Protocol):
    """What is minimised; `own` holds its trainable parts (an adapter), empty for most."""

    own: nn.ModuleDict

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]: ...


class CrossEntropy:
    """The baseline objective: cross-entropy, with label smoothing ε towards uniform targets.

    Its part `ce` is the cross-entropy without smoothing, which compares with the validation loss.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.own = nn.ModuleDict()

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = model(images).float()
        loss, plain = hard_loss(logits, labels, self.label_smoothing)
        return loss, logits, {"ce": plain}


def hard_loss(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing, to be minimised, and without, to be looked at."""
    loss = cross_entropy(logits, labels, label_smoothing=smoothing)
    return loss, cross_entropy(logits.detach(), labels) if smoothing else loss.detach()


class Learner(nn.Module):
    """A model and its objective as one module: all that is trained is in it, and one call of it
    is a step's forward. What the objective only looks at, such as a teacher, stays outside."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.own, self.objective = model, objective.own, objective

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return self.objective(self.model, images, labels)


class TrainingBatches(Protocol):
    """Batches of the training photos, or this rank's share of them; the same epoch number always
    gives the same batches."""

    def __len__(self) -> int: ...

    def epoch(self, number: int) -> Iterator[Batch]: ...


class EvaluationBatches(Protocol):
    """Batches of a whole split, or this rank's stretch of it, every photo once, in its order."""

    photos: int

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Hardware:
    """Where and how numbers are computed: float32, or bfloat16 under autocast; on a GPU, training
    steps one kernel after the other, or as one graph."""

    device: torch.device
    bf16: bool
    graphs: bool = False

    def autocast(self) -> Any:
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


@dataclass
class Training:
    """A training run between two epochs: everything that it takes to go on."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    history: list[Row] = field(default_factory=list)
    step: Step | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.learner = ranks.parallel(Learner(self.model, self.objective))

    def state(self) -> dict[str, Any]:
        """Tensors and plain values; the teacher is no part of it."""
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.own.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.objective.own.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history[:] = state["history"]


def is_best(history: list[Row]) -> bool:
    """Whether the last epoch is the best one: highest validation accuracy, then lowest loss."""
    return max(history, key=validation_rank) is history[-1]


def validation_rank(row: Row) -> tuple[float, float]:
    """Larger is better; the test photos have no say in it."""
    return row["accuracy/val"], -row["loss/val"]


def make_optimizer(model: nn.Module, own: nn.ModuleDict, config: Config) -> torch.optim.Optimizer:
    """AdamW or SGD over the model's and the objective's parameters, each group with its decay.

    Biases and norms, the parameters of one dimension, are never decayed: pulling a scale towards
    zero is no regulariser.
    """
    parameters = [p for p in (*model.parameters(), *own.parameters()) if p.requires_grad]
    twins = {p: nn.Parameter(as_stored(p.detach())) for p in parameters if not p.is_contiguous()}
    groups = [
        {
            "params": [twins.get(p, p) for p in parameters if p.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=True)
    else:
        # A run has about a thousand steps: averages over the last hundred squared gradients follow
        # it, the usual thousand would not (docs/recipe.md).
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)

    def hand_over_gradients(*_: object) -> None:
        for parameter, twin in twins.items():
            twin.grad = None if parameter.grad is None else as_stored(parameter.grad)

    def let_gradients_go(*_: object) -> None:
        for twin in twins.values():
            twin.grad = None

    optimizer.register_step_pre_hook(hand_over_gradients)
    optimizer.register_step_post_hook(let_gradients_go)
    return optimizer


def as_stored(kernels: Tensor) -> Tensor:
    """(O, I, H, W) kernels that are stored channels last, as the (O, H, W, I) that they are in
    memory. The fused optimizers copy whatever is in another order than its shape says, which on a
    CPU took them longer than their own work."""
    return kernels.permute(0, 2, 3, 1)


def learning_rate(step: int, steps_per_epoch: int, config: Config) -> float:
    """The rate of a step (counted from 0): linear warm-up, then cosine to zero, or constant."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    training: Training,
    train: TrainingBatches,
    val: EvaluationBatches,
    config: Config,
    hardware: Hardware,
    *,
    seed: int,
    after_epoch: Callable[[Training], None],
) -> None:
    """Train from the epoch that `training` has reached up to `config.epochs`.

    After every epoch one row of named numbers joins `training.history` and `after_epoch` is
    called, on rank 0, which may save a checkpoint and draw curves. An epoch with a loss that is not
    finite raises UserError and leaves no row and no checkpoint. Epochs depend on (seed, epoch)
    and the state alone, so a run that was interrupted goes on as if nothing had happened.
    """
    done = len(training.history)
    epochs = range(done + 1, config.epochs + 1)
    for epoch in progress(epochs, "epochs", config.epochs, initial=done):
        started = time.perf_counter()
        row: Row = {"epoch": epoch}
        row |= train_epoch(training, train, config, hardware, seed=seed, epoch=epoch)
        logits, labels, parts = evaluate(training.model, training.objective, val, hardware)
        row |= {f"{name}/val": value for name, value in parts.items()}
        row |= {
            "loss/val": cross_entropy(logits, labels).item(),
            "accuracy/val": accuracy(logits, labels),
            "seconds": time.perf_counter() - started,
            "wall_time": time.time(),
        }
        check_finite(row["loss/val"], "validation", epoch)
        training.history.append(row)
        if ranks.is_first():
            after_epoch(training)
        ranks.wait()
        tqdm.write(summary_line(row, config.epochs))


def progress(items: Iterable[Any], what: str, total: int, initial: int = 0) -> Any:
    """A bar on rank 0's terminal; none where stderr is no terminal."""
    quiet = None if ranks.is_first() else True
    return tqdm(items, what, total, initial=initial, leave=False, disable=quiet)


def train_epoch(
    training: Training,
    train: TrainingBatches,
    config: Config,
    hardware: Hardware,
    *,
    seed: int,
    epoch: int,
) -> Row:
    """One pass over the training photos; returns mean loss, accuracy, parts, rate and speed.

    Raises UserError when the loss is no longer finite. Sums stay on the device: reading a number
    back makes the host wait, so it happens once in fifty steps only.
    """
    training.model.train()
    training.step = training.step or training_step(training, config, hardware)
    torch.manual_seed(seed * 1_000_003 + epoch)  # for models with dropout
    steps, photos, started = len(train), 0, time.perf_counter()
    sums: dict[str, Tensor] = {}
    bar = progress(train.epoch(epoch), f"epoch {epoch}", steps)
    for step, (images, labels) in enumerate(bar):
        rate = learning_rate((epoch - 1) * steps + step, steps, config)
        set_rate(training.optimizer, rate)
        for name, value in training.step(images, labels).items():
            sums[name] = sums.get(name, 0) + value * len(images)
        photos += len(images)
        if step % 50 == 49 or step == steps - 1:
            mean_loss = sums["loss"].item() / photos
            bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            check_finite(mean_loss, "training", epoch)
    ranks.average_buffers(training.model)
    photos *= ranks.count()
    means = {f"{name}/train": ranks.summed(total).item() / photos for name, total in sums.items()}
    seconds = time.perf_counter() - started
    return {**means, "lr": rate, "images_per_second": photos / seconds}


def check_finite(loss: float, part: str, epoch: int) -> None:
    """Raise UserError for a loss that is not a finite number."""
    if not math.isfinite(loss):
        raise UserError(
            f"epoch {epoch}: the {part} loss is no longer finite; a lower --lr, --clip-norm 1 or "
            "--precision float32 may help"
        )


def training_step(training: Training, config: Config, hardware: Hardware) -> Step:
    """What is done with one batch; returns the loss, the accuracy and the parts as scalars that
    stay on the device."""
    # Not `training` itself, which keeps the step: in a circle, a recorded step would hold the GPU's
    # memory beyond its run.
    learner, optimizer = training.learner, training.optimizer
    trained = [p for p in learner.parameters() if p.requires_grad]
    keep_freed_memory()

    def step(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with hardware.autocast():
            loss, logits, parts = learner(images, labels)
        learner.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        truth = labels.argmax(1) if labels.ndim == 2 else labels
        right = (logits.argmax(1) == truth).float().mean()
        return {"loss": loss.detach(), "accuracy": right} | parts

    return GraphedStep(step, optimizer) if hardware.graphs else step


def keep_freed_memory() -> None:
    """Let this process keep what a step frees on the host for the next step, where it can (glibc).

    By default large blocks go back to the system at once, and every step waits until it has been
    given the same pages anew, zeroed: a tenth of a ResNet18's step at 224 px on two CPU cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in its place where it is a tensor that a graph reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def evaluate(
    model: nn.Module, objective: Objective, batches: EvaluationBatches, hardware: Hardware
) -> tuple[Tensor, Tensor, Row]:
    """All logits (N, C) float32 and labels (N,) int64 of a split, on the CPU, in its order, and
    the mean over the photos of each of the objective's parts.

    The model computes in eval mode and is left in the mode in which it came.
    """
    was_training = model.training
    model.eval()
    all_logits, all_labels = [], []
    sums: dict[str, Tensor] = {}
    with torch.inference_mode():
        for images, labels in batches:
            with hardware.autocast():
                _, logits, parts = objective(model, images, labels)
            all_logits.append(logits)
            all_labels.append(labels)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value * len(images)
    model.train(was_training)
    logits, labels = torch.cat(all_logits).cpu(), torch.cat(all_labels).cpu()
    if len(logits) != batches.photos:
        raise RuntimeError(f"{len(logits)} photos were evaluated instead of {batches.photos}")
    logits, labels = ranks.gathered(logits), ranks.gathered(labels)
    means = {name: ranks.summed(total).item() / len(logits) for name, total in sums.items()}
    return logits, labels, means


def predict(
    model: nn.Module, batches: EvaluationBatches, hardware: Hardware
) -> tuple[Tensor, Tensor]:
    """Logits and labels of a split, as `evaluate` gives them."""
    logits, labels, _ = evaluate(model, CrossEntropy(), batches, hardware)
    return logits, labels


def summary_line(row: Row, epochs: int) -> str:
    """One plain line about an epoch."""
    return (
        f"epoch {row['epoch']:3.0f}/{epochs}  "
        f"train loss {row['loss/train']:.4f} acc {row['accuracy/train']:6.2%}  "
        f"val loss {row['loss/val']:.4f} acc {row['accuracy/val']:6.2%}  "
        f"lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
    )
