"""Job files are read as documented; a mistake is one line with file, line and key."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segbatch.config.images import Glob, Manifest, Prefix
from segbatch.config.job import SegmentJob, load_job
from segbatch.config.training import FromBackbone, Train, with_recipe
from segbatch.errors import JobFileError
from tests.conftest import ROOT

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


def test_missing_keys_have_the_documented_defaults(load) -> None:
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
def test_sources_of_images_are_strings_or_mappings(load, images: str, source: object) -> None:
    assert load(MINIMAL.replace("s3://bucket/facades/", images)).sources == [source]


def test_a_list_of_sources_keeps_its_order(load) -> None:
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


def test_a_variable_inserts_text(load) -> None:
    text = MINIMAL.replace("runs/one", "runs/${N}")
    assert load(text, environment={"N": "2026"}).output == "s3://bucket/runs/2026"
    text = MINIMAL + "predict: {batch_size: '${N}', flip: '${F}'}\nresources: {workers: '${N}'}\n"
    with pytest.raises(JobFileError) as refused:
        load(text, environment={"N": "16", "F": "true"})
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    for key, name, line in zip(
        ("predict.flip", "predict.batch_size", "resources.workers"), "FNN", lines, strict=True
    ):
        assert line.endswith(f"': ${{{name}}} inserts text; use --set {key}=${{{name}}}")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("images: *.jpg", "job.yaml:1: not valid YAML: .*; quote it if it is text: '\\*.jpg'"),
        ("images: **/*.jpg", r"; quote it if it is text: '\*\*/\*.jpg'"),
        ("images: [*.jpg, a/]", r"; quote it if it is text: '\*.jpg'"),
        ("output: @x", "; quote it if it is text: '@x'"),
        ("images:\n\t- a", "job.yaml:2: .*; indent with spaces"),
    ],
)
def test_text_that_is_no_yaml_is_to_be_quoted(refusal, text: str, advice: str) -> None:
    assert re.search(f"{advice}$", refusal(text))


def test_a_value_of_set_may_have_spaces_and_signs(load) -> None:
    assert load(MINIMAL, 'output="runs/a b"').output == "runs/a b"
    assert load(MINIMAL, "images=a#b/").sources == [Prefix(prefix="a#b/")]
    assert load(MINIMAL, "images={manifest: a.csv, where: \"a = '$1'\"} ").sources == [
        Manifest(manifest="a.csv", where="a = '$1'")
    ]
    assert load(MINIMAL, "predict.tile=").predict.tile is None


def test_set_overrides_any_key(load) -> None:
    job = load(MINIMAL, "predict.batch_size=64", "predict.tile={size: 512}", "masks=none")
    assert job.predict.batch_size == 64
    assert job.predict.tile is not None
    assert job.predict.tile.overlap == 128
    assert job.masks == "none"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("predict.batch_size=many", "--set: predict.batch_size: should be a valid integer"),
        ("predict.batch_sise=3", "--set: predict.batch_sise: unknown key; did you mean batch_size"),
        ("predict.tile={size: x}", "--set: predict.tile.size: should be a valid integer, not 'x'"),
        ("predict={flip: 3}", "--set: predict.flip: should be a valid boolean, not 3"),
        ("predict.flip=on", "--set: predict.flip: YAML reads on as true; quote it: 'on'"),
        ("predict.tile={size: 1, size: 2}", "--set: predict.tile.size: duplicate key"),
        ("output=${NOWHERE}", "--set: output: the environment variable NOWHERE is not set"),
        ("kind=x", "--set: kind: 'x' is unknown"),
        ("stats=[confidence, foo]", "--set: stats[1]: should be 'confidence', 'components'"),
        ("stats=[confidence", "--set stats: not valid YAML"),
        ("output=a/b #1", "--set output: YAML reads only 'a/b' of its value; quote it: --set"),
        ("images=Block #3/", """quote it: --set 'images="Block #3/"'"""),
        ("output=a\nmasks: none", r"""quote it: --set 'output="a\nmasks: none"'"""),
        ("stats=[boxes] # x", "--set stats: YAML reads only '[boxes]' of its value"),
        ("images=*.jpg", """; quote it if it is text: --set 'images="*.jpg"'"""),
        ("images=*jpg", """; quote it if it is text: --set 'images="*jpg"'"""),
        ("output=@x", """--set output: not valid YAML: found character '@'"""),
        ("output=@x", """; quote it if it is text: --set 'output="@x"'"""),
        ("output=runs/$DAY", "--set: output: $DAY is not replaced: write ${DAY}"),
        ("output=runs/${A:-b}", "--set: output: ${A:-b} is not replaced: only ${NAME} is"),
        ("rows_per_file=", "--set: rows_per_file: must be auto or"),
        ("masks=none", "job.yaml:6: predict.scales: "),
    ],
)
def test_a_mistake_in_an_override_is_named_with_its_key(
    refusal, override: str, expected: str
) -> None:
    text = MINIMAL + "predict: {batch_size: 8, flip: false,\n          scales: 7}\n"
    message = refusal(text, override)
    assert any(line.startswith(expected) or expected in line for line in message.splitlines())


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("predict: {batch_sise: 3}", "job.yaml:5: predict.batch_sise: unknown key; did you mean"),
        ("predcit: {}", "job.yaml:5: predcit: unknown key; did you mean predict?"),
        ("output: twice", "job.yaml:5: output: duplicate key"),
        ("stats: [confidence, foo]", "job.yaml:5: stats[1]: should be 'confidence', 'components'"),
        ("formulas: {on: window}", "formulas.on: YAML reads this as true or false; quote it"),
        ("formulas: {a: on}", "formulas.a: YAML reads on as true; quote it: 'on'"),
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


@pytest.mark.parametrize("scheme", ["abfss", "abfs", "wasbs"])
def test_a_container_with_its_account_is_refused_with_what_to_write(refusal, load, scheme) -> None:
    host = "dfs" if scheme.startswith("abfs") else "blob"
    uri = f"{scheme}://facades@myaccount.{host}.core.windows.net/2024/"
    message = refusal(MINIMAL.replace("s3://bucket/facades/", uri))
    assert message.endswith(
        f"{uri}: write abfss://facades/2024/ and set AZURE_STORAGE_ACCOUNT_NAME=myaccount in the"
        " environment"
    )
    advised = "abfss://facades/2024/"
    job = load(MINIMAL.replace("s3://bucket/facades/", advised))
    assert job.sources == [Prefix(prefix=advised)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: segmnet\n", "kind: 'segmnet' is unknown; this version knows segment"),
        ("model: x\n", "kind: is missing"),
        ("- a list\n", "it should begin with 'kind: segment'"),
        ("a: &x [1]\nb: *x\n", "job.yaml:2: *x: write the value out instead"),
    ],
)
def test_other_yaml_than_a_job_file_is_refused(refusal, text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_a_yaml_bomb_is_refused_without_growing(refusal) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "write the value out" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("predict: !!python/object/apply:os.system ['touch ran']", "predict: should have keys"),
        ("formulas: {a: !!python/name:os.system x}", "could not determine a constructor"),
        ("limits: {passes: !!int x}", "limits.passes: 'x' is not a valid int"),
        ("predict: {flip: !!bool maybe}", "predict.flip: 'maybe' is not a valid bool"),
        ("limits: {timeout_s: !!timestamp x}", "limits.timeout_s: 'x' is not a valid timestamp"),
        ("formulas: {a: 2026-13-45}", "formulas.a: '2026-13-45' is not a valid timestamp"),
        ("formulas: {a: 2026-11-21}", "YAML reads 2026-11-21 as a date; quote it: '2026-11-21'"),
        (f"limits: {{passes: {'9' * 5000}}}", "is not a valid int"),
        (f"limits: {{passes: {'1:' * 300}1}}", "limits.passes: this number is too large"),
        ("limits: {timeout_s: .inf}", "limits.timeout_s: should be less than or equal to 86400"),
        ("limits: {retries: 99999999}", "limits.retries: should be less than or equal to 1000"),
        ("predict: {batch_size: 99999999999}", "should be less than or equal to 2147483647"),
        ('formulas: {a: "\\0"}', "formulas.a: has a control character"),
        ('formulas: {"\\ud800": window}', "formulas: a key has a control character"),
        ("formulas: {a: \0}", "not valid YAML: unacceptable character"),
    ],
)  # fmt: skip
def test_hostile_values_are_refused_in_one_line(refusal, addition: str, expected: str) -> None:
    message = refusal(MINIMAL + addition + "\n")
    assert expected in message
    assert "\n" not in message
    assert len(message) < 1000


def test_many_mistakes_are_counted_and_not_all_listed(refusal) -> None:
    lines = refusal(MINIMAL + "".join(f"key{n}: 1\n" for n in range(1000))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 980 more"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (MINIMAL.encode() + b"# caf\xe9", "line 5 is not UTF-8 text: save it as UTF-8"),
        (b"#" * 100_000_000, "100,000,000 bytes is too large for a job file"),
        (b"", "it should begin with 'kind: segment'"),
    ],
)
def test_a_file_that_is_no_text_or_too_large_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(JobFileError, match=expected):
        load_job(str(path))


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="is a folder"):
        load_job(str(tmp_path))


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


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("file://bucket/runs", "did you mean s3://bucket/runs or file:///bucket/runs?"),
        ("s3:/bucket/runs", "did you mean s3://bucket/runs?"),
        ("s3//bucket/runs", "did you mean s3://bucket/runs?"),
        ("s3:///bucket/runs", "did you mean s3://bucket/runs?"),
        ("S3://bucket/runs", "did you mean s3://bucket/runs?"),
        ("file:/tmp/runs", "did you mean file:///tmp/runs?"),
        ("s3://", "names no bucket"),
        ("' s3://bucket/runs'", "spaces around it"),
        ('"s3://bucket/a\\nb"', "control characters"),
        ("s3://bucket/a?versionId=1", "has ? in it"),
        ("'s3://bucket/a#1'", "has # in it"),
        ("s3://bucket/a%2Fb", "has % in it"),
        ("runs/*", "has * in it"),
        ("s3://bucket/a/../b", "a part that is empty, . or .."),
        ("s3://bucket/a//b", "a part that is empty, . or .."),
        ("s3://bucket/models/facades/", "lies in the model, s3://bucket/models/facades"),
        ("s3://bucket/models/facades/run", "lies in the model"),
    ],
)
def test_a_mistyped_output_is_refused(refusal, output: str, expected: str) -> None:
    message = refusal(MINIMAL.replace("s3://bucket/runs/one", output))
    assert ":4: output: " in message
    assert expected in message


def test_an_output_among_the_files_of_a_manifest_is_refused(refusal) -> None:
    text = MINIMAL.replace("s3://bucket/facades/", "{manifest: table/}")
    assert "output: lies in the manifest, table/" in refusal(
        text.replace("s3://bucket/runs", "table")
    )


def test_the_output_of_a_training_is_not_in_its_dataset_or_its_first_model(
    refusal,
) -> None:
    text = "kind: finetune\ndataset: labels\nmodel: {from: ./model}\noutput: "
    assert "lies in the dataset, labels" in refusal(text + "labels/run")
    assert "lies in the model, ./model" in refusal(text + "runs/../model")
    assert "lies in the model" in refusal(
        "kind: evaluate\ndataset: labels\nmodel: model\noutput: model/metrics"
    )


@pytest.mark.parametrize(
    "output",
    ["s3://bucket/facades", "s3://bucket", "file:///tmp/runs", "~/runs", "s3/runs", "../run 1/é"],
)
def test_an_output_may_be_the_prefix_of_the_images_or_any_folder(load, output: str) -> None:
    assert load(MINIMAL.replace("s3://bucket/runs/one", output)).output == output


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="no such job file"):
        load_job(str(tmp_path / "none.yaml"))


def test_a_mapping_or_a_job_object_is_accepted() -> None:
    mapping = {"kind": "segment", "images": "a", "model": "b", "output": "c"}
    job = load_job(mapping)
    assert load_job(job) is job
    assert job.output == "c"


JOBS = [path.read_text() for path in sorted(ROOT.glob("jobs/*.yaml"))]
TOKENS = [
    "{", "}", "[", "]", ": ", "- ", "&a ", "*a", "!!int ", "!!timestamp ", "!!python/name:os.x ",
    "!!binary ", "|", ">", "'", '"', "#", "\n", "\t", " ", ",", "? ", "<<: ", "=", "~", "null",
    "on", ".inf", ".nan", "1e400", "9" * 20, "2026-13-21", "12:30:45", "0x", "${A}", "${", "\0",
    "\\ud800", "\u2028", "s3://", "file://b", "@", "%", "---", "...", "kind", "images", "predict",
    "[" * 300,
]  # fmt: skip


@st.composite
def damaged_jobs(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(JOBS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.sampled_from([0, 0, 1, 5, 20]))
        text = text[:start] + draw(st.sampled_from(["", *TOKENS])) + text[end:]
    return text


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.one_of(damaged_jobs(), st.text(st.sampled_from("ab:-{}[]'\"&*!|>#%@ \n\t0"), max_size=60))
)
@example("limits: !!int x")
@example("predict: {flip: !!bool maybe}")
@example("a: !!timestamp b")
@example("a: 2026-13-45")
@example(f"a: 0x{'f' * 5000}")
@example("a: " + "{b: " * 500)
@example('a: "\\ud800"')
def test_any_text_is_a_job_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(JobFileError):
        load_job(str(path), environment={"BUCKET": "b"})


def test_the_identity_has_exactly_the_keys_that_results_depend_on() -> None:
    mapping = {"kind": "segment", "images": "a", "model": "b", "output": "c"}
    assert set(load_job(mapping).identity()) == {
        "images", "model", "predict.long_side", "predict.tile", "predict.flip", "predict.scales",
        "predict.decode", "predict.engine", "predict.precision", "masks", "stats", "formulas",
    }  # fmt: skip


def test_a_name_that_the_system_refuses_is_no_such_file() -> None:
    with pytest.raises(JobFileError, match="no such job file"):
        load_job("x" * 300)


def test_a_path_object_names_a_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"kind": "segment"}))
    with pytest.raises(JobFileError, match="images"):
        load_job(file)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- recipes of networks


@pytest.mark.parametrize(
    ("arch", "backbone"), [("segformer", "mit_b2"), ("segformer", "resnet18"), ("unet", "mit_b0")]
)
def test_transformers_are_trained_with_their_own_recipe(arch: str, backbone: str) -> None:
    train = with_recipe(Train(), arch, backbone)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.head_lr_factor) == ("adamw", 6e-5, 10)
    assert (optimizer.weight_decay, train.schedule.name, train.schedule.power) == (0.01, "poly", 1)


def test_what_the_user_names_stays() -> None:
    given = Train.model_validate({"optimizer": {"lr": 1e-3}, "schedule": {"warmup": 100}})
    train = with_recipe(given, "segformer", "mit_b0")
    assert (train.optimizer.name, train.optimizer.lr) == ("adamw", 1e-3)
    assert (train.schedule.warmup, train.schedule.power) == (100, 1.0)
    sgd = Train.model_validate({"optimizer": {"name": "sgd"}, "schedule": {"name": "cosine"}})
    assert with_recipe(sgd, "segformer", "mit_b0") == sgd


def test_other_networks_keep_the_defaults() -> None:
    assert with_recipe(Train(), "deeplabv3plus", "resnet50") == Train()
    assert with_recipe(Train(), "upernet", "resnet50") == Train()


def test_a_segformer_has_a_backbone_of_its_own() -> None:
    assert FromBackbone.model_validate({"arch": "segformer"}).backbone == "mit_b0"
    assert FromBackbone.model_validate({"arch": "unet"}).backbone == "resnet50"
