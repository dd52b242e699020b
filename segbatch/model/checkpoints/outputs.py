"""What the outputs of a graph give, found out by its last operations and by what it gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from segbatch.console import say
from segbatch.errors import JobFailed, ModelError
from segbatch.model.checkpoints.checkpoint import Known
from segbatch.model.checkpoints.inspection import LAYERS, PICTURE, name_of
from segbatch.model.config import GraphInput, GraphOutput, Layout
from segbatch.model.graph import CLASS_AXIS, as_logits, sides_of_labels

Kind = Literal["logits", "probabilities", "labels"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order in which outputs are preferred
SIGMOIDS = ("Sigmoid", "HardSigmoid", "HSigmoid")
# What operations give. Of all others, the values are looked at.
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys(
        (*LAYERS, "ConvolutionBackpropData", "GroupConvolutionBackpropData", "LogSoftmax"), "logits"
    ),
    **dict.fromkeys((*SIGMOIDS, "Softmax"), "probabilities"),
    **dict.fromkeys(("TopK", "Greater", "GreaterEqual", "Less", "LessEqual", "Round"), "labels"),
}
# Operations after which values mean what they meant before.
KEEPING = ("Result", "Convert", "FakeQuantize", "Identity", "Interpolate", "LogicalNot", "Reshape",
           "Squeeze", "Transpose", "Unsqueeze")  # fmt: skip
TOLERANCE = 1e-2  # of probabilities and of their sums, of quantised graphs too
LARGEST_STRETCH = 1.25  # of rows against columns, compared with the picture


@dataclass(frozen=True)
class Found:
    """An output that has something for each pixel: what it gave on the picture, and what that is.

    ``traced`` is the kind that its operations tell, ``None`` if they do not. ``kind`` is that one,
    or the one that the user names or the values tell; ``None`` if nothing does. ``number`` is that
    of classes, ``None`` if it is not seen. ``layout`` says where the classes are, ``None`` for
    labels.
    """

    name: str
    answer: npt.NDArray[Any]
    traced: Kind | None
    kind: Kind | None
    number: int | None
    layout: Layout | None

    @property
    def is_one_channel(self) -> bool:
        """Whether it has one value for each pixel that is no class id: a sigmoid, or its logit."""
        return self.kind != "labels" and has_one_channel(self.answer)

    def output(self, num_classes: int, takes: GraphInput) -> GraphOutput:
        """The output, with its stride: the input's side divided by its own, rounded.

        Raises :class:`~segbatch.errors.ModelError` for class ids that are none.
        """
        assert self.kind is not None
        output = GraphOutput(self.name, self.kind, layout=self.layout)
        try:
            coarse = as_logits(self.answer, output, num_classes)
        except JobFailed as error:
            raise ModelError(str(error)) from error
        stride = max(1, round((takes.size or PICTURE)[0] / coarse.shape[2]))
        return replace(output, stride=stride)


def output_of(
    source: str, model: Any, answers: dict[str, npt.NDArray[Any]], takes: GraphInput, known: Known
) -> tuple[Found, list[str]]:
    """The output to use, and the names of the others that could be used.

    Those with as many classes as the user names come first, of these logits before probabilities
    before labels. ``known.output`` is a kind, the name of an output, or ``NAME=KIND``. Raises
    :class:`~segbatch.errors.ModelError` if no output fits, or it is not seen what one gives.
    """
    name, kind = _asked_output(source, answers, known.output)
    ports = {name_of(port, index): port for index, port in enumerate(model.outputs)}
    found = [
        _found(key, value, ports[key], asked=kind, takes=takes, known=known)
        for key, value in answers.items()
        if name in (None, key) and _fits(value, kind, takes)
    ]
    if not found:
        shapes = ", ".join(f"{key} {value.shape}" for key, value in answers.items())
        needs = "(n, h, w), (n, 1, h, w) or (n, h, w, 1)"
        if kind != "labels":
            needs = f"(n, classes, h, w) or (n, h, w, classes), for one channel or labels {needs}"
        raise ModelError(f"{source}: gives {shapes}; {kind or 'an output'} must be {needs}")
    chosen = min(found, key=lambda one: _preference(one, kind, known))
    others = [one.name for one in found if one is not chosen]
    if others:
        say(f"{source}: taken is {chosen.name}, not {', '.join(others)}; --output names another")
    if (objection := _objection(chosen, kind)) is not None:
        raise ModelError(f"{source}: {objection}")
    return chosen, others


def _asked_output(
    source: str, answers: dict[str, Any], asked: str | None
) -> tuple[str | None, Kind | None]:
    if asked is None:
        return None, None
    if asked in KINDS:
        return None, asked
    name, _, kind = asked.rpartition("=")
    if kind not in KINDS:
        name, kind = asked, ""
    if name not in answers:
        raise ModelError(
            f"{source}: --output {asked}: must be {', '.join(KINDS)}, NAME, or NAME=KIND; its"
            f" outputs are {', '.join(answers)}"
        )
    return name, cast(Kind, kind) if kind else None


def _fits(value: npt.NDArray[Any], kind: Kind | None, takes: GraphInput) -> bool:
    """Whether an output has the shape of ``kind``, or of any."""
    if not has_one_channel(value):
        is_of_classes = value.ndim == 4 and 1 not in (value.shape[1], value.shape[3])
        return is_of_classes and kind != "labels"
    # Features of a transformer's tokens have this rank, too, but not the shape of the picture.
    height, width = takes.size or PICTURE
    rows, columns = sides_of_labels(value.shape)
    stretch = rows / height * width / columns
    return _is_whole(value) or 1 / LARGEST_STRETCH <= stretch <= LARGEST_STRETCH


def has_one_channel(value: npt.NDArray[Any]) -> bool:
    """Whether an output has one value for each pixel."""
    if value.ndim == 4 and 1 not in (value.shape[1], value.shape[3]):
        return False
    return value.ndim in (3, 4) and min(sides_of_labels(value.shape)) > 1


def _is_whole(value: npt.NDArray[Any]) -> bool:
    return bool(value.dtype.kind in "biu" or (value == np.rint(value)).all())


def _traced(port: Any, value: npt.NDArray[Any]) -> Kind | None:
    """The kind that the last operations of an output tell, ``None`` if they do not."""
    while port.get_node().get_type_name() in KEEPING:
        port = port.get_node().input_value(0)
    node = port.get_node()
    kind = KIND_OF.get(node.get_type_name())
    if node.get_type_name() == "Add":  # of a bias
        added = [KIND_OF.get(one.get_node().get_type_name()) for one in node.input_values()]
        kind = "logits" if "logits" in added else None
    elif node.get_type_name() == "TopK" and port.get_index() == 0:
        kind = None  # the values of the winners, not their ids
    if has_one_channel(value):
        return "labels" if kind is None and value.dtype.kind in "biu" else kind
    # Several channels are no ids, and those of sigmoids need not sum to one.
    return None if kind == "labels" or node.get_type_name() in SIGMOIDS else kind


def _seen(value: npt.NDArray[Any]) -> Kind | None:
    """The kind that values tell, ``None`` if they do not."""
    low, high = value.min(), value.max()
    is_from_0_to_1 = low >= -TOLERANCE and high <= 1 + TOLERANCE
    if has_one_channel(value):
        if _is_whole(value):
            return "labels" if low < high else None
        return "probabilities" if is_from_0_to_1 else "logits"
    if not is_from_0_to_1:
        return "logits"
    sums = (value.sum(axis, dtype=np.float32) for axis in CLASS_AXIS.values())
    return "probabilities" if any(np.allclose(one, 1, atol=TOLERANCE) for one in sums) else None


def _found(
    name: str,
    answer: npt.NDArray[Any],
    port: Any,
    *,
    asked: Kind | None,
    takes: GraphInput,
    known: Known,
) -> Found:
    traced = _traced(port, answer)
    # What a convolution gives can be trained with any loss: the user knows better.
    is_certain = traced in ("probabilities", "labels")
    kind = traced if is_certain else asked or traced or _seen(answer)
    if kind == "labels":
        return Found(name, answer, traced, kind, _num_labels(port), None)
    return Found(name, answer, traced, kind, *_classes_of(answer, takes, known))


def _num_labels(port: Any) -> int | None:
    """The number of classes among which a label map chooses; ``None`` if it is not seen, as where
    the ids are computed with afterwards.
    """
    node = port.get_node()
    while node.get_type_name() in KEEPING:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "TopK":
        return None
    side = node.input_value(0).partial_shape[node.get_axis()]
    return None if side.is_dynamic else int(side.get_length())


def _classes_of(answer: npt.NDArray[Any], takes: GraphInput, known: Known) -> tuple[int, Layout]:
    """The number of classes of logits or probabilities, and the layout: that of the input, or the
    other one where only that has as many classes as the user names. One channel has two classes.
    """
    if has_one_channel(answer):
        return 2, "NCHW" if answer.ndim == 3 or answer.shape[1] == 1 else "NHWC"
    numbers: dict[Layout, int] = {key: answer.shape[axis] for key, axis in CLASS_AXIS.items()}
    layout = takes.layout
    if known.classes is not None and numbers[layout] != len(known.classes):
        fitting = (key for key, number in numbers.items() if number == len(known.classes))
        layout = next(fitting, layout)
    return numbers[layout], layout


def _preference(one: Found, asked: Kind | None, known: Known) -> tuple[bool, ...]:
    """Orders outputs: the smallest is the likeliest to be what the user wants."""
    # One value for each pixel can also be a confidence or a depth.
    is_guess = one.kind is None or (one.is_one_channel and one.traced is None)
    # A user can forget the name of the background of one channel.
    number = known.classes and max(2, len(known.classes))
    has_other_number = None not in (number, one.number) and one.number != number
    is_other_kind = asked is not None and one.traced != asked
    order = (one.kind != kind for kind in KINDS)
    return is_guess, has_other_number, is_other_kind, *order


def _objection(one: Found, asked: Kind | None) -> str | None:
    """Why an output cannot be taken as it is, and what to do; ``None`` if it can."""
    name, answer = one.name, one.answer
    if asked not in (None, one.kind):
        return f"{name} gives {one.kind}, not {asked}: --output {name}={one.kind}"
    if one.is_one_channel and answer.dtype.kind in "biu":
        return f"{name} gives {one.kind} as {answer.dtype}: export it with an output of float32"
    if one.kind is None and one.is_one_channel:
        return (
            f"{name} is {answer.flat[0]:g} at each pixel of a test picture, so it is not seen what"
            f" it gives: --output {name}=labels, {name}=probabilities or {name}=logits"
        )
    if one.kind is None:
        return (
            f"{name} gives {one.number} classes from 0 to 1 that do not sum to 1, as of a sigmoid"
            f" each, so a pixel can be of none: if one of them is the background, --output"
            f" {name}=probabilities takes the likeliest; if not, export it with a first channel of"
            " 0.5 for the background"
        )
    return None
