import json
import unicodedata
from pathlib import Path

import pytest

from segbatch.errors import InputError
from segbatch.formats.labelme import labels_txt
from segbatch.masks.classes import Classes
from segbatch.masks.classfile import read_classes

FORMS = {
    "labels.txt": "__ignore__\nwall\nTür\n",
    "names.txt": "\n wall\u00a0\nTür\n\n",
    "numbered.txt": "0 wall\n1 Tür\n",
    "colons.txt": "1: Tür\n0: wall\n",
    "_classes.csv": "Pixel Value, Class\n0, wall\n1, Tür\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nwall:0,0,0::\nTür:0,114,178::\n",
    "headless.txt": "wall:0,0,0::\nTür:0,114,178::\n",
    "data.yaml": "nc: 2\nnames:\n- wall\n- Tür\n",
    "yolo.yaml": "path: ../x\nnames:\n  0: wall\n  1: Tür\n",
    "list.json": json.dumps(["wall", "Tür"]),
    "ids.json": json.dumps({"0": "wall", "1": "Tür"}),
    "classes.json": json.dumps({"classes": [{"id": 0, "name": "wall"}, {"id": 1, "name": "Tür"}]}),
    "a,b.txt": "wall\nTür\n",
    "semicolons.csv": "id;name\n0;wall\n1;Tür\n",
    "headings.tsv": "class_id\tclass name\n0\twall\n1\tTür\n",
    "list": json.dumps(["__ignore__", "wall", "Tür"]),
    "config.json": json.dumps({"model_type": "segformer", "id2label": {"1": "Tür", "0": "wall"}}),
    "void.txt": "0: wall\n1: Tür\n255: __ignore__\n",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_tool_gives_its_names_by_id(tmp_path: Path, name: str, encoding: str) -> None:
    text = unicodedata.normalize("NFD", FORMS[name]).replace("\n", "\r\n")
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_classes(str(tmp_path / name)).names == ["wall", "Tür"]


def test_the_colours_of_a_labelmap_are_taken(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(FORMS["labelmap.txt"])
    assert read_classes(str(tmp_path / "labelmap.txt"))[1].color == (0, 114, 178)


def test_any_names_come_back_from_the_labels_of_an_export(tmp_path: Path) -> None:
    names = ["#1 brick", "2 storey", "wall, brick", "a: 3", "<b>", "wall"]
    lines = labels_txt(Classes(names), "runs/a")["labels.txt"]
    (tmp_path / "labels.txt").write_text("".join(map(str, lines)))
    assert read_classes(str(tmp_path / "labels.txt")).names == names


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("one.txt", "1 wall\n2 door\n", "its ids are 1, 2: they must be 0 to 1 without gaps"),
        ("table.csv", "wall,door\n", "wall,door: has a separator: write one name a line"),
        ("void.txt", "0 __ignore__\n1 wall\n", "the id 0 is __ignore__, which has no id but 255"),
        ("void.json", '{"0": "wall", "1": "__ignore__", "2": "door"}', "the id 1 is __ignore__"),
        ("void.txt", "wall\n__ignore__\ndoor\n", "__ignore__ has no id and must be the first"),
        ("blank.json", '["wall", "", "door"]', "class name '': must be a text"),
        ("blank.json", '{"0": "", "1": "door"}', "class name '': must be a text"),
        ("void.txt", "__ignore__\n0 wall\n1 door\n", "__ignore__: has no id, unlike other lines"),
        ("heading.txt", "names\n0 wall\n1 door\n", "names: has no id, unlike other lines"),
        ("last.csv", "wall,0\ndoor,1\n", "wall,0: write the id first"),
        ("page.txt", "<object>\n<name>wall</name>\n", "<object>: is markup"),
        ("colors.txt", "0 0 0 wall\n0 114 178 door\n", "a table of colours: say --colors"),
        ("data.yaml", "nc: 2\ntrain: a\n", "nc: not an id: a mapping must be of ids to names"),
        ("labels.json", '{"wall": 0, "door": 1}', "wall: not an id"),
        ("labels.json", '"wall"', "neither a list of names nor a mapping"),
        ("labels.json", '["wall", ', "not a file of class names"),
        ("names.yaml", "names: [wall, {a", "not a file of class names"),
        ("twice.txt", "0 wall\n0 door\n", "the id 0 has two names"),
        ("twice.txt", "wall\ndoor\nwall\n", "classes 'wall' and 'wall' would share the column"),
        ("twice.txt", "0 wall\n1 door\n2 wall\n", "classes 'wall' and 'wall' would share"),
        ("twice.json", '["a", "b", "a"]', "classes 'a' and 'a' would share the column 'a'"),
        ("twice.json", '{"0": "wall", "1": "Wall"}', "classes 'wall' and 'Wall' would share"),
        ("twice.yaml", "names: [a, b, a]\n", "classes 'a' and 'a' would share the column 'a'"),
        (
            "labelmap.txt",
            "wall:0,0,0::\nwall:0,114,178::\n",
            "classes 'wall' and 'wall' would share the column 'wall'",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_short_line(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_classes(str(tmp_path / name))
    message = str(caught.value)
    assert told in message
    assert message.startswith(f"--classes {tmp_path / name}: ")
    assert "\n" not in message


def test_one_name_alone_is_answered_with_how_names_are_written() -> None:
    with pytest.raises(InputError, match=r"not names by id \(such as background,window\), not a"):
        read_classes("window")
