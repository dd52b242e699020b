"""The pages of the documents: their blocks, and their commands as a reader would run them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from segbatch.cli.main import app
from tests.conftest import ROOT

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def commands(name: str) -> list[list[str]]:
    """The words of each command in the shell blocks of a page in ``docs/``."""
    text = "".join(blocks(ROOT / "docs" / name, "sh")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [words for words in lines if words]


def run(words: list[str]) -> None:
    """A command of segbatch, which must end well."""
    assert words[0] == "segbatch", words
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, (words, done.output, done.exception)
