"""Names in labels → classes."""

import shlex
from pathlib import Path

import pytest

from segbatch.errors import InputError, SourceError
from segbatch.formats.format import Annotations
from segbatch.labels.naming import Naming, given_classes, name_classes, read_renames, unlabelled_id
from segbatch.masks.classes import FACADE_COLORS, Classes


def named(
    *names: str,
    given: str | None = None,
    before: Classes | None = None,
    add_class: bool = False,
    colors: dict[str, tuple[int, int, int]] | None = None,
    **renames: str,
) -> Naming:
    return name_classes(
        "annotations/",
        Annotations([], names, colors or {}),
        given=given_classes(given),
        renames=renames,
        before=before,
        add_class=add_class,
    )


def test_classes_are_the_sorted_names() -> None:
    naming = named("window", "door", "_background_")
    assert naming.classes.names == ["_background_", "door", "window"]
    assert naming.ids == {"_background_": 0, "door": 1, "window": 2}


def test_a_list_of_classes_gives_the_order(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nwindow\ndoor\n")
    naming = named("door", "window", given=str(tmp_path / "labels.txt"))
    assert naming.classes.names == ["_background_", "window", "door"]
    assert naming.ids == {"door": 2, "window": 1}


@pytest.mark.parametrize("given", ["__ignore__,wall,window", ["__ignore__ ", "wall", "window"]])
def test_the_ignored_label_is_no_class_and_may_come_first(given: str | list[str]) -> None:
    classes = given_classes(given)
    assert classes is not None
    assert classes.names == ["wall", "window"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["wall", "__ignore__", "window"], "__ignore__ has no id and must be the first name"),
        (["__ignore__", "wall", " __ignore__"], "__ignore__ has no id and must be the first name"),
        (["wall", "", "window"], "class name '': must be a text"),
        (["wall", "window", " "], "class name '': must be a text"),
    ],
)
def test_a_list_that_would_move_the_ids_is_refused(names: list[str], told: str) -> None:
    for given in (names, ",".join(names)):
        with pytest.raises(InputError, match=told):
            given_classes(given)


def test_names_may_be_mapped_to_another_or_to_nothing() -> None:
    naming = named("windows", "window", "sign", windows="window", sign="__ignore__")
    assert naming.classes.names == ["window"]
    assert naming.ids == {"windows": 0, "window": 0, "sign": 255}


def test_unknown_names_are_refused_each_with_what_it_may_be() -> None:
    with pytest.raises(InputError) as refused:
        named("window", "widow", "sign", given="wall,window")
    said = str(refused.value)
    assert said.startswith("annotations/: 'widow' (did you mean 'window'?), 'sign'")
    assert "--map widow=window" in said
    assert "--map widow=__ignore__" in said
    assert "\n" not in said


def test_a_name_that_is_mapped_to_no_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"--map b=windo: 'windo' \(did you mean 'window'\?\)"):
        named("wall", given="wall,window", b="windo")


def test_ids_do_not_move_when_names_are_added() -> None:
    before = Classes(["window", "door"], [(1, 2, 3), (4, 5, 6)])
    naming = named("balcony", "door", before=before, add_class=True)
    assert naming.classes.names == ["window", "door", "balcony"]
    assert naming.ids == {"balcony": 2, "door": 1}
    assert naming.added == ["balcony"]
    assert [c.color for c in naming.classes] == [(1, 2, 3), (4, 5, 6), FACADE_COLORS["balcony"]]


@pytest.mark.parametrize("given", [None, "door,window,balcony"])
def test_a_new_name_is_refused_unless_it_may_be_added(given: str | None) -> None:
    before = Classes(["window", "door"])
    with pytest.raises(InputError, match=r"'balcony': not among the classes of the dataset.*--add"):
        named("balcony", before=before, given=given)
    assert named("door", before=before).classes == before
    assert named("balcony", before=before, balcony="door").ids == {"balcony": 1}


def test_classes_keep_their_colours() -> None:
    colors = {"door": (9, 9, 9), "fence": (7, 7, 7)}
    naming = named("door", "fence", "window", colors=colors)
    assert [c.color for c in naming.classes] == [(9, 9, 9), (7, 7, 7), FACADE_COLORS["window"]]
    listed = named("door", "fence", colors=colors, given="fence,door")
    assert [c.color for c in listed.classes] == [(7, 7, 7), (9, 9, 9)]


def test_colours_that_the_user_gives_come_first(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text('{"classes": [{"id": 0, "name": "door", "color": [1, 1, 1]}]}')
    assert named("door", given=str(file), colors={"door": (9, 9, 9)}).classes[0].color == (1, 1, 1)


def test_names_that_would_share_a_column_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"'Window' and 'window' would share.*--map"):
        named("Window", "window")
    assert named("Window", "window", Window="window").classes.names == ["window"]


def test_labels_without_any_name_are_refused() -> None:
    with pytest.raises(SourceError, match="annotations/: no shape there has the name of a class"):
        named()


def test_what_no_shape_covers_is_background_if_that_is_a_class_else_void() -> None:
    assert unlabelled_id(None, Classes(["wall", "_background_"])) == 1
    assert unlabelled_id(None, Classes(["wall", "window"])) == 255
    assert unlabelled_id("wall", Classes(["_background_", "wall"])) == 1
    assert unlabelled_id("ignore", Classes(["_background_", "wall"])) == 255
    with pytest.raises(InputError, match=r"--unlabelled wal: 'wal' \(did you mean 'wall'\?\)"):
        unlabelled_id("wal", Classes(["wall"]))


def test_maps_are_read() -> None:
    assert read_renames(["a=b", "c d = e"]) == {"a": "b", "c d": "e"}
    for wrong in ("a", "a=", "=b"):
        with pytest.raises(InputError, match="must be old=new"):
            read_renames([wrong])
    with pytest.raises(InputError, match="'a' is already mapped to 'b'"):
        read_renames(["a=b", "a=c"])


def test_names_that_differ_in_blanks_and_unicode_form_are_one_class() -> None:
    nfc, nfd = "Tür", "Tu\u0308r"
    for given in (None, f"wall,{nfd}"):
        naming = named("wall", "wall\u00a0", "\ufeffwall", nfc, nfd, f" {nfd}", given=given)
        assert sorted(naming.classes.names) == [nfc, "wall"]
        assert len(set(naming.ids.values())) == 2
    assert named("wand ", f"{nfd}", given="wall,door", **{" wand": "wall ", nfc: "wall"}).ids == {
        "wand ": 0,
        nfd: 0,
    }


def test_a_class_that_an_earlier_version_named_with_blanks_is_still_met() -> None:
    before = Classes(["wall ", "Tu\u0308r"])
    naming = named("wall", "Tür", "fenster", before=before, fenster="wall")
    assert naming.classes == before
    assert naming.ids == {"wall": 0, "Tür": 1, "fenster": 0}
    assert unlabelled_id("wall", before) == 0


@pytest.mark.parametrize("name", ["fenster rahmen", "it's", "a$b", "a'b\"c", "a=b"])
def test_the_advice_for_an_unknown_name_can_be_typed_into_a_shell(name: str) -> None:
    with pytest.raises(InputError) as refused:
        named(name, given="wall,window")
    advice = str(refused.value).partition("leave out with ")[2].partition(", or name")[0]
    option, pair = shlex.split(advice)
    assert option == "--map"
    assert named(name, given="wall,window", **read_renames([pair])).ids == {name: 255}
