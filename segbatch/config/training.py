"""The keys of a fine-tune job about training: ``model``, ``train``, ``resources``, ``limits``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from segbatch.config.keys import CpusPerWorker, Location, Positive, Strict, is_workers

Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]


class FromBackbone(Strict):
    """A new network that starts from the weights of its backbone."""

    arch: Literal["deeplabv3plus", "deeplabv3", "segformer", "upernet", "fpn", "unet", "pspnet"] = (
        "deeplabv3plus"
    )
    """``deeplabv3plus``, ``deeplabv3``, ``segformer``, ``upernet``, ``fpn``, ``unet`` or
    ``pspnet``."""
    backbone: str = "resnet50"
    """See ``segbatch model list``; for ``segformer``, the default is ``mit_b0``."""
    output_stride: Literal[8, 16] | None = None
    """``null``: the architecture's default, 16 for ``deeplabv3plus``."""
    backbone_weights: Location | None = "imagenet"
    """``imagenet`` (the library's, downloaded), a file of classification weights, or ``null``."""

    @model_validator(mode="before")
    @classmethod
    def _own_backbone(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("arch") == "segformer":
            return {"backbone": "mit_b0", **values}
        return values


class FromBundle(Strict):
    """A network that starts from a model bundle."""

    bundle: Location = Field(alias="from")
    """A model bundle. If its classes differ, the head is rebuilt; classes of the same name keep
    their weights."""


def parse_network(value: Any) -> FromBackbone | FromBundle:
    """The value of ``model:`` as a network to train."""
    if isinstance(value, FromBackbone | FromBundle):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("must be {arch: …, backbone: …} or {from: BUNDLE}")
    if "from" in value and len(value) > 1:
        raise ValueError("from takes the network as it is: remove the other keys")
    return (FromBundle if "from" in value else FromBackbone).model_validate(value)


class Optimizer(Strict):
    """The optimizer and its parameters."""

    name: Literal["sgd", "adamw"] = "sgd"
    """``sgd`` or ``adamw``."""
    lr: Above0 = 0.01
    """Peak learning rate of the backbone."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of ``sgd``; the first beta of ``adamw``."""
    weight_decay: AtLeast0 = 1e-4
    """Weight decay of weights; biases and norms have none."""
    head_lr_factor: Above0 = 10
    """Learning rate of all layers outside the backbone, as a multiple of ``lr``."""


class Schedule(Strict):
    """How the learning rate falls with the number of images seen."""

    name: Literal["poly", "cosine", "constant"] = "poly"
    """``poly``, ``cosine`` or ``constant``."""
    power: Above0 = 0.9
    """Exponent of ``poly``: lr × (1 − progress) ^ power."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Images over which the rate first rises linearly."""


class Loss(Strict):
    """The loss function."""

    name: Literal["cross_entropy", "dice", "focal", "lovasz", "ohem"] = "cross_entropy"
    """``cross_entropy``, ``dice``, ``focal``, ``lovasz``, or ``ohem``: cross entropy over the
    hardest quarter of the pixels."""
    class_weights: Literal["median_frequency"] | list[AtLeast0] | None = None
    """``null``, ``median_frequency``, or one weight per class, by id."""
    auxiliary: AtLeast0 = 0.4
    """Weight of the auxiliary head's loss, if the network has one (``deeplabv3``)."""
    scales: list[Annotated[float, Field(ge=0.25, le=2.0)]] = Field([1.0], min_length=1)
    """The loss is the mean over the crop at these scales."""

    @model_validator(mode="after")
    def _weights_have_an_effect(self) -> Loss:
        if self.class_weights is not None and self.name not in ("cross_entropy", "ohem"):
            raise ValueError(f"class_weights have no effect on {self.name}: set them to null")
        return self


class Augment(Strict):
    """Augmentation of training images."""

    scale_range: tuple[Above0, Above0] = Field((0.5, 2.0), strict=False)
    """Smallest and largest random scale."""
    flip_probability: Share = 0.5
    """Probability that an image is mirrored."""
    color_jitter: Share = 0.2
    """Brightness, contrast and saturation change by a random factor of up to 1 ± this."""

    @model_validator(mode="after")
    def _range_rises(self) -> Augment:
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError("scale_range must be [smallest, largest]")
        return self


class Train(Strict):
    """How the network is trained."""

    epochs: Positive = 50
    """Number of times that each image is seen."""
    batch_size: Positive = 16
    """Images of one step, over all workers; fewer workers keep it by accumulating gradients."""
    accumulation: Positive = 1
    """Number of parts into which each worker splits its share of a step, to save memory."""
    long_side: Annotated[int, Field(ge=32)] | None = 1024
    """Images are first resized to this longer side, in pixels; it is saved in the model."""
    crop: Annotated[int, Field(ge=32)] = 513
    """Side of the random square crop, in pixels."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    augment: Augment = Augment()
    freeze: Literal["backbone", "batchnorm"] | None = None
    """``backbone``: its weights and norms are frozen; ``batchnorm``: the statistics of all norms
    are."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: fp32 on CPUs, bf16 on GPUs that support it, else fp16."""
    early_stopping: Positive | None = None
    """Training ends after this many epochs without a better mIoU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of order, augmentation, dropout and new weights."""


# Keys of `train` whose default is another one for some networks. Source: Xie et al., "SegFormer:
# Simple and Efficient Design for Semantic Segmentation with Transformers", 2021, section 4.1.
TRANSFORMER_RECIPE: dict[str, dict[str, Any]] = {
    "optimizer": {"name": "adamw", "lr": 6e-5, "weight_decay": 0.01, "head_lr_factor": 10.0},
    "schedule": {"name": "poly", "power": 1.0},
}


def with_recipe(train: Train, arch: str, backbone: str) -> Train:
    """``train`` with the defaults of a network in the keys that the user left out.

    SegFormer, and other heads on its backbones, are trained with AdamW. An optimizer or schedule
    that the user names keeps its own defaults.
    """
    if arch != "segformer" and not backbone.startswith("mit_"):
        return train
    changes: dict[str, Any] = {}
    for group, defaults in TRANSFORMER_RECIPE.items():
        keys: Optimizer | Schedule = getattr(train, group)
        if "name" in keys.model_fields_set and keys.name != defaults["name"]:
            continue
        left_out = {k: v for k, v in defaults.items() if k not in keys.model_fields_set}
        changes[group] = keys.model_copy(update=left_out)
    return train.model_copy(update=changes)


def _checked_workers(value: Any) -> Any:
    if not is_workers(value):
        raise ValueError(f"must be a number of workers, or [min, max], not {value!r}")
    return value


class TrainResources(Strict):
    """What the training workers use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU if there is one."""
    workers: Annotated[Any, BeforeValidator(_checked_workers)] = 2
    """A number, or ``[min, max]`` for elastic training."""
    gpus_per_worker: Positive = 1
    """GPUs reserved for one worker, which trains on one of them."""
    cpus_per_worker: CpusPerWorker = "auto"
    """CPUs of one worker; without a GPU also its threads."""

    @property
    def num_workers(self) -> tuple[int, int]:
        """Smallest and largest number of workers."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        low, high = self.workers
        return low, high


class TrainLimits(Strict):
    """When a training has failed."""

    max_failures: Annotated[int, Field(ge=0)] = 3
    """Number of times that lost workers are replaced before the job fails."""
    allow_empty_classes: bool = False
    """Train although a class has no pixel in ``train``, so that the model never learns it."""


def check_batch_size(train: Train, resources: TrainResources) -> None:
    """Raises ``ValueError`` if a batch cannot be divided among the workers."""
    most = resources.num_workers[1]
    parts = most * train.accumulation
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size: {train.batch_size} images cannot be divided among {most}"
            f" workers × {train.accumulation} parts: make it a multiple of {parts}"
        )
