"""Job files: what they mean, and that a mistake is one line with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from segbatch.errors import JobFileError
from segbatch.job import SegmentJob, load_job
from segbatch.jobimages import Glob, Manifest, Prefix

MINIMAL = """\
kind: segment
images: s3://bucket/facades/
model: s3://bucket/models/facades
output: s3://bucket/runs/one
"""


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, *overrides: str, environment: dict[str, str] | None = None) -> SegmentJob:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return load_job(str(path), overrides, environment or {})

    return load


@pytest.fixture
def refusal(load):
    def refusal(text: str, *overrides: str) -> str:
        with pytest.raises(JobFileError) as caught:
            load(text, *overrides)
        assert caught.value.exit_code == 2
        return str(caught.value)

    return refusal


def test_keys_left_out_have_the_documented_defaults(load) -> None:
    job = load(MINIMAL)
    assert job.predict.long_side == "auto"
    assert job.predict.batch_size == 16
    assert job.masks == "original"
    assert job.stats == ["confidence"]
    assert job.limits.max_failed_fraction == 0.01
    assert job.limits.passes == 3
    assert job.rows_per_file == "auto"


@pytest.mark.parametrize(
    ("images", "source"),
    [
        ("s3://b/x/", Prefix(prefix="s3://b/x/")),
        ("s3://b/**/*.jpg", Glob(glob="s3://b/**/*.jpg")),
        ("one.jpg", Glob(glob="one.jpg")),
        ("s3://b/list.parquet", Manifest(manifest="s3://b/list.parquet")),
        ("list.CSV", Manifest(manifest="list.CSV")),
        ("{prefix: a, extensions: [png]}", Prefix(prefix="a", extensions=["png"])),
        ("{manifest: t/, uri_column: path}", Manifest(manifest="t/", uri_column="path")),
    ],
)
def test_images_are_named_short_or_spelled_out(load, images: str, source: object) -> None:
    assert load(MINIMAL.replace("s3://bucket/facades/", images)).sources == [source]


def test_a_list_of_sources_is_taken_in_order(load) -> None:
    job = load(MINIMAL.replace("s3://bucket/facades/", "[a.csv, b/]"))
    assert job.sources == [Manifest(manifest="a.csv"), Prefix(prefix="b/")]


def test_numbers_are_what_people_mean(load) -> None:
    text = MINIMAL + "limits: {max_failed_fraction: 1e-3, max_bytes: 10_000_000}\n"
    job = load(text)
    assert job.limits.max_failed_fraction == 0.001
    assert job.limits.max_bytes == 10_000_000


def test_variables_come_from_the_environment_of_the_command(load) -> None:
    text = MINIMAL.replace("runs/one", "runs/${WEEK}")
    assert load(text, environment={"WEEK": "47"}).output == "s3://bucket/runs/47"


def test_set_overrides_any_key(load) -> None:
    job = load(MINIMAL, "predict.batch_size=64", "predict.tile={size: 512}", "masks=none")
    assert job.predict.batch_size == 64
    assert job.predict.tile is not None
    assert job.predict.tile.overlap == 128
    assert job.masks == "none"


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("predict: {batch_sise: 3}", "job.yaml:5: predict.batch_sise: unknown key; did you mean"),
        ("predcit: {}", "job.yaml:5: predcit: unknown key; did you mean predict?"),
        ("output: twice", "job.yaml:5: output: stands twice"),
        ("stats: [confidence, foo]", "job.yaml:5: stats[1]: should be 'confidence', 'components'"),
        ("formulas: {on: window}", "formulas.on: YAML takes this for true or false; quote it"),
        ("formulas: {a: on}", "formulas.a: YAML takes on for true; quote it: 'on'"),
        ("predict: {batch_size: '16'}", "predict.batch_size: should be a valid integer, not '16'"),
        ("predict: {long_side: wide}", "predict.long_side: must be auto or null or a whole number"),
        ("resources: {workers: [3, 1]}", "resources.workers: must be auto or a number of workers"),
        ("rows_per_file: 501", "rows_per_file: must be auto or a number from 1 to 500, not 501"),
        ("predict: {tile: {size: 512}, long_side: 9}", "tile and long_side exclude each other"),
        ("aws_secret_access_key: abc", "credentials do not belong in a job file"),
        ("limits: {max_failed_fraction: 2}", "should be less than or equal to 1, not 2"),
        ("limits: [1", "not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(refusal, addition: str, expected: str) -> None:
    message = refusal(MINIMAL + addition + "\n")
    assert expected in message
    assert message.count("\n") == 0


def test_every_missing_key_is_named(refusal) -> None:
    lines = refusal("kind: segment\n").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["images", "model", "output"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: segmnet\n", "kind: 'segmnet' is unknown; this version knows segment"),
        ("model: x\n", "kind: is missing"),
        ("- a list\n", "it should begin with 'kind: segment'"),
        ("a: &x [1]\nb: *x\n", "job.yaml:2: *x: write the value out instead"),
    ],
)
def test_what_is_no_job_file_is_refused(refusal, text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_a_yaml_bomb_is_refused_without_growing(refusal) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "write the value out" in refusal("\n".join(lines))


def test_deep_nesting_is_refused(refusal) -> None:
    assert "nested too deeply" in refusal("kind: " + "[" * 5000 + "]" * 5000)


def test_credentials_in_a_uri_are_refused_and_not_repeated(refusal) -> None:
    message = refusal(MINIMAL.replace("s3://bucket/models", "s3://me:hunter2@bucket/models"))
    assert "credentials belong in the environment" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "images",
    ["s3://me:hunter2@bucket/x/", "{manifest: 's3://me:hunter2@bucket/x.csv'}", "['a/', 's3://me:hunter2@b/']"],
)  # fmt: skip
def test_credentials_in_a_source_of_images_are_refused_and_not_repeated(
    refusal, images: str
) -> None:
    message = refusal(MINIMAL.replace("s3://bucket/facades/", images))
    assert "credentials belong in the environment" in message
    assert "hunter2" not in message


def test_an_output_that_cannot_hold_a_run_is_refused(refusal) -> None:
    message = refusal(MINIMAL.replace("s3://bucket/runs", "https://bucket/runs"))
    assert "https:// cannot hold a run" in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="no such job file"):
        load_job(str(tmp_path / "none.yaml"))


def test_a_mapping_and_a_job_are_taken_as_they_are() -> None:
    mapping = {"kind": "segment", "images": "a", "model": "b", "output": "c"}
    job = load_job(mapping)
    assert load_job(job) is job
    assert job.output == "c"


def test_identity_holds_what_the_results_depend_on_and_nothing_else() -> None:
    mapping = {"kind": "segment", "images": "a", "model": "b", "output": "c"}
    assert set(load_job(mapping).identity()) == {
        "images", "model", "predict.long_side", "predict.tile", "predict.flip", "predict.scales",
        "predict.precision", "masks", "stats", "formulas",
    }  # fmt: skip
