"""How tasks name photographs, and how these are found."""

import base64
import re
from pathlib import Path

import pytest

from segbatch.formats.folder import ImageFiles, list_uris
from segbatch.formats.references import Photographs, is_reference, to_address, to_reference
from tests.labels.files import write

FILES = (
    "front.jpg",
    "street/a/side.jpg",
    "street/b/side.jpg",
    "back yard (1).JPG",
    "3f9a1c04-roof.png",
    "3f9a1c04.jpg",
)


def find(folder: Path, reference: str, root: str | None = None) -> str:
    """The path of the photograph below the folder, or its URI if it is not there."""
    write(folder, dict.fromkeys(FILES, b""))
    files = ImageFiles(str(folder), list_uris(str(folder)), root)
    photographs = Photographs(files, only_files=root is not None)
    return photographs.find(reference, f"{folder}/export.json").removeprefix(f"{folder}/")


def presigned(uri: str) -> str:
    return f"/tasks/17/presign/?fileuri={base64.urlsafe_b64encode(uri.encode()).decode()}"


@pytest.mark.parametrize(("reference", "file"), [
    ("front.jpg", "front.jpg"),
    ("./front.jpg", "front.jpg"),
    ("FRONT.JPG", "front.jpg"),
    ("street\\b\\side.jpg", "street/b/side.jpg"),
    ("C:\\photos\\street\\b\\side.jpg", "street/b/side.jpg"),
    ("/data/upload/1/1a2b3c4d-front.jpg", "front.jpg"),
    ("/data/upload/front.jpg", "front.jpg"),
    ("upload/12/1a2b3c4d-front.jpg", "front.jpg"),
    ("http://localhost:8080/data/upload/1/1a2b3c4d-front.jpg?token=1", "front.jpg"),
    ("/storage-data/uploaded/?filepath=upload/1/1a2b3c4d-front.jpg", "front.jpg"),
    ("/data/upload/1/1a2b3c4d-back_yard_1.JPG", "back yard (1).JPG"),
    ("/data/upload/1/3f9a1c04-roof.png", "3f9a1c04-roof.png"),
    ("/data/upload/1/3f9a1c04.jpg", "3f9a1c04.jpg"),
    ("/data/local-files/?d=street/a/side.jpg", "street/a/side.jpg"),
    ("/data/local-files/?d=label-studio%2Ffiles%2Fstreet%2Fa%2Fside.jpg", "street/a/side.jpg"),
    ("/data/local-files?d=back%20yard+(1).JPG", "back yard (1).JPG"),
    ("../../label-studio/media/upload/4/1a2b3c4d-front.jpg", "front.jpg"),
    ("s3://photos/2026/front.jpg", "s3://photos/2026/front.jpg"),
    ("gs://photos/front.jpg", "gs://photos/front.jpg"),
    ("azure-blob://photos/front.jpg", "az://photos/front.jpg"),
    ("https://photos.org/front.jpg?width=200", "https://photos.org/front.jpg?width=200"),
    (presigned("s3://photos/front.jpg"), "s3://photos/front.jpg"),
    (f"https://studio.org{presigned('gs://photos/front.jpg')}", "gs://photos/front.jpg"),
])  # fmt: skip
def test_every_form_of_a_reference_leads_to_its_photograph(
    tmp_path: Path, reference: str, file: str
) -> None:
    assert is_reference(reference)
    assert find(tmp_path, reference) == file


@pytest.mark.parametrize(("reference", "file"), [
    ("s3://photos/2026/street/b/side.jpg", "street/b/side.jpg"),
    ("https://photos.org/2026/front.jpg?width=200", "front.jpg"),
    ("file:///home/anna/front.jpg", "front.jpg"),
    ("/home/anna/street/a/side.jpg", "street/a/side.jpg"),
    (presigned("s3://photos/front.jpg"), "front.jpg"),
])  # fmt: skip
def test_with_a_folder_of_images_only_its_files_are_read(
    tmp_path: Path, reference: str, file: str
) -> None:
    assert find(tmp_path, reference, str(tmp_path)) == file
    with pytest.raises(ValueError, match=r"is not below --images$"):
        find(tmp_path, "s3://photos/other.jpg", str(tmp_path))


def test_a_photograph_on_this_machine_is_found_by_its_path(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"front.jpg": b""})
    labels = tmp_path / "labels"
    assert find(labels, f"{elsewhere}/front.jpg") == f"{elsewhere}/front.jpg"
    assert find(labels, "/nowhere/front.jpg") == "front.jpg"


@pytest.mark.parametrize(("reference", "why"), [
    ("/data/upload/1/1a2b3c4d-side.jpg", r"side\.jpg may be .*/a/side\.jpg or .*/b/side\.jpg"),
    ("/data/upload/1/1a2b3c4d-gone.jpg", "gone.jpg is not next to the labels: name the folder"),
    ("/data/local-files/?d=", "is not next to the labels"),
    ("..", "is not next to the labels"),
    ("data:image/png;base64,AAAA", "as a data URI, which is not read"),
    ("/tasks/1/presign/?fileuri=A", "by a damaged address"),
    ("a\0.jpg", "by what is no path"),
    (f"{'a/' * 3000}b.jpg", "by what is no path"),
])  # fmt: skip
def test_a_photograph_that_is_not_there_is_named(tmp_path: Path, reference: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        find(tmp_path, reference)
    assert not re.search(r"[\0\n]", str(raised.value))


@pytest.mark.parametrize("value", [None, 5, {"uri": "a.jpg"}, ["a.jpg"], "a facade", "a.json", ""])
def test_other_values_are_no_references(value: object) -> None:
    assert not is_reference(value)


def test_files_on_disk_are_named_below_the_parent_of_their_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "to label")
    reference = to_reference(f"{folder}/a b/ü#1.jpg", folder)
    assert reference == "/data/local-files/?d=to%20label/a%20b/%C3%BC%231.jpg"
    write(Path(folder), {"a b/ü#1.jpg": b""})
    files = ImageFiles(folder, list_uris(folder), None)
    found = Photographs(files, only_files=False).find(reference, f"{folder}/export.json")
    assert found == f"{folder}/a b/ü#1.jpg"
    assert to_reference("az://photos/a.jpg", "az://photos") == "azure-blob://photos/a.jpg"
    assert to_reference("s3://photos/a.jpg", "s3://photos") == "s3://photos/a.jpg"


@pytest.mark.parametrize(
    "address",
    [
        "https://photos.org/projects/12/img/a.jpg",
        "https://cdn.org/data/upload/x.jpg",
        "https://photos.org/tasks/7/a.jpg",
        "http://label-studio:8080/data/upload/1/3f9a1c04-a.jpg",
    ],
)
def test_a_web_address_is_read_where_it_is(address: str) -> None:
    assert to_address(address) == address
    assert is_reference(address)


def test_a_photograph_of_another_server_is_no_file_next_to_the_labels(tmp_path: Path) -> None:
    address = "https://photos.org/projects/12/front.jpg"
    assert find(tmp_path, address) == address


def test_an_error_does_not_repeat_a_signature() -> None:
    with pytest.raises(ValueError, match=r"to /data/upload/1/a\.jpg on Label Studio") as error:
        to_address("/data/upload/1/a.jpg?signature=secret")
    assert "secret" not in str(error.value)
