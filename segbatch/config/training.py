"""What is trained and how: ``model:``, ``train:`` and ``resources:`` of a fine-tune job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from segbatch.config.keys import CpusPerWorker, Location, Positive, Strict, is_workers

Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]


class Network(Strict):
    """A network that is trained from its backbone's weights."""

    arch: Literal["deeplabv3plus", "deeplabv3"] = "deeplabv3plus"
    """``deeplabv3plus`` or ``deeplabv3``."""
    backbone: str = "resnet50"
    """See ``segbatch model list``."""
    output_stride: Literal[8, 16] | None = None
    """``null``: the architecture's own, 16 for ``deeplabv3plus``."""
    backbone_weights: Location | None = "imagenet"
    """``imagenet`` (its library's, downloaded), a file of classification weights, or ``null``."""


class Start(Strict):
    """A network that goes on from a model."""

    bundle: Location = Field(alias="from")
    """A model bundle. Where its classes are others, the head is rebuilt, and classes of the same
    name keep their rows."""


def network_of(value: Any) -> Network | Start:
    """The network that ``model:`` stands for."""
    if isinstance(value, Network | Start):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be {arch: …, backbone: …} or {from: BUNDLE}")
    if "from" in value and len(value) > 1:
        raise ValueError("from takes the network as it is: leave the other keys out")
    return (Start if "from" in value else Network).model_validate(value)


class Optimizer(Strict):
    """What moves the weights."""

    name: Literal["sgd", "adamw"] = "sgd"
    """``sgd`` or ``adamw``."""
    lr: Above0 = 0.01
    """Learning rate of the backbone at its highest."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of ``sgd``; the first beta of ``adamw``."""
    weight_decay: AtLeast0 = 1e-4
    """Of weights; biases and norms have none."""
    head_lr_factor: Above0 = 10
    """Learning rate of everything that is not the backbone, as a multiple of ``lr``."""


class Schedule(Strict):
    """How the learning rate falls; it counts images seen."""

    name: Literal["poly", "cosine", "constant"] = "poly"
    """``poly``, ``cosine`` or ``constant``."""
    power: Above0 = 0.9
    """Of ``poly``: lr × (1 − progress) ^ power."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Images over which the rate first rises in a straight line."""


class Loss(Strict):
    """What is made small."""

    name: Literal["cross_entropy", "dice", "focal", "lovasz", "ohem"] = "cross_entropy"
    """``cross_entropy``, ``dice``, ``focal``, ``lovasz``, or ``ohem``: cross entropy over the
    hardest quarter of the pixels."""
    class_weights: Literal["median_frequency"] | list[AtLeast0] | None = None
    """``null``, ``median_frequency``, or a weight per class, by id."""
    auxiliary: AtLeast0 = 0.4
    """Weight of the auxiliary head's loss, where the network has one (``deeplabv3``)."""
    scales: list[Annotated[float, Field(ge=0.25, le=2.0)]] = Field([1.0], min_length=1)
    """Scales of the crop over whose losses the mean is taken."""

    @model_validator(mode="after")
    def _weights_have_an_effect(self) -> Loss:
        if self.class_weights is not None and self.name not in ("cross_entropy", "ohem"):
            raise ValueError(f"class_weights do nothing to {self.name}: set them to null")
        return self


class Augment(Strict):
    """How training images are varied."""

    scale_range: tuple[Above0, Above0] = Field((0.5, 2.0), strict=False)
    """Smallest and largest scale."""
    flip_probability: Share = 0.5
    """How often an image is mirrored."""
    color_jitter: Share = 0.2
    """Brightness, contrast and saturation change by a factor of up to 1 ± this."""

    @model_validator(mode="after")
    def _range_rises(self) -> Augment:
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError("scale_range must be [smallest, largest]")
        return self


class Train(Strict):
    """The recipe."""

    epochs: Positive = 50
    """How often each image is seen."""
    batch_size: Positive = 16
    """Images of one step, of all workers together; kept by accumulation when there are fewer."""
    accumulation: Positive = 1
    """Parts in which each worker does its share of a step, one after the other: less memory."""
    long_side: Annotated[int, Field(ge=32)] | None = 1024
    """Images are first brought to this longer side, in pixels; it goes into the model."""
    crop: Annotated[int, Field(ge=32)] = 513
    """Side of the square that is cut out, in pixels."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    augment: Augment = Augment()
    freeze: Literal["backbone", "batchnorm"] | None = None
    """``backbone``: its weights and norms stay; ``batchnorm``: the statistics of all norms stay."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: fp32 on the CPU, bf16 on GPUs that have it, else fp16."""
    early_stopping: Positive | None = None
    """Epochs without a better mIoU after which training ends."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Order, augmentation, dropout and new weights follow from it."""


def _checked_workers(value: Any) -> Any:
    if not is_workers(value):
        raise ValueError(f"must be a number of workers, or [min, max], not {value!r}")
    return value


class TrainResources(Strict):
    """What the training workers take."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: the GPU where there is one."""
    workers: Annotated[Any, BeforeValidator(_checked_workers)] = 2
    """A number, or ``[min, max]``: elastic."""
    gpus_per_worker: Positive = 1
    """GPUs of one worker; it trains on one of them."""
    cpus_per_worker: CpusPerWorker = "auto"
    """CPUs of one worker; on the CPU also its threads."""

    @property
    def num_workers(self) -> tuple[int, int]:
        """Smallest and largest number."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        low, high = self.workers
        return low, high


class TrainLimits(Strict):
    """When a training has failed."""

    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced before the job gives up."""


def trainable(train: Train, resources: TrainResources) -> None:
    """Raises ``ValueError`` for a batch that cannot be shared out among the workers."""
    most = resources.num_workers[1]
    parts = most * train.accumulation
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size: {train.batch_size} images cannot be shared out among {most}"
            f" workers × {train.accumulation} parts: make it a multiple of {parts}"
        )
