"""A run in the formats of other tools, compared with the masks of the run."""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image
from pycocotools import coco as pycoco
from typer.testing import CliRunner

from segbatch import storage
from segbatch.cli.main import app
from segbatch.errors import InputError, RunError, SourceError
from segbatch.formats.coco import COCO
from segbatch.formats.format import Format, ReadOptions
from segbatch.formats.labelme import LABELME
from segbatch.formats.labelstudio import LABELSTUDIO
from segbatch.formats.voc import VOC, distinct_colors
from segbatch.masks import FILL, overlay
from segbatch.masks.classes import IGNORE_INDEX, Classes
from segbatch.masks.classfile import read_classes
from segbatch.results.lookup import mask_png
from segbatch.results.table import DataFile, Table, file_name
from segbatch.review.export.destination import CLAIM_FILE
from segbatch.review.export.export import WRITERS
from segbatch.run import Run
from segbatch.storage import clients
from tests import pages
from tests.conftest import S3
from tests.films import film
from tests.written_run import NAMES, damage_mask, label_map, with_uris, write_run

SIZE = (60, 40)  # of the photographs; masks are half of it
TURNED, AS_PNG, AS_TIFF, OTHER_SIZE, GONE = 1, 2, 3, 6, 7
PNGS = {AS_PNG, AS_TIFF}  # of the exported photographs
WHOLE = "image_id < 6"  # images with unchanged photographs


def photograph(image_id: int) -> Image.Image:
    width, height = SIZE
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x * 4, y * 6, np.full_like(x, 20 * image_id)], axis=2))


def photo_bytes(image_id: int) -> bytes:
    picture, file = photograph(image_id), io.BytesIO()
    if image_id == TURNED:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        lying = picture.transpose(Image.Transpose.ROTATE_90)
        lying.save(file, "JPEG", quality=95, exif=exif)
    elif image_id == OTHER_SIZE:
        picture.crop((0, 0, 50, 40)).save(file, "JPEG")
    else:
        picture.save(file, {AS_PNG: "PNG", AS_TIFF: "TIFF"}.get(image_id, "JPEG"))
    return file.getvalue()


