"""One job over all hostile files and names: each file is a failed row with its reason, each name is
only a name, and the pictures among them are segmented.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segbatch.errors import SourceError
from segbatch.jobs.segment import segment
from segbatch.masks.classes import Classes
from segbatch.model.bundle import save_bundle
from segbatch.model.config import ModelConfig
from segbatch.run import Run
from tests import hostile
from tests.collection import jpeg
from tests.conftest import S3, job
from tests.model.conftest import BACKBONES, random_network

NAMES = ["background", "a'); DROP TABLE x; --", "window", "select", "日本語 \"'"]
COLUMNS = ["select", 'a"b', "a.b", "; DROP VIEW images", "Coverage_Window", "new line"]

# Keys that are each another object; their pictures differ in width.
KEYS = [
    "a b.jpg", "a%20b.jpg", "a/b.jpg", "a%2Fb.jpg", "a.jpg", "a.jpg?versionId=1", "a.jpg#1",
    "a//b.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", "e\N{COMBINING ACUTE ACCENT}.jpg",
    "'; DROP TABLE x.jpg",
]  # fmt: skip

# URIs that name nothing.
NOWHERE = [
    "s3://no-such-bucket-at-all/a.jpg", "s3://", "not a URI", "a\nb\x1b[31m.jpg",
    "a\0b", "file://host/a.jpg", "nothing://a/b.jpg", "/dev/zero", "/dev/null/x.jpg", "/", "..",
    "~nobody/x",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    network = random_network("deeplabv3plus")
    backbone = BACKBONES["deeplabv3plus"]
    uri = str(tmp_path_factory.mktemp("models") / 'it\'s a "model"')
    config = ModelConfig(
        "deeplabv3plus", backbone, network.output_stride, Classes(NAMES), long_side=128
    )
    save_bundle(uri, network, config)
    return uri


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, s3: S3) -> dict[str, Any]:
    """URIs, in their order, and the kind of error or the width that each should have."""
    folder = tmp_path_factory.mktemp("images")
    expected: dict[str, Any] = {}
    bucket = s3.uri("keys")
    for width, key in enumerate(KEYS, start=64):
        s3.put(f"{bucket}/{key}", jpeg(width, 48, width))
        expected[f"{bucket}/{key}"] = width
    for name, data in hostile.harmless().items():
        (folder / name).write_bytes(data)
        expected[str(folder / name)] = None
    for name, data in hostile.refused().items():
        (folder / name).write_bytes(data)
        expected[str(folder / name)] = name.split()[0] if "strip" not in name else None
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    nowhere = [*NOWHERE, str(folder / "pipe.jpg"), str(folder / "folder.jpg")]
    endless = [
        "x" * 5000,
        str(folder / "loop.jpg"),
    ]  # no errno of their own
    return (
        expected
        | dict.fromkeys(nowhere, "not_found")
        | dict.fromkeys(endless, "not_found|unavailable")
    )


@pytest.fixture(scope="module")
def run(
    ray_address: str, model: str, expected: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    manifest = tmp_path_factory.mktemp("manifest") / "list.parquet"
    columns = {name: [f"{name} {row}" for row in range(len(expected))] for name in COLUMNS}
    pq.write_table(pa.table({"uri": list(expected), **columns}), manifest)
    output = str(tmp_path_factory.mktemp("runs") / "it's; a run")
    limits = {"max_bytes": 10_000_000, "max_pixels": 10_000_000, "retries": 0, "passes": 1}
    formulas = {"glass": f'window / (window + "{NAMES[1]}")'}
    keys = {"limits": limits, "formulas": formulas, "rows_per_file": 64}
    return segment(job(str(manifest), model, output, **keys))


def test_hostile_files_and_uris_are_failed_rows_and_pictures_are_not(
    run: Run, expected: dict[str, Any]
) -> None:
    rows = run.sql("SELECT uri, status, error, message, width FROM images ORDER BY image_id")
    wrong = []
    for (uri, status, error, message, width), (given, kind) in zip(
        rows.fetchall(), expected.items(), strict=True
    ):
        assert uri == given
        if isinstance(kind, str):
            good = status == "failed" and error in kind.split("|") and "\n" not in message
        else:
            good = status == "ok" and kind in (None, width)
        if not good:
            wrong.append((uri[:80], kind, status, error, message, width))
    assert not wrong, "\n".join(map(str, wrong))
    assert run.audit(deep=True).exit_code == 0


def test_strips_are_segmented_on_their_own_grid(run: Run) -> None:
    strips = run.sql(
        "SELECT mask_width, mask_height FROM images WHERE uri LIKE '%wide.png' OR uri LIKE"
        " '%tall.png' ORDER BY 1 DESC"
    )
    assert strips.fetchall() == [(100_000, 1), (1, 100_000)]


def test_names_with_sql_in_them_are_names(run: Run) -> None:
    assert run.sql("SELECT DISTINCT class FROM classes ORDER BY class_id").fetchall() == [
        (name,) for name in NAMES
    ]
    # SQL ignores case, so a column with the name of one that ``wide`` makes gets another name.
    wide = {*run.sql("FROM wide").columns}
    assert {*COLUMNS, "coverage_window", "glass"} - wide == {"Coverage_Window"}
    assert "Coverage_Window_" in wide
    values = run.sql('SELECT "; DROP VIEW images", "a""b" FROM wide ORDER BY image_id LIMIT 2')
    assert values.fetchall()[1] == ("; DROP VIEW images 1", 'a"b 1')


def test_a_formula_and_a_column_of_one_name_are_refused_with_a_rename(
    tmp_path: Path, model: str
) -> None:
    manifest = tmp_path / "list.parquet"
    pq.write_table(pa.table({"uri": ["a.jpg"], "Glass": [1]}), manifest)
    with pytest.raises(SourceError, match=r"rename: {Glass: source_Glass}"):
        segment(job(str(manifest), model, str(tmp_path / "run"), formulas={"glass": "window"}))
