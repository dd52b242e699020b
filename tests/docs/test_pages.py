"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segbatch.config.job import load_job
from tests.scripts import script_of_docs

ROOT = Path(__file__).parents[2]


def test_the_page_of_job_files_is_generated_from_the_code() -> None:
    generate = script_of_docs("generate")
    assert (ROOT / "docs" / "job-file.md").read_text() == generate.page(), "run scripts/docs"
    for kind in generate.JOBS:
        shipped = (ROOT / "jobs" / f"{kind}.yaml").read_text()
        assert shipped == generate.template(kind), "run scripts/docs"


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_job_to_copy_is_valid(job: Path) -> None:
    assert load_job(str(job), environment={"BUCKET": "bucket"}).kind


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_tree_of_the_readme_has_every_package_and_file_of_the_top() -> None:
    tree = (ROOT / "README.md").read_text().split("## The code")[1]
    for path in (ROOT / "segbatch").iterdir():
        if not path.name.startswith("_") and path.name != "py.typed":
            name = f"{path.name}/" if path.is_dir() else path.name
            assert name in tree, f"{name} is not in the README"


def test_the_pages_on_the_code_name_files_that_are_there() -> None:
    for page in ("docs/architecture.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        named = re.findall(r"`((?:segbatch/)?[a-z]+/[a-z_/]+\.py)`", text)
        assert named
        for name in named:
            file = ROOT / "segbatch" / name.removeprefix("segbatch/")
            assert file.exists() or (ROOT / name).exists(), f"{page} names {name}"


def test_every_promise_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    assert rows
    for row in rows:
        shown = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row.split("|")[3])
        assert shown, row
        for file, test in shown:
            assert f"def {test or 'test_'}" in (ROOT / file).read_text(), (file, test)
