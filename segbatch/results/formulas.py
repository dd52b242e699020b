"""Formulas of a job file: arithmetic over the coverages of classes.

    window_to_wall: window / (window + wall + brick)
    greenery: 100 * (vegetation + "street tree")

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/") factor }
    factor  = "-" factor | "(" sum ")" | number | class

A class is written as its name or its field; a name with characters other than letters, digits and
``_`` is put in double quotes. Formulas are never run as SQL or Python. They are parsed into a
postfix program, plain data that travels to workers and is evaluated for all images of a batch at
once.

Python's ``ast`` does not fit: it rejects class names that are keywords (``in``, ``lambda``),
normalises unicode names, accepts ``1_000`` and comments, overflows on deep nesting, and its errors
do not name the wrong token.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segbatch.errors import InputError
from segbatch.masks.classes import Classes, field_name
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.storage import composed

# Structs with a field for each class, which are columns of their own in the view `wide`.
FLATTENED = ("pixels", "coverage", "confidence", "components")

MAX_LENGTH = 10_000  # characters: the sum of 254 classes fits
MAX_DEPTH = 50  # nested parentheses and minus signs

Array = npt.NDArray[np.float64]
Instruction = float | int | str  # push a number | push the coverage of a class | apply

OPERATORS: dict[str, Callable[[Array, Array], Array]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}

NAME = r"[^\W\d]\w*"
TOKEN = re.compile(
    rf"""\s* (?:
        (?P<number> (?: [0-9]+ (?: \. [0-9]* )? | \. [0-9]+ ) (?: [eE] [+-]? [0-9]+ )? )
      | (?P<name> {NAME} )
      | " (?P<quoted> [^"]* ) "
      | (?P<symbol> [-+*/()] )
      | (?P<end> \Z )
      | (?P<unknown> . )
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True)
class Formula:
    """A parsed formula; ``program`` is postfix and has class ids in place of names."""

    name: str
    text: str
    program: tuple[Instruction, ...]

    @classmethod
    def parse(cls, name: str, text: str, classes: Classes) -> Formula:
        """Parse the formula ``text``, which becomes the column ``name``.

        Raises :class:`~segbatch.errors.InputError` for a name that cannot be a column, for wrong
        syntax, and for an unknown class.
        """
        where = f"formulas.{name}"
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise InputError(
                f"{where}: the name becomes a column: lower-case letters, digits and _, and no"
                " digit first"
            )
        if name in RESERVED_COLUMNS:
            raise InputError(f"{where}: results have a column {name} already; rename the formula")
        if name in {f"{column}_{c.field}" for column in FLATTENED for c in classes}:
            raise InputError(f"{where}: the view `wide` has a column {name} already; rename it")
        if len(text) > MAX_LENGTH:
            raise InputError(f"{where}: {len(text)} characters; at most {MAX_LENGTH} are allowed")
        return cls(name, text, _Parser(where, text, classes).parse())

    def evaluate(self, coverage: npt.NDArray[np.floating]) -> Array:
        """The value for each image, ``(rows,)`` float64, from coverages ``(rows, classes)``.

        NaN stands for null: if a step divides by zero or its result is not finite, if the value
        does not fit into float32, or if a coverage that the formula uses is NaN.
        """
        shares: Array = np.asarray(coverage, np.float64)
        stack: list[Array] = []
        with np.errstate(all="ignore"):
            for instruction in self.program:
                match instruction:
                    case float():
                        stack.append(np.full(len(shares), instruction))
                    case int():
                        stack.append(shares[:, instruction])
                    case str():
                        right, left = stack.pop(), stack.pop()
                        value = OPERATORS[instruction](left, right)
                        # After each step: 1 / (1 / 0) would otherwise be 0 again.
                        stack.append(np.where(np.isfinite(value), value, np.nan))
        (result,) = stack
        return np.where(np.abs(result) <= np.finfo(np.float32).max, result, np.nan)

    def as_sql(self, share_of: Callable[[int], str]) -> str:
        """The formula as an SQL expression; ``share_of`` gives that of a class id.

        NULL where a step divides by zero.
        """
        stack: list[str] = []
        for instruction in self.program:
            match instruction:
                case float():
                    stack.append(f"{instruction!r}::DOUBLE")
                case int():
                    stack.append(share_of(instruction))
                case str():
                    right, left = stack.pop(), stack.pop()
                    divisor = f"nullif({right}, 0)" if instruction == "/" else right
                    stack.append(f"({left} {instruction} {divisor})")
        (expression,) = stack
        return expression


