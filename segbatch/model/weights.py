"""Weights: read state_dict files without running code in them, and load them into networks."""

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

# Keys under which training scripts save the state_dict.
WRAPPERS = ("state_dict", "model", "model_state_dict")
# Prefixes that wrappers of a network give to all keys: DDP, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_file(uri: str) -> bytes:
    """The bytes of a model file.

    Raises :class:`~segbatch.errors.ModelError` if it is missing or forbidden, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    return storage.read_input(uri, ModelError)


def decode_state(data: bytes, where: str) -> State:
    """The state_dict in a safetensors file, or in a file of ``torch.save``, which is not unpickled.

    A file of ``torch.save`` may have it under one of :data:`WRAPPERS`, and its keys may have
    :data:`PREFIXES`, which are removed. Raises :class:`~segbatch.errors.ModelError`, naming the
    file ``where``, for anything else.
    """
    if where.endswith(".safetensors"):
        return decode_safetensors(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # errors are reported below, in one line
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{where}: not a file of torch.save, or it holds more than tensors, which could run"
            " code; save only the network's state_dict(), preferably as .safetensors"
        ) from error
    except Exception as error:  # the readers of zip and pickle raise anything on a broken file
        raise ModelError(
            f"{where}: damaged, or not a file of torch.save: {storage.one_line(error)}"
        ) from error
    return _plain(saved, where)


def decode_safetensors(data: bytes, where: str) -> State:
    """The tensors of a safetensors file; raises ``ModelError`` for a damaged one."""
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # a wrong header makes it raise anything
        raise ModelError(
            f"{where}: damaged, or not a safetensors file: {storage.one_line(error)}"
        ) from error


def fit(network: Network, state: State, what: str, where: str) -> None:
    """Load ``state`` into ``network``; both must have the same keys, of the same shapes.

    Raises :class:`~segbatch.errors.ModelError` otherwise, in one line that names the architecture
    ``what`` and the file ``where``.
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
        parts += [f"have {_first(unknown)}, which the network does not"] * bool(unknown)
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
            raise ModelError(f"{where}: damaged: {key} has values that are not finite numbers")
    network.load_state_dict(state)


def _plain(saved: Any, where: str) -> State:
    for wrapper in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
            break
    if not isinstance(saved, dict) or not saved:
        raise ModelError(f"{where}: holds a {type(saved).__name__}, not a state_dict")
    for key, value in saved.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"{where}: not a state_dict: {key!r} is a {type(value).__name__}")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in saved):
            saved = {key.removeprefix(prefix): value for key, value in saved.items()}
    return dict(saved)


def _first(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
