"""The training loop. The objective decides what is minimised:

    loss, logits, parts = objective(model, images, labels)

`loss` is a scalar to minimise, `logits` (N, C) are the trained model's, and `parts` names further
scalars to log. `labels` are (N,) class numbers, -1 for photos without one, or mixed (N, C) floats.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from config import Config, UserError
from data.batches import EvalBatches, TrainBatches
from utils import ranks
from utils.device import Device
from utils.metrics import accuracy

Row = dict[str, float]
Output = tuple[Tensor, Tensor, dict[str, Tensor]]  # loss, logits, parts
Step = Callable[[Tensor, Tensor], dict[str, Tensor]]


class CrossEntropy:
    """Cross-entropy, with label smoothing towards uniform targets; its part `ce` has none, like the
    validation loss. Other objectives extend it; `adapters` holds their trainable parts."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.adapters = nn.ModuleDict()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Output:
        logits = model(images).float()
        loss, plain = hard_loss(logits, labels, self.label_smoothing)
        return loss, logits, {"ce": plain}


def hard_loss(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing, to minimise, and without, to log. Both are means over the
    labelled photos, for which TrainBatches scales mixed targets; others have label -1 or zeros."""

    def loss(logits: Tensor, smoothing: float) -> Tensor:
        if labels.ndim == 1:
            return cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
        return cross_entropy(logits, labels.lerp(labels.mean(1, keepdim=True), smoothing))

    smooth = loss(logits, smoothing)
    return smooth, loss(logits.detach(), 0.0) if smoothing else smooth.detach()


class TrainModule(nn.Module):
    """A model and its objective as one module: it contains everything trainable, and calling it is
    a step's forward pass. What the objective only reads, such as a teacher, stays outside."""

    def __init__(self, model: nn.Module, objective: CrossEntropy) -> None:
        super().__init__()
        self.model, self.adapters, self.objective = model, objective.adapters, objective

    def forward(self, images: Tensor, labels: Tensor) -> Output:
        return self.objective(self.model, images, labels)


@dataclass
class Training:
    """A training run between two epochs: everything that it takes to resume it."""

    model: nn.Module
    objective: CrossEntropy
    config: Config
    device: Device
    history: list[Row] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # the best epoch's weights, on the CPU
    step: Step | None = field(default=None, init=False)  # the GraphedStep, with CUDA graphs
    forecast: Callable[[float, float], None] | None = None  # called once: seconds, share left

    def __post_init__(self) -> None:
        self.module = ranks.parallel(TrainModule(self.model, self.objective))
        self.optimizer = make_optimizer(self.module, self.config)
        self.devices = [(str(self.device), ranks.count())]  # also those before it was resumed

    def state(self) -> dict[str, Any]:
        """Tensors and plain values; the teacher is not part of it."""
        return {
            "model": self.model.state_dict(),
            "best": self.best,
            "adapters": self.objective.adapters.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "devices": self.devices,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["best"])  # to see that it fits
        self.model.load_state_dict(state["model"])
        self.objective.adapters.load_state_dict(state["adapters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history[:], self.best = state["history"], state["best"]
        self.devices = [*dict.fromkeys([*state["devices"], *self.devices])]


def make_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW or SGD. Biases and norms are not decayed: shrinking a scale does not regularise."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]
    kinds = ((decayed, config.weight_decay), (others, 0.0))
    groups = [{"params": some, "weight_decay": decay} for some, decay in kinds if some]
    fused = None if any(map(torch.is_complex, parameters)) else True
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=fused)
    # β₂ = 0.99 averages squared gradients over about 100 steps. The usual 0.999, over about 1,000,
    # would lag behind in runs of about 1,000 steps (docs/recipe.md).
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=fused)


def fit(
    training: Training, train: TrainBatches, val: EvalBatches, after_epoch: Callable[[], None]
) -> None:
    """Train from the epoch that `training` has reached up to the configuration's last one. After
    each epoch, a row of named numbers is appended to `training.history`, and rank 0 calls
    `after_epoch`; before that, a non-finite loss raises UserError. Epochs depend only on the state
    and (seed, epoch), so that an interrupted run resumes as if it had never stopped."""
    last = training.config.epochs
    for epoch in range(len(training.history) + 1, last + 1):
        started = time.perf_counter()
        row: Row = {"epoch": epoch} | train_epoch(training, train, epoch)
        logits, labels, parts = evaluate(training.model, training.objective, val, training.device)
        row |= {f"{name}/val": value for name, value in parts.items()} | {
            "loss/val": cross_entropy(logits, labels).item(),
            "accuracy/val": accuracy(logits, labels),
            "seconds": time.perf_counter() - started,
            "wall_time": time.time(),
        }
        check_finite(row["loss/val"], "validation", epoch)
        training.history.append(row)
        if max(training.history, key=validation_rank) is row:
            weights = training.model.state_dict().items()
            training.best = {name: value.to("cpu", copy=True) for name, value in weights}
        if ranks.is_first():
            after_epoch()
        ranks.barrier()
        print(
            f"epoch {epoch:3}/{last}  "
            f"train loss {row['loss/train']:.4f} acc {row['accuracy/train']:6.2%}  "
            f"val loss {row['loss/val']:.4f} acc {row['accuracy/val']:6.2%}  "
            f"lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
        )


def validation_rank(row: Row) -> tuple[float, float]:
    """Larger is better: validation accuracy, then loss; test photos are not used to choose."""
    return row["accuracy/val"], -row["loss/val"]


def train_epoch(training: Training, train: TrainBatches, epoch: int) -> Row:
    """One pass over the training photos; returns mean loss, accuracy, parts, learning rate and
    speed. Sums stay on the device: on a GPU, only every 50th step waits to read them."""
    config, device = training.config, training.device
    module, optimizer = training.module, training.optimizer

    # Nothing here may refer to `training`, which holds the captured step: with a reference cycle,
    # its GPU memory would outlive the run.
    def train_step(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with device.autocast():
            loss, logits, parts = module(images, labels)
        module.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimizer.step()
        known, truth = labels >= 0, labels
        if labels.ndim == 2:  # known where half of the mix is
            known, truth = labels.sum(1) >= train.scale / 2, labels.argmax(1)
        right = ((logits.argmax(1) == truth) & known).sum() / known.sum()
        return {"loss": loss.detach(), "accuracy": right} | parts

    step: Step = train_step
    if device.graphs:
        from utils.graphs import GraphedStep  # only on GPUs

        step = training.step = training.step or GraphedStep(train_step, optimizer)
    training.model.train()
    torch.manual_seed(config.seed * 1_000_003 + epoch)  # for models with dropout
    steps, cold = len(train), 0
    started = warm = time.perf_counter()
    sums: dict[str, Tensor] = {}
    # A progress bar on rank 0, if stderr is a terminal.
    hidden = None if ranks.is_first() else True
    bar = tqdm(train.epoch(epoch), f"epoch {epoch}", steps, leave=False, disable=hidden)
    for number, (images, labels) in enumerate(bar):
        rate = learning_rate((epoch - 1) * steps + number, steps, config)
        set_rate(optimizer, rate)
        for name, value in step(images, labels).items():
            sums[name] = sums.get(name, 0) + value
        if number == 2 < steps - 1:  # the first steps also pay for warming up
            warm, cold = time.perf_counter(), 3
        slow = device.device.type == "cpu" and time.perf_counter() - started > 6
        if slow or number % 50 == 49 or number == steps - 1:
            mean_loss = sums["loss"].item() / (number + 1)
            bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            check_finite(mean_loss, "training", epoch)
            if training.forecast and number >= min(3, steps - 1):
                seconds = (time.perf_counter() - warm) / (number + 1 - cold) * steps * config.epochs
                training.forecast(seconds, 1 - (epoch - 1 + (number + 1) / steps) / config.epochs)
                training.forecast = None
    elapsed, count = time.perf_counter() - started, steps * ranks.count()
    row = {f"{name}/train": ranks.all_reduce(sums[name]).item() / count for name in sums}
    return row | {"lr": rate, "images_per_second": steps * config.batch_size / elapsed}


def learning_rate(step: int, steps_per_epoch: int, config: Config) -> float:
    """The rate of a step (counted from 0): linear warm-up, then cosine to zero, or constant."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / (config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, in place where it is a tensor that a CUDA graph reads."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate


def check_finite(loss: float, part: str, epoch: int) -> None:
    """Raise UserError for a loss that is not a finite number."""
    if not math.isfinite(loss):
        hint = "try a lower --lr, --clip-norm 1 or --precision float32, with --overwrite or --tag"
        raise UserError(f"epoch {epoch}: the {part} loss is no longer finite; {hint}")


@torch.inference_mode()
def evaluate(
    model: nn.Module, objective: CrossEntropy, batches: EvalBatches, device: Device
) -> tuple[Tensor, Tensor, Row]:
    """All logits (N, C) float32 and labels (N,) int64 of a split, on the CPU, in its order, and
    the mean over the photos of each of the objective's parts. Leaves the model in eval mode."""
    model.eval()
    all_logits, sums = [], dict[str, Tensor]()
    for images, labels in batches:
        with device.autocast():
            _, logits, parts = objective(model, images, labels)
        all_logits.append(logits)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value * len(images)
    logits = torch.cat(all_logits).cpu()
    means = {name: total.item() / len(logits) for name, total in sums.items()}
    return logits, batches.labels.cpu(), means
