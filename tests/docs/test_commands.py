"""Every command of segbatch in the documents is one that it takes, every block is valid."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from segbatch.cli.main import app
from segbatch.config.job import load_job
from tests.conftest import ROOT
from tests.pages import FENCE, blocks

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("docs/clusters/*.md")]
)
UsageError: Any = typer.BadParameter.__base__  # typer's own: it shows no other name of it
COMMAND: Any = typer.main.get_command(app)
OURS = ("scripts/", "jobs/", "docs/", "benchmarks/", "cluster.yaml", "constraints.txt")


def shell_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Each command in the page's blocks and, in its text, each that begins with ``segbatch``; and
    whether it is whole: the text speaks of ``segbatch logs`` without saying of what.
    """
    text = page.read_text()
    for block in blocks(page, "sh", ""):
        joined = block.replace("\\\n", " ")
        joined = re.sub(r"<<'?(\w+)'?\n.*?^\1$", "", joined, flags=re.M | re.S)
        joined = re.sub(r'"[^"]*"', lambda quoted: quoted[0].replace("\n", " "), joined)
        yield from ((line.strip().removeprefix("$ "), True) for line in joined.splitlines())
    outside = FENCE.sub("", text)
    yield from ((code, False) for code in re.findall(r"`(segbatch [^`\n]*)`", outside))


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []  # a quoted text that goes on: of no command of ours


def parse(arguments: list[str]) -> None:
    """Take a command line as segbatch does, without running it."""
    command, parent, name = COMMAND, None, "segbatch"
    while isinstance(command, TyperGroup):
        parent = command.make_context(name, list(arguments), parent=parent, resilient_parsing=True)
        parent.resilient_parsing = False
        name, found, arguments = command.resolve_command(parent, arguments)
        command = found
        if not arguments and isinstance(command, TyperGroup):
            return
    command.make_context(name, list(arguments), parent=parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_that_segbatch_takes(page: Path) -> None:
    for line, is_whole in shell_lines(page):
        words = words_of(line)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]  # variables in front
        for path in (word.partition("#")[0].rstrip(":") for word in words):
            if path.startswith(OURS):
                assert list(ROOT.glob(path)), f"{line}: there is no {path}"
        if words[:1] != ["segbatch"]:
            continue
        arguments = words[1:]
        for end in ("|", ">", "&&", ";"):
            arguments = arguments[: arguments.index(end)] if end in arguments else arguments
        try:
            parse(arguments)
        except typer.Exit:
            pass  # --help, --version
        except UsageError as error:
            if is_whole or type(error).__name__ != "MissingParameter":
                pytest.fail(f"{line}: {error.format_message()}")


def test_a_command_that_is_none_would_be_found() -> None:
    for wrong in (
        ["report", "run", "-o", "page.html", "--of", "city"],
        ["reports"],
        ["labels", "x"],
    ):
        with pytest.raises(UsageError):
            parse(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_other_block_of_a_page_is_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and "kind" in content and "apiVersion" not in content:
            (tmp_path / "job.yaml").write_text(block)
            assert load_job(str(tmp_path / "job.yaml"), environment={"BUCKET": "bucket"}).output
