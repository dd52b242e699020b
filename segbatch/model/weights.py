"""Weights: state_dict files, read without running anything in them, and fitted into networks."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from segbatch import storage
from segbatch.errors import ModelError
from segbatch.model.zoo import Network

State = dict[str, Tensor]

# Where training scripts put the state_dict in what they save.
WRAPPERS = ("state_dict", "model", "model_state_dict")
# What wrappers of a network put before each of its keys: DDP, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_file(uri: str) -> bytes:
    """The bytes of a file of a model.

    Raises :class:`~segbatch.errors.ModelError` where it is missing or forbidden, and
    :class:`~segbatch.errors.Incomplete` where storage does not answer.
    """
    return storage.read_input(uri, ModelError)


def decode_state(data: bytes, where: str) -> State:
    """The state_dict in a safetensors file, or in one of ``torch.save``, which is not unpickled.

    In the latter it may stand under ``state_dict`` or ``model``; prefixes that DDP and other
    wrappers give to all keys are taken off. ``where`` is for the message of the
    :class:`~segbatch.errors.ModelError` that is raised for anything else.
    """
    if where.endswith(".safetensors"):
        return decode_safetensors(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said below, in one line
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{where}: not a file of torch.save, or more than tensors is in it, which could run"
            " code; save the network's state_dict() alone, best as .safetensors"
        ) from error
    except Exception as error:  # whatever the readers of zip and pickle make of a broken file
        raise ModelError(
            f"{where}: damaged, or not a file of torch.save: {storage.one_line(error)}"
        ) from error
    return _plain(saved, where)


def decode_safetensors(data: bytes, where: str) -> State:
    """The tensors of a safetensors file; raises ``ModelError`` for a damaged one."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of a wrong header it raises anything
        raise ModelError(
            f"{where}: damaged, or no safetensors: {storage.one_line(error)}"
        ) from error


def fit(network: Network, state: State, what: str, where: str) -> None:
    """Load ``state`` into ``network``: every key of either in both, and of one shape.

    ``what`` names the architecture and ``where`` the file in the one line of the
    :class:`~segbatch.errors.ModelError` that is raised otherwise.
    """
    expected = network.state_dict()
    head = f"{network.head_key}.weight"
    if head in state and state[head].ndim and len(state[head]) != len(expected[head]):
        raise ModelError(
            f"{where}: these weights know {len(state[head])} classes, but"
            f" {len(expected[head])} were given"
        )
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    if missing or unknown:
        parts = [f"lack {_first(missing)}"] * bool(missing)
        parts += [f"have {_first(unknown)}, which it does not"] * bool(unknown)
        raise ModelError(f"{where}: not weights of {what}: they {' and '.join(parts)}")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise ModelError(
                f"{where}: not weights of {what}: {key} is {tuple(tensor.shape)}, must be"
                f" {tuple(expected[key].shape)}"
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ModelError(f"{where}: not weights of {what}: {key} is {tensor.dtype}")
        is_plain = tensor.layout == torch.strided and not tensor.is_meta
        if not is_plain or not torch.isfinite(tensor).all():
            raise ModelError(f"{where}: damaged: {key} holds something else than finite numbers")
    network.load_state_dict(state)


def _plain(saved: Any, where: str) -> State:
    for wrapper in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
            break
    if not isinstance(saved, dict) or not saved:
        raise ModelError(f"{where}: holds a {type(saved).__name__} and no state_dict")
    for key, value in saved.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"{where}: no state_dict: {key!r} is a {type(value).__name__}")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in saved):
            saved = {key.removeprefix(prefix): value for key, value in saved.items()}
    return dict(saved)


def _first(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
