"""What ``segbatch model import`` works on: a file or folder as found, and what was made of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from segbatch import storage
from segbatch.errors import ModelError
from segbatch.masks.classes import Classes
from segbatch.model import weights
from segbatch.model.config import RGB
from segbatch.model.weights import State
from segbatch.storage import hub

# A folder's file of weights, the likeliest first.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Known:
    """What the user says of a model; ``None`` where its files know it, or a default is right.

    ``mean`` and ``std`` are in the range of the input, 0 to 1 or 0 to 255.
    """

    arch: str | None = None
    backbone: str | None = None
    classes: Classes | None = None
    output_stride: int | None = None
    mean: RGB | None = None
    std: RGB | None = None
    long_side: int | None = None
    input_range: tuple[float, float] | None = None
    output: str | None = None

    @property
    def is_up_to_255(self) -> bool:
        """Whether ``mean`` and ``std`` are of pixels up to 255."""
        if self.mean is None or self.std is None:
            return False
        return max(self.mean) > 1 or max(self.std) > 1.5

    def from_0_to_1(self, values: RGB | None) -> RGB | None:
        """``mean`` or ``std`` for pixels from 0 to 1."""
        if values is None or not self.is_up_to_255:
            return values
        red, green, blue = (round(value / 255, 6) for value in values)
        return red, green, blue


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a network in a file, with what lies next to them.

    ``state`` is the state_dict as the file has it, ``saved`` all of what ``torch.save`` saved,
    ``folder`` the URI of the folder of the file, ``sha256`` that of the file.
    """

    uri: str
    folder: str
    state: State
    saved: Mapping[str, Any]
    sha256: str

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file of the folder, ``None`` if there is no such file.

        Raises :class:`~segbatch.errors.ModelError` for a file that is no JSON object.
        """
        return read_json(storage.join(self.folder, name))


class Inner(NamedTuple):
    """The weights of one network, under its own keys, and the other keys of its file."""

    state: State
    left_out: list[str]


@dataclass(frozen=True)
class Candidate:
    """A network that a checkpoint was recognised as.

    ``what`` names it in words, ``state`` has its weights under the keys of ``library``,
    ``left_out`` the other keys of the file. ``names`` and ``colors`` are those of its classes,
    ``notes`` lines to say. ``None`` where the files do not know. ``has_sigmoids``: each class was
    trained with a sigmoid of its own, as one channel always is; ``threshold`` is the probability
    above which such a class is seen.
    """

    what: str
    library: str
    arch: str
    backbone: str
    state: State
    left_out: list[str]
    output_stride: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    names: list[str] | None = None
    colors: list[tuple[int, int, int]] | None = None
    mean: RGB | None = None
    std: RGB | None = None
    long_side: int | None = None
    notes: tuple[str, ...] = ()
    has_sigmoids: bool = False
    threshold: float = 0.5


def read_text(uri: str) -> str | None:
    """The text of a small file; ``None`` if it is not there.

    Raises :class:`~segbatch.errors.ModelError` if it cannot be read or is no text.
    """
    if not exists(uri):
        return None
    try:
        return weights.read_file(uri).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{uri}: not a text in UTF-8") from error


def read_json(uri: str) -> dict[str, Any] | None:
    """The JSON object in a small file, ``None`` if there is no such file; raises ``ModelError``."""
    text = read_text(uri)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{uri}: not JSON: {storage.one_line(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{uri}: not a JSON object")
    return value


def exists(uri: str) -> bool:
    """Whether there is a file at a URI, also one of the Hub."""
    with storage.translate_errors("cannot read", ModelError):
        if not hub.is_on_hub(uri):
            return storage.exists(uri)
        try:
            hub.cached_file(uri)
        except FileNotFoundError:
            return False
        return True


def inner_state(state: State, signature: str, *, needs: str = "") -> Inner | None:
    """The network that a state_dict has under the prefix of a key that ends in ``signature``.

    The prefix is what wrappers add (``module.``, ``net.``). Of several networks, as of a student
    and its average, the one with the most tensors is taken, or the first. ``None`` if no key ends
    so, or none of that network begins with ``needs``.
    """
    prefixes = [
        key.removesuffix(signature)
        for key in state
        if key == signature or key.endswith(f".{signature}")
    ]
    found = []
    for prefix in prefixes:
        within = tuple(one for one in prefixes if one != prefix and one.startswith(prefix))
        keys = [key for key in state if key.startswith(prefix) and not key.startswith(within)]
        if any(key.startswith(prefix + needs) for key in keys):
            found.append((prefix, keys))
    if not found:
        return None
    prefix, keys = max(found, key=lambda pair: len(pair[1]))
    inner = {key.removeprefix(prefix): state[key] for key in keys}
    left_out = state.keys() - keys
    return Inner(inner, [key for key in state if key in left_out])


def long_side_of(read: str, short: int, long: int | None = None) -> tuple[int, str]:
    """The longer side of a photograph of 4:3 whose sides are scaled to at most ``short`` and
    ``long``, and a note that says so; ``read`` is what the files say.

    A model has a longer side alone, and the shape of the photographs is not known.
    """
    side = round(short * 4 / 3)
    if long is not None:
        side = min(side, long)
    return side, (
        f"{read}: taken as a longer side of {side} pixels, which is right for photographs of 4:3;"
        " --long-side sets another"
    )


def check_names_of_sigmoids(source: str, classes: Classes, num_channels: int) -> None:
    """Raise :class:`~segbatch.errors.ModelError` unless there is a name for the pixels that none of
    the channels sees, and one for each channel.
    """
    has = "one channel, a sigmoid" if num_channels == 1 else f"{num_channels} sigmoids"
    if len(classes) == num_channels:
        raise ModelError(
            f"{source}: has {has}, and needs a name for the other pixels, too: --classes"
            f" background,{','.join(classes.names)}"
        )
    if len(classes) != num_channels + 1:
        raise ModelError(
            f"{source}: has {has}: it needs {num_channels + 1} names, that of the other pixels"
            f" first, and {len(classes)} were given"
        )


def resnet_of(keys: Collection[str], stage: str) -> str | None:
    """Which ResNet of bottlenecks a network has, by the blocks of its third stage; ``None`` if it
    is another one. ``stage`` is the prefix of that stage's keys.
    """
    starts = {key.removeprefix(stage).partition(".")[0] for key in keys if key.startswith(stage)}
    number = sum(start.isdigit() for start in starts)
    is_bottleneck = f"{stage}0.conv3.weight" in keys
    return {6: "resnet50", 23: "resnet101"}.get(number) if is_bottleneck else None
