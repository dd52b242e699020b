"""Weights: read state_dict files without running code in them, and load them into networks."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import pathlib
import pickle
import shlex
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from segbatch import storage
from segbatch.errors import ModelError
from segbatch.model.networks import Network
from segbatch.storage import hub

State = dict[str, Tensor]
Found = tuple[str, State]  # the key of a state_dict in its file, and the state_dict

# Keys under which training scripts save the state_dict, the likeliest first.
WRAPPERS = (
    "state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights",
    "ema_state_dict", "model_ema", "ema",
)  # fmt: skip
# Prefixes that wrappers of a network give to all keys: DDP, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


class _Unread:
    """Stands for an object that is not read."""


def _no_attribute(*_: Any) -> None:
    """Stands for ``getattr``, which would reach anything."""


# Types that training scripts save with the weights; creating one runs no code of the file's.
_numpy = import_module("numpy._core.multiarray")
HARMLESS: list[Any] = [
    argparse.Namespace, collections.Counter, collections.defaultdict, collections.deque,
    datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone,
    pathlib.PosixPath, pathlib.PurePosixPath, np.dtype, np.ndarray,
    _numpy.scalar, (_numpy.scalar, "numpy.core.multiarray.scalar"),  # of NumPy 2, and of 1
    _numpy._reconstruct, (_numpy._reconstruct, "numpy.core.multiarray._reconstruct"),
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLefdU"),
    dict, list, set, str, int, float, bool,
    # The curves of MMEngine, whose buffers name their methods.
    (_Unread, "mmengine.logging.history_buffer.HistoryBuffer"), (_no_attribute, "builtins.getattr"),
]  # fmt: skip


def read_file(uri: str) -> bytes:
    """The bytes of a model file.

    Raises :class:`~segbatch.errors.ModelError` if it is missing or forbidden, and
    :class:`~segbatch.errors.Incomplete` if storage does not answer.
    """
    if not hub.is_on_hub(uri):
        return storage.read_input(uri, ModelError)
    with storage.translate_errors("cannot read", ModelError):
        return hub.cached_file(uri).read_bytes()


def decode_state(data: bytes, where: str) -> State:
    """The state_dict in a file, without :data:`PREFIXES`; as :func:`decode_checkpoint`."""
    state = decode_checkpoint(data, where)[1]
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def decode_checkpoint(data: bytes, where: str) -> tuple[dict[str, Any], State]:
    """What a file holds, and the state_dict in it.

    The file is one of safetensors, or of ``torch.save``, which is not unpickled. The latter may
    have the state_dict in mappings. Raises :class:`~segbatch.errors.ModelError`, naming the file
    ``where``, for anything else.
    """
    if where.lower().endswith(".safetensors") and not data.startswith(b"PK"):
        state = decode_safetensors(data, where)
        return dict(state), state
    if _is_torchscript(data):
        name = json.dumps(storage.name_of(where))
        code = f'import torch; torch.save(torch.jit.load({name}).state_dict(), "weights.pth")'
        raise ModelError(
            f"{where}: is a TorchScript archive, which is code; save its weights alone with:"
            f" python -c {shlex.quote(code)}"
        )
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # errors are reported below, in one line
            saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{where}: {_why_not_loaded(data)}") from error
    except Exception as error:  # the readers of zip and pickle raise anything on a broken file
        raise ModelError(
            f"{where}: damaged, or not a file of torch.save: {storage.one_line(error)}"
        ) from error
    state = _plain(saved, where)
    return saved, state


def _is_torchscript(data: bytes) -> bool:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def _why_not_loaded(data: bytes) -> str:
    try:
        with torch.serialization.safe_globals(HARMLESS):
            types = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    except Exception:  # as above
        types = []
    if not types:
        return (
            "not a file of torch.save, or it holds more than tensors, which could run code; save"
            " only the network's state_dict(), preferably as .safetensors"
        )
    shown = ", ".join(sorted(types)[:3]) + " …" * (len(types) > 3)
    return (
        f"holds more than tensors ({shown}), which could run code; save only the network's"
        " state_dict(), preferably as .safetensors"
    )


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
    # Counters that only a momentum of None uses; old torch and transformers do not save them.
    counters = {
        key: value for key, value in expected.items() if key.endswith("num_batches_tracked")
    }
    state = counters | state
    missing = [key for key in expected if key not in state]
    unknown = [key for key in state if key not in expected]
    if missing or unknown:
        parts = [f"lack {listed(missing)}"] * bool(missing)
        parts += [f"have {listed(unknown)}, which the network does not"] * bool(unknown)
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


def is_extra(key: str) -> bool:
    """Whether a tensor next to a network's own is known to be no part of one."""
    return key in ("n_averaged", "mean", "std") or key.startswith(("criterion.", "loss"))


def _plain(saved: Any, where: str) -> State:
    if not isinstance(saved, dict) or not saved:
        raise ModelError(f"{where}: holds a {type(saved).__name__}, not a state_dict")
    found = list(_state_dicts(saved))
    if not found:
        keys = ", ".join(map(str, list(saved)[:5]))
        raise ModelError(f"{where}: no state_dict in it; it has {keys[:200]}")
    ranks = {name: rank for rank, name in enumerate(("", *WRAPPERS))}
    _, state = min(found, key=lambda pair: (ranks.get(pair[0], len(ranks)), -len(pair[1])))
    return state


def _state_dicts(saved: Mapping[Any, Any], name: str = "", depth: int = 2) -> Iterator[Found]:
    """The mappings of names to tensors in what ``torch.save`` saved, each with its key."""
    tensors = {k: v for k, v in saved.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors and not any(isinstance(value, dict) for value in saved.values()):
        yield name, tensors
    for key, value in saved.items() if depth else ():
        if isinstance(value, dict) and isinstance(key, str) and key != "optimizer":
            yield from _state_dicts(value, key, depth - 1)


def listed(keys: Sequence[str]) -> str:
    """The first three keys, and how many more there are."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(keys[:3]) + more