class _Token(NamedTuple):
    kind: str  # the name of a group of TOKEN
    text: str
    position: int  # from 0


class _Parser:
    """A recursive-descent parser of one formula; it emits the postfix program."""

    def __init__(self, where: str, text: str, classes: Classes) -> None:
        self.where = where
        self.classes = classes
        text = composed(text)
        self.ids = {c.field: c.id for c in classes} | {composed(c.name): c.id for c in classes}
        self.tokens = [
            _Token(kind, match[kind], match.start(kind))
            for match in TOKEN.finditer(text)
            if (kind := match.lastgroup) is not None
        ]
        self.index = 0  # of the current token
        self.depth = 0
        self.program: list[Instruction] = []

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def parse(self) -> tuple[Instruction, ...]:
        self.sum()
        if self.token.kind != "end":
            raise self.error(f"expected an operator{self.quotes_hint()}")
        return tuple(self.program)

    def sum(self) -> None:
        self.product()
        while operator := self.take("+", "-"):
            self.product()
            self.program.append(operator)

    def product(self) -> None:
        self.factor()
        while operator := self.take("*", "/"):
            self.factor()
            self.program.append(operator)

    def factor(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} nested parentheses and signs")
        if self.take("-"):
            self.program.append(-1.0)
            self.factor()
            self.program.append("*")
        elif self.take("("):
            self.sum()
            if not self.take(")"):
                raise self.error("expected an operator or a closing parenthesis")
        elif self.token.kind == "number":
            self.program.append(float(self.token.text))
            self.index += 1
        elif self.token.kind in ("name", "quoted"):
            self.program.append(self.class_id(self.token.text))
            self.index += 1
        else:
            raise self.error("expected a class, a number or a parenthesis")
        self.depth -= 1

    def take(self, *symbols: str) -> str | None:
        """The current token if it is one of ``symbols``, which is then consumed, else ``None``."""
        token = self.token
        if token.kind != "symbol" or token.text not in symbols:
            return None
        self.index += 1
        return token.text

    def quotes_hint(self) -> str:
        """The spelling of a class whose name begins with a digit, if that is what stands here."""
        number, name = self.tokens[self.index - 1], self.token
        adjacent = number.position + len(number.text) == name.position
        spelling = f"{number.text}{name.text}"
        if not adjacent or spelling not in self.ids:
            return ""
        return f'; the name of a class that begins with a digit needs quotes: "{spelling}"'

    def class_id(self, name: str) -> int:
        if name in self.ids:
            return self.ids[name]
        close = difflib.get_close_matches(name, self.ids, n=1)
        hint = f"; did you mean {_spelling(close[0])}?" if close else ""
        spellings = ", ".join(_spelling(name) for name in self.classes.names)
        raise InputError(f"{self.where}: no class is called {name!r}{hint} (classes: {spellings})")

    def error(self, expected: str) -> InputError:
        kind, text, position = self.token
        found = "the end" if kind == "end" else f"{text!r} (character {position + 1})"
        return InputError(f"{self.where}: {expected}, found {found}")


def _spelling(name: str) -> str:
    """A class name as written in a formula."""
    if re.fullmatch(NAME, name):
        return name
    return field_name(name) if '"' in name else f'"{name}"'
