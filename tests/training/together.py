"""Runs two workers that exchange gradients, each in its own process."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from segbatch.training import distributed
from segbatch.training.recipe import batch_norms
from segbatch.training.step import Diverged, Training
from tests.drivers import FORKS
from tests.training import toy

WORLD_SIZE = 2
STEPS = 3


def on_two_workers(folder: Path) -> list[dict[str, Any]]:
    """The results of each worker, by the kind of step or the name of a function below."""
    processes = [FORKS.Process(target=_worker, args=(rank, folder)) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()  # if it is still there
        process.join()
    assert [process.exitcode for process in processes] == [0] * WORLD_SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD_SIZE)]


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=WORLD_SIZE,
        timeout=timedelta(seconds=120),
    )
    scenes = {kind: steps(**keys, rank=rank, world_size=WORLD_SIZE) for kind, keys in KINDS.items()}
    more = {"averaged": averaged(rank), "diverged": diverged(rank), "counted": counted(rank)}
    torch.save(scenes | more, folder / f"{rank}.pt")
    dist.destroy_process_group()


def steps(
    micro_batches: int, *, spare: bool = False, rank: int = 0, world_size: int = 1, **keys: Any
) -> tuple[list[float], Tensor]:
    """Losses and weights after some steps in which only the data are random: norms are frozen,
    and there is no dropout.
    """
    network = toy.Toy(dropout=0.0, spare=spare)
    given = toy.training(
        toy.recipe(freeze="batchnorm", **keys), network, micro_batches=micro_batches
    )
    losses = toy.run(given, STEPS, micro_batches=micro_batches, rank=rank, world_size=world_size)
    return losses, toy.weights(given)


def averaged(rank: int) -> dict[str, Any]:
    """Weights, and statistics of the norm before and after they are averaged."""
    given = toy.training(toy.recipe(), micro_batches=2)
    toy.run(given, STEPS, micro_batches=2, rank=rank, world_size=WORLD_SIZE)
    before = _statistics(given)
    given.average_statistics()
    return {"weights": toy.weights(given), "before": before, "after": _statistics(given)}


def _statistics(given: Training) -> list[Tensor]:
    [norm] = batch_norms(given.network)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [norm.running_mean.clone(), norm.running_var.clone()]


def diverged(rank: int) -> str:
    """The second worker's loss is NaN."""
    given = toy.training(toy.recipe(), micro_batches=2)
    if rank == 1:
        head = given.network.head
        head.register_forward_hook(lambda _module, _images, logits: logits * float("nan"))
    try:
        toy.run(given, 1, micro_batches=2, rank=rank, world_size=WORLD_SIZE)
    except Diverged as error:
        return str(error)
    return "went on"


def counted(rank: int) -> list[int]:
    counts: list[int] = distributed.all_sum_counts(
        np.array([rank + 1, 10]), torch.device("cpu")
    ).tolist()
    return counts


# Kinds of steps that should equal those of one worker that does all the micro-batches.
KINDS: dict[str, dict[str, Any]] = {
    "two micro_batches each": {"micro_batches": 4},
    "two micro_batches and one": {"micro_batches": 3, "batch_size": 6},
    "an auxiliary head without weight": {"micro_batches": 2, "loss": {"auxiliary": 0.0}},
    "weights that nothing depends on": {"micro_batches": 2, "spare": True},
}
