"""The Hugging Face Hub: datasets and models, over its protocol."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from segbatch import storage
from segbatch.cli.main import app
from segbatch.config.images import parse_source
from segbatch.errors import Incomplete, ModelError, SourceError
from segbatch.images import manifest
from segbatch.images.parts import read_parts
from segbatch.images.place import parts_of
from segbatch.model.bundle import bundle_sha256, load_bundle, push
from segbatch.results.schema import RESERVED_COLUMNS
from tests.collection import jpeg
from tests.hub import Hub, serving
from tests.images.frozen import frozen
from tests.images.test_shards import tar
from tests.model.test_checkpoints import NAMES, segformer

LIMITS = storage.ReadLimits(retries=2)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_TOKEN", "hf_ours")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield hub


def table(first: int) -> bytes:
    photos = [{"bytes": jpeg(row), "path": f"{row}.jpg"} for row in range(first, first + 3)]
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(photos, type_), "label": [1, 2, 3]}), sink)
    return sink.getvalue()


def test_a_dataset_of_tables_is_read_at_the_commit_that_it_had(hub: Hub, tmp_path: Path) -> None:
    name = "datasets/zurich/facades"
    first = hub.commit(name, {"data/train-0.parquet": table(0), "README.md": b"# Facades"})
    rows = frozen(tmp_path, f"hf://{name}")
    assert rows["uri"][1].as_py() == f"hf://{name}@{first}/data/train-0.parquet#row=1"
    assert rows["label"].to_pylist() == [1, 2, 3]
    hub.commit(name, {"data/train-0.parquet": table(5)})
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(row) for row in range(3)]
    newer = frozen(tmp_path, f"hf://{name}@main/data", "newer")
    assert read_parts(parts_of(newer), LIMITS) == [jpeg(row) for row in range(5, 8)]
    older = frozen(tmp_path, {"table": f"hf://{name}@{first}/data/*.parquet"}, "older")
    assert older["uri"] == rows["uri"]


def test_a_dataset_of_files_is_a_folder_of_images(hub: Hub, tmp_path: Path) -> None:
    files = {f"photos/{row} é.jpg": jpeg(row) for row in range(4)}
    commit = hub.commit("datasets/zurich/loose", {**files, "metadata.csv": b"a,b\n"})
    rows = frozen(tmp_path, "hf://datasets/zurich/loose")
    assert rows["uri"][0].as_py() == f"hf://datasets/zurich/loose@{commit}/photos/0 é.jpg"
    hub.requests.clear()
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(row) for row in range(4)]
    assert sum(hub.requests.values()) == 4, "one request an image"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_dataset_of_shards_is_read_by_ranges(hub: Hub, tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix == ".tar.gz" else bytes
    shard = pack(tar([(f"{row}.jpg", jpeg(row)) for row in range(40)]))
    hub.commit("datasets/zurich/shards", {f"train-0{suffix}": shard})
    rows = frozen(tmp_path, "hf://datasets/zurich/shards")
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(row) for row in range(40)]


def test_a_dataset_with_a_picture_in_its_description_is_not_that_picture(
    hub: Hub, tmp_path: Path
) -> None:
    name = "hf://datasets/zurich/described"
    shard = tar([(f"{row}.jpg", jpeg(row)) for row in range(3)])
    described = {"README.md": b"![](a.png)", "assets/a.PNG": jpeg(9)}
    for held, number in (({"data/0.parquet": table(0)}, 3), ({"data/0.tar": shard}, 3)):
        hub.commit("datasets/zurich/described", {**described, **held})
        with pytest.raises(SourceError, match=r"and, as files, 1 image: write images: ") as caught:
            frozen(tmp_path, name, "refused")
        whole, loose = str(caught.value).partition(": write images: ")[2].split(" or images: ")
        suffix = ".tar" if ".tar" in str(held) else ".parquet"
        assert len(frozen(tmp_path, yaml.safe_load(whole), f"whole{suffix}")) == number
        [uri] = frozen(tmp_path, yaml.safe_load(loose), f"loose{suffix}")["uri"].to_pylist()
        assert uri.endswith("/assets/a.PNG")


def test_a_private_dataset_is_read_with_the_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "datasets/zurich/private"
    hub.commit(name, {"0.jpg": jpeg(0)}, token="hf_ours")
    rows = frozen(tmp_path, f"hf://{name}/")
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(0)]
    monkeypatch.setenv("HF_TOKEN", "hf_theirs")
    message = "no such repository, or a private one that HF_TOKEN does not open"
    with pytest.raises(SourceError, match=message):
        frozen(tmp_path, f"hf://{name}/", "refused")
    [refused] = read_parts(parts_of(rows), LIMITS)
    assert getattr(refused, "kind", None) == "credentials"


def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.commit("datasets/zurich/loose", {"0.jpg": jpeg(0)})
    rows = frozen(tmp_path, "hf://datasets/zurich/loose")
    hub.busy = 2
    assert read_parts(parts_of(rows), LIMITS) == [jpeg(0)]
    hub.busy = 5
    [reason] = read_parts(parts_of(rows), storage.ReadLimits(retries=0))
    assert getattr(reason, "kind", None) == "unavailable"
    assert "429" in getattr(reason, "message", "")
    hub.busy = 1000
    with pytest.raises(Incomplete, match="the Hub answers 429"):
        frozen(tmp_path, "hf://datasets/zurich/loose", "busy")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://datasets/zurich/none", "no such repository"),
        ("hf://datasets/zurich/loose@v9", "no such revision"),
        ("hf://zurich", "hf://zurich"),
        ("hf://datasets/zurich/loose/none/", "no such folder, or nothing in it"),
    ],
)
def test_what_is_not_on_the_hub_is_said(
    hub: Hub, tmp_path: Path, location: str, message: str
) -> None:
    hub.commit("datasets/zurich/loose", {"0.jpg": jpeg(0)})
    with pytest.raises(SourceError, match=message) as caught:
        frozen(tmp_path, location)
    assert "\n" not in str(caught.value)


def test_a_run_over_the_hub_is_not_extended(hub: Hub, tmp_path: Path) -> None:
    hub.commit("datasets/zurich/loose", {"0.jpg": jpeg(0)})
    with pytest.raises(SourceError, match=r"at one commit: .* choose a new output"):
        manifest.extend(
            [parse_source("hf://datasets/zurich/loose")],
            str(tmp_path),
            [],
            reserved=RESERVED_COLUMNS,
            leave_out="",
        )


def test_a_segformer_of_the_hub_becomes_a_bundle(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    segformer().save_pretrained(folder)
    hub.commit("models/zurich/segformer", {f.name: f.read_bytes() for f in folder.iterdir()})
    out = str(tmp_path / "model")
    done = CliRunner().invoke(app, ["model", "import", "hf://zurich/segformer", out])
    assert done.exit_code == 0, done.output
    config = load_bundle(out)[1]
    assert (config.arch, config.backbone, config.classes.names) == ("segformer", "mit_b0", NAMES)
    missing = CliRunner().invoke(app, ["model", "import", "hf://zurich/nothing", out])
    assert missing.exit_code != 0


def test_a_bundle_is_pushed_and_loaded(hub: Hub, model_uri: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["model", "push", model_uri, "hf://zurich/model"])
    assert done.exit_code == 0, done.output
    pushed = done.stderr.partition(": name it")[0].splitlines()[-1]
    assert pushed.startswith("hf://zurich/model@")
    assert bundle_sha256(pushed) == bundle_sha256("hf://zurich/model") == bundle_sha256(model_uri)
    hub.requests.clear()
    load_bundle(pushed)
    assert not any(method == "GET" for method, _ in hub.requests), "it is in the Hub's cache"
    (tmp_path / "photo.jpg").write_bytes(jpeg(1))
    arguments = ["predict", str(tmp_path / "photo.jpg"), "--model", pushed, "-o"]
    assert CliRunner().invoke(app, [*arguments, str(tmp_path / "o.png")]).exit_code == 0
    with pytest.raises(ModelError, match="no such repository"):
        load_bundle("hf://zurich/none")
    hub.commit("models/zurich/empty", {"a.txt": b""})
    with pytest.raises(ModelError, match="no such file in the repository"):
        load_bundle("hf://zurich/empty")
    with pytest.raises(ModelError, match="must be hf://owner/name"):
        push(model_uri, "s3://b/model")