@pytest.fixture(scope="module")
def run(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight good images and two failed ones; their photographs are on S3, except one."""
    s3.client.create_bucket(Bucket="to-export")
    for image_id in range(8):
        if image_id != GONE:
            s3.put(f"s3://to-export/{image_id:04d}.jpg", photo_bytes(image_id))
    return write_run(
        str(tmp_path_factory.mktemp("runs") / "run"), num_ok=8, photos="s3://to-export"
    )


def mask_at_photo(image_id: int) -> npt.NDArray[np.uint8]:
    return label_map(image_id).repeat(2, axis=0).repeat(2, axis=1)


def read_back(folder: str, format: Format) -> dict[str, npt.NDArray[np.uint8]]:
    """The label maps that `labels import` draws, by name of the image."""
    assert format.reader is not None
    found = format.reader.find(folder, ReadOptions())
    assert not found.skipped
    ids = {name: NAMES.index(name) for name in found.names}
    maps = {}
    for image in found.images:
        labelled = format.reader.read(image, ids, IGNORE_INDEX)
        assert not labelled.skipped
        maps[Path(image.uri).stem] = labelled.label_map
    return maps


def test_one_image_of_a_run_is_looked_at(run: Run) -> None:
    np.testing.assert_array_equal(run.image(AS_PNG), photograph(AS_PNG))
    assert run.image(TURNED).size == SIZE
    expected = overlay(
        np.asarray(photograph(AS_PNG)), mask_at_photo(AS_PNG), run.classes, alpha=0.5
    )
    np.testing.assert_array_equal(run.overlay(AS_PNG, alpha=0.5), expected)
    with pytest.raises(SourceError, match=r"s3://to-export/0007\.jpg: not_found"):
        run.image(GONE)
    [(failed, error)] = run.sql("SELECT image_id, error FROM failures LIMIT 1").fetchall()
    with pytest.raises(RunError, match=f"image {failed} has no mask: it failed: {error}: "):
        run.overlay(failed)
    with pytest.raises(RunError, match="image_id 77 has no row"):
        run.image(77)


def test_masks_are_exported_as_they_are_stored_with_their_classes(run: Run, tmp_path: Path) -> None:
    exported = run.export(str(tmp_path), "png")
    assert (exported.chosen, exported.written) == (10, 8)
    assert exported.left_out == {"failed in the run": 2}
    stored = dict(run.sql("SELECT uri, mask FROM masks WHERE mask IS NOT NULL").fetchall())
    files = {f"s3://to-export/{p.stem}.jpg": p.read_bytes() for p in tmp_path.glob("*.png")}
    assert files == stored
    assert read_classes(str(tmp_path / "classes.json")) == run.classes


def test_label_studio_is_told_where_photographs_are_and_gets_copies_of_the_others(
    run: Run, tmp_path: Path
) -> None:
    def tasks(folder: Path) -> list[dict[str, Any]]:
        found = json.loads((folder / "tasks.json").read_text())
        return sorted(found, key=lambda task: task["data"]["segbatch"]["image_id"])

    in_bucket, on_disk = tmp_path / "bucket", tmp_path / "disk"
    run.export(str(in_bucket), "labelstudio", where=WHOLE)
    assert sorted(path.name for path in in_bucket.iterdir()) == ["label_config.xml", "tasks.json"]
    assert [task["data"]["image"] for task in tasks(in_bucket)] == [
        f"s3://to-export/{image_id:04d}.jpg" for image_id in range(6)
    ]

    photos = tmp_path / "photos"
    photos.mkdir()
    for image_id in range(6):
        (photos / f"{image_id:04d}.jpg").write_bytes(photo_bytes(image_id))
    local = write_run(str(tmp_path / "run"), num_ok=6, failed=(), photos=str(photos))
    local.export(str(on_disk), "labelstudio")
    assert [task["data"]["image"] for task in tasks(on_disk)] == [
        f"/data/local-files/?d=disk/images/{image_id:04d}.{'png' if image_id in PNGS else 'jpg'}"
        for image_id in range(6)
    ]
    shutil.rmtree(photos)

    for folder in (in_bucket, on_disk):
        back = read_back(str(folder), LABELSTUDIO)
        for image_id in range(6):
            np.testing.assert_array_equal(back[f"{image_id:04d}"], mask_at_photo(image_id))
    [(confidence, pixels)] = run.sql(
        "SELECT confidence, pixels FROM images WHERE image_id = 3"
    ).fetchall()
    [prediction] = tasks(in_bucket)[3]["predictions"]
    scores = {r["value"]["brushlabels"][0]: r["score"] for r in prediction["result"]}
    assert scores == {name: value for name, value in confidence.items() if value is not None}
    known = [(value, pixels[name]) for name, value in confidence.items() if value is not None]
    mean = sum(value * count for value, count in known) / sum(count for _, count in known)
    assert prediction["score"] == pytest.approx(mean)
    assert prediction["model_version"] == "models/facades"


def test_overlays_have_the_photographs_size_and_a_legend_below(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path), "overlay", where=WHOLE, limit=1)
    [file] = tmp_path.iterdir()
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    photo = np.asarray(photograph(0)).astype(int)[30, 40]
    wall = (1 - FILL) * photo + FILL * np.array(run.classes[1].color)
    assert np.abs(picture[30, 40] - wall).max() < 12
    assert len(picture) > SIZE[1]
    assert (picture[SIZE[1] :] > 240).any()


def test_voc_comes_back_as_it_went_and_fits_photographs_that_exif_turned(
    run: Run, tmp_path: Path
) -> None:
    exported = run.export(str(tmp_path), "voc", where=WHOLE)
    assert exported.written == 6
    names = (tmp_path / "ImageSets/Segmentation/default.txt").read_text().split()
    assert names == [f"{image_id:04d}" for image_id in range(6)]
    back = read_back(str(tmp_path), VOC)
    for image_id, name in enumerate(names):
        np.testing.assert_array_equal(back[name], mask_at_photo(image_id))
        photo = tmp_path / f"JPEGImages/{name}.jpg"
        if image_id not in (TURNED, AS_PNG, AS_TIFF):
            assert photo.read_bytes() == photo_bytes(image_id)
        with Image.open(photo) as image:
            assert image.format == "JPEG"
            assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            seen = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(seen - np.asarray(photograph(image_id))).mean() < 6
        mask = Image.open(tmp_path / f"SegmentationClass/{name}.png")
        np.testing.assert_array_equal(np.asarray(mask), mask_at_photo(image_id))  # ids as well


def test_voc_has_colours_that_are_all_different() -> None:
    same = Classes(["facade", "wall", "door"])  # of one colour in our list
    assert same[0].color == same[1].color
    assert len({c.color for c in distinct_colors(same)}) == 3
    assert distinct_colors(Classes(["wall", "door"])) == Classes(["wall", "door"])


def test_labelme_comes_back_but_for_the_edges_and_keeps_holes(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path), "labelme", where=WHOLE)
    document = json.loads((tmp_path / "0003.json").read_text())
    assert document["imageData"] is None
    assert document["imagePath"] == "0003.png"  # it was TIFF
    assert document["segbatch"]["uri"] == "s3://to-export/0003.jpg"
    assert (tmp_path / "0000.jpg").read_bytes() == photo_bytes(0)
    assert (tmp_path / "0002.png").read_bytes() == photo_bytes(AS_PNG)
    back = read_back(str(tmp_path), LABELME)
    for image_id in range(6):  # windows in a wall: straight lines lose nothing
        np.testing.assert_array_equal(back[f"{image_id:04d}"], mask_at_photo(image_id))
    assert read_classes(str(tmp_path / "labels.txt")).names == NAMES


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # in pycocotools, of NumPy 2
def test_pycocotools_and_our_importer_read_the_same_masks_from_coco(
    run: Run, s3: S3, tmp_path: Path
) -> None:
    folder = s3.uri("exported")
    run.export(folder, "coco", where=WHOLE)
    (tmp_path / "a.json").write_bytes(storage.read_bytes(f"{folder}/annotations.json"))
    coco = pycoco.COCO(str(tmp_path / "a.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == NAMES
    back = read_back(folder, COCO)
    for image_id in coco.getImgIds():
        drawn = np.full(SIZE[::-1], IGNORE_INDEX, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            inside = coco.annToMask(annotation) > 0
            assert annotation["area"] == inside.sum()
            x, y, width, height = annotation["bbox"]
            assert inside[y : y + height, x : x + width].sum() == inside.sum()
            drawn[inside] = annotation["category_id"] - 1
        np.testing.assert_array_equal(drawn, mask_at_photo(image_id))
        np.testing.assert_array_equal(back[f"{image_id:04d}"], drawn)


def test_fiftyone_gets_grey_masks_in_which_0_is_nothing(run: Run, tmp_path: Path) -> None:
    run.export(str(tmp_path), "fiftyone", where=WHOLE)
    assert {p.stem for p in (tmp_path / "data").iterdir()} == {f"{i:04d}" for i in range(6)}
    with Image.open(tmp_path / "labels/0004.png") as mask:
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(mask), mask_at_photo(4) + 1)
    said = json.loads((tmp_path / "mask_targets.json").read_text())
    assert said["mask_targets"] == {str(i + 1): name for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_rows_are_exported_as_the_flat_view(
    run: Run, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = run.export(str(tmp_path), to, where="city = 'Bern' OR status = 'failed'", limit=3)
    assert exported.written == 3
    assert capsys.readouterr().err == f"3 rows → {tmp_path}/wide.{to}\n"
    if to == "parquet":
        rows = pq.read_table(tmp_path / "wide.parquet").to_pylist()
        assert [row["image_id"] for row in rows] == [2, 5, 8]
        assert rows[0]["coverage_window"] == pytest.approx((label_map(2) == 2).mean())
    else:
        lines = (tmp_path / "wide.csv").read_text().splitlines()
        assert len(lines) == 4
        assert "coverage_traffic_light" in lines[0]


def test_photographs_that_are_gone_or_changed_are_counted_and_named(
    run: Run, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        app, ["export", run.uri, str(tmp_path), "--to", "labelme", "--where", "image_id >= 5"]
    )
    assert result.exit_code == 1
    assert "1 of 5 images" in result.stderr
    assert "2 left out: failed in the run" in result.stderr
    assert "1 left out: photograph not_found" in result.stderr
    assert "s3://to-export/0006.jpg: photograph is of another size" in result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"0005.jpg", "0005.json", "labels.txt"}


def test_what_cannot_be_done_is_said_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(InputError, match=r"did you mean coverage\.window"):
        run.export(str(folder), "png", where="coverage.windw > 0.1")
    with pytest.raises(InputError, match="syntax error"):
        run.export(str(folder), "csv", where="true); DROP TABLE runs; SELECT (1")
    with pytest.raises(InputError, match="one of png, overlay"):
        run.export(str(folder), "jpg")
    assert not folder.exists()
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match="; name an empty or a new folder"):
            run.export(str(taken), "png")
    with pytest.raises(InputError, match=r"mine\.txt is a file; name an empty or a new folder"):
        run.export(str(tmp_path / "mine.txt" / "x"), "png")


def test_a_run_without_masks_and_one_that_is_not_finished_say_what_there_is(
    tmp_path: Path,
) -> None:
    run = write_run(str(tmp_path / "bare"), num_ok=4, failed=(), masks=False)
    assert run.export(str(tmp_path / "a"), "png").left_out == {"no mask is stored": 4}
    run = write_run(str(tmp_path / "early"), num_ok=4, finished=False)
    assert run.export(str(tmp_path / "b"), "png", limit=3).written == 3


def test_images_of_one_name_get_names_of_their_own_that_are_safe_everywhere(tmp_path: Path) -> None:
    uris = [
        "s3://b/zurich/IMG 1.jpg",
        "s3://b/basel/IMG 1.jpg",
        "s3://b/basel/IMG 1.png",
        "s3://b/basel/img_1.JPG",
        "s3://b/../../.ssh/.id",
        "s3://b/Zürich/Löwenstraße?size=1&x=%2F.jpg",
        "s3://b/" + 70 * "長" + ".jpg",
        "s3://b/..",
    ]
    run = write_run(str(tmp_path / "run"), num_ok=8, failed=(), finished=False)
    with_uris(run, uris.__getitem__).export(str(tmp_path / "out"), "png")
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert written == {
        "zurich/IMG_1.png",
        "basel/IMG_1@1.png",
        "basel/IMG_1@2.png",
        "basel/img_1@3.png",
        "ssh/id.png",
        "Zürich/Löwenstraße_size_1_x_2F.png",
        60 * "長" + ".png",
        "image.png",
    }


NAMESAKES = [
    "s3://b/zurich/a b.jpg", "s3://b/zurich/A_b.tif", "s3://b/zurich/ab.jpg",
    "s3://b/zurich/v1.2.jpg", "s3://b/zurich/v1.2", "s3://b/zurich/v1.3.jpg",
    "s3://b/caf\u00e9/..x.png", "s3://b/cafe\u0301/.x", "s3://b/caf/x.png",
    "s3://b/" + 90 * "\u9577" + "a.jpg", "s3://b/" + 90 * "\u9577" + "b.jpg",
    "s3://b/clip.mp4#t=0.5", "s3://b/clip.mp4#t=0_5",
]  # fmt: skip


def test_an_image_has_one_name_in_all_exports_of_the_run(tmp_path: Path) -> None:
    run = write_run(
        str(tmp_path / "run"), num_ok=len(NAMESAKES), failed=("timeout",), finished=False
    )
    uris = [*NAMESAKES, "s3://b/zurich/ab.png"]  # the last one failed, and is no namesake
    with_uris(run, uris.__getitem__).export(str(tmp_path / "all"), "png")
    names = {str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*.png")}
    assert {name for name in names if "@" not in name} == {
        "zurich/ab.png", "zurich/v1.3.png", "caf/x.png", "clip.mp4_t_0.5.png", "clip.mp4_t_0_5.png",
    }  # fmt: skip
    found: set[str] = set()
    for image_id in range(len(NAMESAKES)):
        run.export(str(tmp_path / str(image_id)), "png", where=f"image_id = {image_id}")
        [file] = (tmp_path / str(image_id)).rglob("*.png")
        found.add(str(file.relative_to(tmp_path / str(image_id))))
    assert found == names
    assert run.export(str(tmp_path / "first"), "png", limit=2).written == 2
    assert {p.name for p in (tmp_path / "first").rglob("*.png")} == {"a_b@0.png", "A_b@1.png"}


def test_web_addresses_of_one_name_are_told_apart_in_all_exports(tmp_path: Path) -> None:
    uris = ["https://h.example/p/a%20b.jpg?sig=x/y", "https://h.example/p/a_b.png?sig=z/w",
            "https://h.example/p/c.jpg"]  # fmt: skip
    run = write_run(str(tmp_path / "run"), num_ok=3, failed=(), finished=False)
    with_uris(run, uris.__getitem__).export(str(tmp_path / "out"), "png", where="image_id <> 1")
    assert {p.name for p in (tmp_path / "out").rglob("*.png")} == {"a_b@0.png", "c.png"}


def test_damaged_masks_are_named_and_all_others_exported(s3: S3, tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), num_ok=6, failed=(), photos="s3://to-export")
    damage_mask(run, 4)
    result = CliRunner().invoke(app, ["export", run.uri, str(tmp_path / "a"), "--to", "png"])
    assert result.exit_code == 1
    assert "s3://to-export/0004.jpg: damaged mask: " in result.stderr
    assert "3 left out: damaged mask\n" in result.stderr
    assert {p.stem for p in (tmp_path / "a").glob("*.png")} == {"0000", "0001", "0002"}
    damage_mask(run, 1)  # in another file, which is another message and not another reason
    export = run.export(str(tmp_path / "b"), "png")
    assert export.left_out == {"damaged mask": 6}
    assert len({line.split("damaged mask: ")[1] for line in export.unread}) == 2


def test_files_whose_ids_interleave_are_exported_and_damage_costs_its_own_images(
    tmp_path: Path,
) -> None:
    """A later pass writes files whose ranges of ids enclose those of other files."""
    run = write_run(str(tmp_path / "run"), failed=())
    table = Table.open(f"{run.uri}/rows")
    assert table is not None
    first, second = table.files()
    rows = pa.concat_tables(pq.read_table(f"{table.uri}/{file.name}") for file in (first, second))
    ids_of = {file_name(2, "ok"): [0, 4, 11], file_name(3, "ok"): [1, 2, 3, 5, 6, 7, 8, 9, 10]}
    for name, ids in ids_of.items():
        pq.write_table(rows.take(ids), f"{table.uri}/{name}")
    mixed = [DataFile(name, 1, len(i), i[0], i[-1], "ok", "") for name, i in ids_of.items()]
    table.commit(mixed, [first, second])
    exported = run.export(str(tmp_path / "all"), "png")
    assert (exported.chosen, exported.written, exported.left_out) == (12, 12, {})
    few = run.export(str(tmp_path / "few"), "png", where="image_id IN (4, 5)")
    assert (few.chosen, few.written) == (2, 2)
    for image_id in (4, 5):
        assert (tmp_path / "few" / f"{image_id:04d}.png").read_bytes() == mask_png(run, image_id)

    Path(table.uri, mixed[0].name).write_bytes(b"PAR1")
    exported = run.export(str(tmp_path / "rest"), "png")
    assert (exported.chosen, exported.written) == (12, 9)
    assert exported.left_out == {"damaged mask": 3}
    uris = [line.partition(": ")[0] for line in exported.unread]
    assert uris == [f"s3://photos/{image_id:04d}.jpg" for image_id in (0, 4, 11)]


@pytest.mark.parametrize("to", ["png", "csv", "parquet", "geojson", "geoparquet"])
def test_a_condition_that_fails_on_a_value_is_one_line(tmp_path: Path, to: str) -> None:
    columns = [pa.field(name, pa.float64()) for name in ("lat", "lon")]
    values: dict[str, Any] = {"lat": lambda image_id: 47.0, "lon": lambda image_id: 8.0}
    run = write_run(str(tmp_path / "run"), user_columns=columns, user_values=values)
    with pytest.raises(InputError, match="Could not convert string") as wrong:
        run.export(str(tmp_path / "out"), to, where="uri::INT > 3")
    assert "\n" not in str(wrong.value)
    assert files_in(str(tmp_path / "out")) == {}


def test_frames_of_videos_are_exported_as_pictures(tmp_path: Path) -> None:
    film(tmp_path / "street.mp4", size=(40, 60))
    run = write_run(str(tmp_path / "run"), num_ok=4, failed=(), finished=False)
    with_uris(run, lambda n: f"{tmp_path}/street.mp4#t={0.04 * n:.3f}")
    assert run.export(str(tmp_path / "out"), "labelme").written == 4
    with Image.open(tmp_path / "out/street.mp4_t_0.080.png") as picture:
        assert picture.size == SIZE
    document = json.loads((tmp_path / "out/street.mp4_t_0.080.json").read_text())
    assert document["imagePath"] == "street.mp4_t_0.080.png"
    assert document["segbatch"]["uri"] == f"{tmp_path}/street.mp4#t=0.080"
    assert {shape["label"] for shape in document["shapes"]} == {"background", "wall", "window"}


# ------------------------------------------------------------------ interrupted exports


@pytest.fixture
def outage(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Retries wait briefly, and the storage works again afterwards."""
    monkeypatch.setattr(clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(clients, "MAX_BACKOFF_S", 0.02)
    yield s3
    s3.break_down()


def files_in(folder: str) -> dict[str, bytes]:
    folder = storage.normalize(folder)
    uris = [file.uri for file in storage.list_files(folder)]
    return {uri.removeprefix(folder): storage.read_bytes(uri) for uri in uris}


def exported(run: Run, folder: str, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", run.uri, folder, *options])
    # `main` ends with the code of what is raised on purpose.
    return getattr(result.exception, "exit_code", result.exit_code), result.stderr


@pytest.mark.parametrize("to", ["coco", "voc", "labelme"])
def test_an_export_goes_on_where_photographs_could_not_be_had(
    run: Run, outage: S3, tmp_path: Path, to: str
) -> None:
    whole, folder = str(tmp_path / "whole"), outage.uri("outage")
    options = ("--to", to, "--where", WHOLE)
    assert exported(run, whole, *options)[0] == 0
    outage.break_down({"method": "GET", "part": "/0004.jpg", "kind": "reset"})
    code, said = exported(run, folder, *options)
    assert code == 3
    assert "s3://to-export/0004.jpg: photograph unavailable" in said
    assert "5 of 6 images" in said
    assert f"/{CLAIM_FILE}" in files_in(folder)
    outage.break_down()
    code, said = exported(run, folder, *options)
    assert (code, "6 of 6 images" in said, "5 of them were there" in said) == (0, True, True)
    assert list(outage.requests("GET", "to-export")) == ["/to-export/0004.jpg"]
    assert files_in(folder) == files_in(whole)


def test_an_export_goes_on_where_its_folder_could_not_be_written(run: Run, outage: S3) -> None:
    folder = outage.uri("outage")
    outage.break_down({"method": "PUT", "part": "0003", "kind": "reset"})
    with pytest.raises(OSError, match="0003"):
        run.export(folder, "coco", where=WHOLE)
    outage.break_down()
    assert run.export(folder, "coco", where=WHOLE).written == 6
    written = outage.requests("PUT", "/images/")
    assert "0003.png" in " ".join(written)
    assert len(written) < 6
    document = json.loads(files_in(folder)["/annotations.json"])
    assert [image["id"] for image in document["images"]] == list(range(6))


def test_an_export_that_is_killed_goes_on(run: Run, outage: S3, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    outage.break_down({"method": "GET", "part": "/0005.jpg", "kind": "stall", "seconds": 60})
    command = [sys.executable, "-m", "segbatch", "export", run.uri, str(folder), "--to", "fiftyone"]
    command += ["--where", WHOLE]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while len(list(folder.glob("labels/*.png"))) < 5:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.kill()
    (folder / "data/0002.png").write_bytes(b"mine")  # an existing file is not overwritten
    outage.break_down()
    again = run.export(str(folder), "fiftyone", where=WHOLE)
    assert (again.written, again.before, again.unread) == (6, 5, [])
    assert (folder / "data/0002.png").read_bytes() == b"mine"
    assert (folder / "mask_targets.json").exists()
    assert not (folder / CLAIM_FILE).exists()


def test_a_file_that_may_be_a_part_is_not_taken_for_a_whole_one(
    run: Run, outage: S3, tmp_path: Path
) -> None:
    whole, folder = str(tmp_path / "whole"), f"memory://{tmp_path}/out"
    run.export(whole, "coco", where=WHOLE)
    outage.break_down({"method": "GET", "part": "/0005.jpg", "kind": "reset"})
    assert run.export(folder, "coco", where=WHOLE).unanswered == 1
    outage.break_down()
    photo = storage.join(folder, "images/0002.png")
    storage.write_bytes(photo, storage.read_bytes(photo)[:100])  # as a killed process leaves it
    again = run.export(folder, "coco", where=WHOLE)
    assert (again.written, again.before) == (6, 0)
    assert files_in(folder) == files_in(whole)


def test_an_export_that_an_earlier_version_began_keeps_its_names(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), num_ok=2, failed=(), finished=False)
    with_uris(run, ["s3://b/front.jpg", "s3://b/front.png"].__getitem__)
    folder, version = tmp_path / "out", run.table("rows").version  # type: ignore[union-attr]
    claim = {"run": run.uri, "to": "png", "where": None, "limit": 1, "version": version}
    folder.mkdir()
    (folder / CLAIM_FILE).write_text(json.dumps(claim, indent=2))
    (folder / "front.png").write_bytes(b"written before")
    assert run.export(str(folder), "png", limit=1).before == 1
    assert {p.name for p in folder.glob("*.png")} == {"front.png"}


def test_another_export_does_not_go_on_in_its_place(run: Run, outage: S3, tmp_path: Path) -> None:
    outage.break_down({"method": "GET", "part": "/0004.jpg", "kind": "reset"})
    folder = tmp_path / "out"
    assert run.export(str(folder), "labelme", where=WHOLE).unanswered == 1
    before = files_in(str(folder))
    for to, where, limit in (("coco", WHOLE, None), ("labelme", None, None), ("labelme", WHOLE, 2)):
        with pytest.raises(InputError, match="another unfinished export"):
            run.export(str(folder), to, where=where, limit=limit)
    assert files_in(str(folder)) == before
    other = write_run(str(tmp_path / "other"), num_ok=8, photos="s3://to-export")
    with pytest.raises(InputError, match="another unfinished export"):
        other.export(str(folder), "labelme", where=WHOLE)


def test_the_commands_of_the_page_run_as_they_stand(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.uri, tmp_path / "runs/2026-11")
    monkeypatch.chdir(tmp_path)
    found = pages.commands("exporting.md")
    assert {words[5] for words in found} >= set(WRITERS)
    for words in found:
        pages.run(words)
        assert any(Path(words[3]).iterdir())


def test_an_export_of_nothing_is_refused_and_leaves_no_folder(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no image where coverage\.window > 2"):
        run.export(str(tmp_path / "out"), "png", where="coverage.window > 2")
    assert not (tmp_path / "out").exists()
