"""Knowledge distillation as an objective of the engine.

    L = (1 - alpha) * CE(y, s) + alpha * T^2 * KL(p(t, T) || p(s, T))  [+ weight * term]

METHODS lists the methods. To add one, write its loss, give it an entry, and `--method` knows it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config import Config, KDConfig, UserError
from models.features import feature_layers, logits_and_maps
from utils import losses
from utils.engine import CrossEntropy, Output, hard_loss


@dataclass(frozen=True)
class Method:
    """A distillation method, with exactly one of the two losses; those name the papers."""

    # Replaces the KL in L. Takes student and teacher logits (N, C), labels, temperature, weight.
    logits_loss: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] | None = None
    # Added to L, summed over `strides`. Takes student and teacher feature maps (N, C, H, W).
    feature_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    strides: tuple[int, ...] = ()
    weight: float | None = None  # default of --weight: of the term, or beta of a logits loss
    # Whether a trained 1×1 convolution maps the student's channels to the teacher's.
    adapter: bool = False
    hard_labels: bool = False  # whether it needs one label per photo, of three or more classes

    def __post_init__(self) -> None:
        by_logits, by_maps = self.logits_loss is not None, self.feature_loss is not None
        if by_logits == by_maps or by_maps != bool(self.strides):
            raise ValueError("a Method has a logits_loss, or a feature_loss and strides")


# With a ResNet50 as teacher, these weights of feature and relation losses make the term about as
# large as the cross-entropy at the end. RepDistiller's (Tian et al. 2020,
# https://arxiv.org/abs/1910.10699), 100, 10, 10 and 30 times as large, were worse on validation.
METHODS = {
    "kd": Method(lambda s, t, _, T, weight: losses.kd_loss(s, t, T)),
    "dkd": Method(losses.dkd_loss, weight=8.0, hard_labels=True),  # the authors' beta for ResNets
    "dist": Method(lambda s, t, _, T, beta: losses.dist_loss(s, t, T, beta), weight=2.0),
    "fitnet": Method(feature_loss=losses.fitnet_loss, strides=(16,), weight=1.0, adapter=True),
    "attention": Method(feature_loss=losses.attention_loss, strides=(4, 8, 16, 32), weight=100.0),
    "rkd": Method(feature_loss=losses.rkd_loss, strides=(32,), weight=0.1),  # 25 distance, 50 angle
    "sp": Method(feature_loss=losses.sp_loss, strides=(32,), weight=100.0),
}


def check_method(config: Config, classes: int = 3, unlabelled: int = 0) -> None:
    """Raise UserError for a method that does not fit the recipe, the networks or the photos, whose
    classes and number without a label need not be known yet."""
    assert config.kd
    for network in (config.model, config.kd.teacher):
        feature_layers(network, config.image_size, METHODS[config.kd.method].strides)
    if METHODS[config.kd.method].hard_labels:
        if unlabelled:
            raise UserError(f"--method {config.kd.method} needs the label of each photo, unlike kd")
        if config.mixup:
            what = "separates the photo's class from the others, and with --mixup a photo has two"
            raise UserError(f"--method {config.kd.method} {what}: omit one of them")
        if classes < 3:
            raise UserError(f"--method {config.kd.method} needs three classes or more; kd does not")


class Distillation(CrossEntropy):
    """The distillation objective. A plain object, not an nn.Module, so that the student's train(),
    parameters() and state_dict() cannot reach the teacher: it stays in eval mode, gets no gradients
    and is not saved in checkpoints. It sees the student's pixels, crops and mixup included."""

    def __init__(self, config: Config, teacher_model: nn.Module, device: torch.device) -> None:
        """Adapters are initialised from the seed; the global random state is left as it was."""
        super().__init__(config.label_smoothing)
        assert config.kd
        self.kd: KDConfig = config.kd
        self.method = METHODS[self.kd.method]
        size, strides = config.image_size, self.method.strides
        self.layers = feature_layers(config.model, size, strides)
        self.teacher_layers = feature_layers(self.kd.teacher, size, strides)
        self.teacher = teacher_model.eval().requires_grad_(False)
        if self.method.adapter:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed)  # manual_seed reaches GPUs, too
                for stride, s, t in zip(strides, self.layers, self.teacher_layers, strict=True):
                    self.adapters[str(stride)] = nn.Conv2d(s.channels, t.channels, 1)
            self.adapters.to(device)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Output:
        method, kd, weight = self.method, self.kd, float(self.kd.weight or 0)
        with torch.no_grad():
            teacher_logits, targets = logits_and_maps(self.teacher, self.teacher_layers, images)
        logits, maps = logits_and_maps(model, self.layers, images)
        for index, adapter in enumerate(self.adapters.values()):
            maps[index] = adapter(maps[index].float())
        with torch.autocast(images.device.type, enabled=False):  # the losses are in float32
            logits, teacher_logits = logits.float(), teacher_logits.float()
            hard, plain = hard_loss(logits, labels, self.label_smoothing)
            if method.logits_loss:
                soft = method.logits_loss(logits, teacher_logits, labels, kd.temperature, weight)
            else:
                soft = losses.kd_loss(logits, teacher_logits, kd.temperature)
            loss = (1 - kd.alpha) * hard + kd.alpha * soft
            parts = {"ce": plain, kd.method if method.logits_loss else "kd": soft.detach()}
            if method.feature_loss:
                maps, targets = ([m.float() for m in each] for each in (maps, targets))
                term = torch.stack([*map(method.feature_loss, maps, targets)]).sum()
                loss = loss + weight * term
                parts[kd.method] = term.detach()
        same = logits.argmax(1) == teacher_logits.argmax(1)
        return loss, logits, parts | {"agreement": same.float().mean()}
