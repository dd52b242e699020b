"""The help of the command line: every command has its place and an example that can be typed."""

import shlex
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from segbatch.cli.groups import EXAMPLES
from segbatch.cli.main import app

TOP: Any = typer.main.get_command(app)
COMMANDS: list[Any] = [
    (*path, name, command)
    for path, group in ([(), TOP], [("model",), TOP.commands["model"]],
                        [("labels",), TOP.commands["labels"]])
    for name, command in group.commands.items()
    if not hasattr(command, "commands")
]  # fmt: skip
SHOWN = CliRunner().invoke(app, ["--help"], terminal_width=78).output  # of 80 columns


def parsed(command: str) -> None:
    """Parse a command as it is typed, without running it."""
    program, *words = shlex.split(command.removesuffix(" > job.yaml"))
    assert program == "segbatch"
    group = TOP
    while hasattr(group, "commands"):
        group = group.commands[words.pop(0)]
    group.make_context("segbatch", words)


def test_every_command_stands_under_a_heading_with_its_whole_first_sentence() -> None:
    for name, command in TOP.commands.items():
        assert command.rich_help_panel in EXAMPLES, name
        assert f"\n  {name} " in SHOWN
    assert "..." not in SHOWN.partition("First steps:")[2]
    for group in ("model", "labels"):
        shown = CliRunner().invoke(app, [group, "--help"], terminal_width=78).output
        assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("command", EXAMPLES.values())
def test_the_example_of_a_heading_is_a_command(command: str) -> None:
    assert f"  Example: {command}\n" in SHOWN
    for part in command.replace("$EDITOR job.yaml; ", "").split("; "):
        parsed(part)


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: " ".join(entry[:-1]))
def test_the_help_of_a_command_ends_with_an_example_of_it(entry: tuple[Any, ...]) -> None:
    *words, command = entry
    example = command.epilog.removeprefix("Example: ")
    assert example.startswith(f"segbatch {' '.join(words)} ")
    parsed(example)
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=78).output
    assert shown.endswith(f"  Example: {example}\n"), "in one line"
