"""The loop that fits a network to labelled images: one process, one device, a number of steps.

Everything that is random follows from the seed, so the same call gives the same network on the
same machine. The length is a number of steps and not of seconds for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segbatch.classes import IGNORE_INDEX
from segbatch.training.augment import augmented

Array = npt.NDArray[np.uint8]
Color = tuple[float, float, float]

SETTLING_BATCHES = 12


@dataclass(frozen=True)
class Fitted:
    """What a training leaves besides the network: the mean loss of each step's batch."""

    losses: list[float]


def fit(
    module: nn.Module,
    images: Sequence[Array],
    label_maps: Sequence[Array],
    *,
    steps: int,
    batch_size: int,
    crop: int,
    lr: float,
    mean: Color,
    std: Color,
    seed: int = 0,
    weight_decay: float = 0.01,
    scale_range: tuple[float, float] = (0.75, 1.5),
    color_jitter: float = 0.2,
    class_weights: Sequence[float] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Fit ``module`` (NCHW float in, logits NCHW out) in place; it is left in eval mode.

    ``images`` are HWC uint8, ``label_maps`` HW uint8 of class ids and the ignore index; ``mean``
    and ``std`` are of the colours, 0 to 1. ``on_step`` is called with the steps done and the loss.
    Raises ``ValueError`` for what cannot be trained on: nothing, unlike shapes, a batch of one.
    """
    _check(images, label_maps, batch_size)
    device = next(module.parameters()).device
    module.to(memory_format=torch.channels_last)  # faster on CPUs too
    normalise = _Normaliser(mean, std, device)
    weights = None if class_weights is None else torch.tensor(class_weights, device=device)
    # Decay is for what multiplies; a norm's scale or a bias has no reason to be small.
    decayed = [p for p in module.parameters() if p.ndim > 1]
    free = [p for p in module.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=lr,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step / steps))
    losses = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for dropout
        batches = _batches(
            images, label_maps, batch_size, seed,
            crop=crop, scale_range=scale_range, color_jitter=color_jitter, fill=normalise.fill,
        )  # fmt: skip
        module.train()
        for step in range(1, steps + 1):
            pixels, truth = next(batches)
            logits = module(normalise(pixels))
            loss = nn.functional.cross_entropy(
                logits, truth.to(device), weight=weights, ignore_index=IGNORE_INDEX
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if on_step is not None:
                on_step(step, losses[-1])
        settle_batchnorm(module, (normalise(next(batches)[0]) for _ in range(SETTLING_BATCHES)))
    return Fitted(losses)


def pace(progress: float) -> float:
    """Share of the learning rate at ``progress``, 0 to 1: up in a straight line, down in a cosine.

    A network that begins at random takes its largest steps early, but not as its first.
    """
    rise = 0.1
    if progress < rise:
        return 0.05 + 0.95 * progress / rise
    return 0.5 + 0.5 * math.cos(math.pi * (progress - rise) / (1 - rise))


def settle_batchnorm(module: nn.Module, batches: Iterator[Tensor]) -> None:
    """Measure the statistics of all batch norms anew over ``batches``; leaves eval mode.

    While the weights still move, running averages trail behind them. After a short training that
    is enough to spoil what the network does in eval mode.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    module.eval()  # dropout would widen what the norms after it see
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


class _Normaliser:
    """uint8 NHWC to the float NCHW that a network expects, on its device."""

    def __init__(self, mean: Color, std: Color, device: torch.device) -> None:
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)
        red, green, blue = (round(255 * value) for value in mean)
        self.fill = (red, green, blue)

    def __call__(self, pixels: Tensor) -> Tensor:
        nchw = pixels.to(self.mean.device).permute(0, 3, 1, 2)
        return (nchw / 255 - self.mean) / self.std


def _batches(
    images: Sequence[Array],
    label_maps: Sequence[Array],
    batch_size: int,
    seed: int,
    *,
    crop: int,
    scale_range: tuple[float, float],
    color_jitter: float,
    fill: tuple[int, int, int],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end: uint8 NHWC and int64 NHW. Each image once before any comes again."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += rng.permutation(len(images)).tolist()
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        pairs = [
            augmented(
                rng, images[index], label_maps[index],
                crop=crop, scale_range=scale_range, color_jitter=color_jitter, fill=fill,
            )
            for index in chosen
        ]  # fmt: skip
        pixels, truth = (np.stack(part) for part in zip(*pairs, strict=True))
        yield torch.from_numpy(pixels), torch.from_numpy(truth).long()


def _check(images: Sequence[Array], label_maps: Sequence[Array], batch_size: int) -> None:
    if not images or len(images) != len(label_maps):
        raise ValueError(f"{len(images)} images and {len(label_maps)} label maps to train on")
    if batch_size < 2:
        raise ValueError("batch_size must be at least 2: batch norm has no variance of one image")
    for index, (image, label_map) in enumerate(zip(images, label_maps, strict=True)):
        if image.shape != (*label_map.shape, 3):
            raise ValueError(f"image {index} is {image.shape}, its label map {label_map.shape}")
