"""What docs/collections.md says of a job's images and what its commands are."""

from __future__ import annotations

import pytest
import yaml

from segbatch.config.images import location_of, parse_sources
from segbatch.images.parts import part_kind
from tests.conftest import ROOT
from tests.pages import blocks, commands

PAGE = ROOT / "docs" / "collections.md"
JOBS = blocks(PAGE, "yaml")


@pytest.mark.parametrize("text", JOBS)
def test_the_sources_of_the_page_are_sources(text: str) -> None:
    for source in parse_sources(yaml.safe_load(text)["images"]):
        assert location_of(source)


def test_the_uris_of_the_page_are_those_of_parts() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    rows = [line.split("|")[1:3] for line in lines[1:]]  # the first has the headings
    assert len(rows) == 5
    for source, uri in rows:
        [found] = parse_sources(yaml.safe_load(source.strip(" `")))
        assert location_of(found)
        assert part_kind(uri.strip(" `")) is not None


def test_the_command_of_the_page_is_one_that_tests_type() -> None:
    assert [words[:3] for words in commands("collections.md")] == [["segbatch", "model", "push"]]
