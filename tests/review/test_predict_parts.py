"""``segbatch predict`` on images that are parts of objects."""

from __future__ import annotations

import threading
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from segbatch import storage
from segbatch.cli.main import app
from tests.collection import jpeg
from tests.images.test_shards import tar
from tests.images.test_tablerows import put, table
from tests.images.test_web import Web


def predict(source: str, model: str, output: str) -> list[Path]:
    done = CliRunner().invoke(app, ["predict", source, "--model", model, "-o", output])
    assert done.exit_code == 0, done.output
    found = Path(output)
    return sorted(found.rglob("*.png")) if found.is_dir() else [found]


def test_a_part_a_shard_and_a_table_are_predicted(model_uri: str, tmp_path: Path) -> None:
    shard = f"{tmp_path}/in/0.tar"
    members = [("a/0.jpg", jpeg(0)), ("a/1.jpg", jpeg(1)), ("a/1.jpg", jpeg(2))]
    storage.write_bytes(shard, tar(members))
    put(f"{tmp_path}/in/0.parquet", table(2))
    [one] = predict(f"{shard}#member=a/1.jpg", model_uri, str(tmp_path / "one.png"))
    many = predict(shard, model_uri, str(tmp_path / "many"))
    assert [str(path.relative_to(tmp_path / "many")) for path in many] == [
        "0.tar_member_a/0.png",
        "0.tar_member_a/1.jpg_occurrence_2.png",
        "0.tar_member_a/1.png",
    ]
    assert one.read_bytes() == many[2].read_bytes()
    rows = predict(f"{tmp_path}/in/0.parquet", model_uri, str(tmp_path / "rows"))
    assert [path.name for path in rows] == ["0.parquet_row_0.png", "0.parquet_row_1.png"]
    for path in [*many, *rows]:
        with Image.open(path) as overlay:
            overlay.load()


def test_a_photograph_on_a_web_server_is_read_with_one_request(
    model_uri: str, tmp_path: Path
) -> None:
    with Web() as web:  # it refuses HEAD
        threading.Thread(target=web.serve_forever, args=(0.02,)).start()
        for name in ("a.jpg", "b.jpg?signature=a/b"):
            [overlay] = predict(web.put(name, jpeg(1)), model_uri, f"{tmp_path}/out/{name[0]}/")
            assert overlay.name == f"{name[0]}.png"
        assert set(web.asked.values()) == {1}
        web.shutdown()
