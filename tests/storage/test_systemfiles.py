import pytest

from segbatch.storage import SystemFiles
from segbatch.storage.systemfiles import system_part


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("a.jpg", None),
        ("street.thumbnails/a.jpg", None),
        ("my__MACOSX/a.jpg", None),
        ("._a.jpg", "._*"),
        ("x/.DS_Store", ".DS_Store"),
        ("x/Thumbs.DB", "Thumbs.DB"),
        ("__MACOSX/x/a.jpg", "__MACOSX/"),
        ("x/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/"),
        (".thumbnails/a.jpg", ".thumbnails/"),
        ("x/.ipynb_checkpoints/a.jpg", ".ipynb_checkpoints/"),
        ("$RECYCLE.BIN/a.jpg", "$RECYCLE.BIN/"),
    ],
)
def test_system_files_are_known_by_their_names(path: str, part: str | None) -> None:
    assert system_part(path) == part


@pytest.mark.parametrize(
    ("glob", "left_out"),
    [
        ("**/*.jpg", ["._a.jpg", ".cache/a.jpg", ".cache/._b.jpg", "x/@eaDir/c.jpg"]),
        ("._*", [".cache/a.jpg", ".cache/._b.jpg", "x/@eaDir/c.jpg"]),
        (".c*/*.jpg", ["._a.jpg", ".cache/._b.jpg", "x/@eaDir/c.jpg"]),
        (".*/._[a-z].jpg", ["x/@eaDir/c.jpg"]),
        ("**/@eaDir/*", ["._a.jpg", ".cache/a.jpg", ".cache/._b.jpg"]),
    ],
)
def test_a_glob_names_the_system_files_that_it_spells(glob: str, left_out: list[str]) -> None:
    paths = ["._a.jpg", ".cache/a.jpg", ".cache/._b.jpg", "x/@eaDir/c.jpg", "d.jpg"]
    taken = list(SystemFiles(glob).left_out(paths, str))
    assert [path for path in paths if path not in taken] == left_out


def test_system_files_are_left_out_and_counted() -> None:
    system = SystemFiles()
    paths = ["a.jpg", "._a.jpg", "._b.jpg", "__MACOSX/._a.jpg", "b.jpg"]
    assert list(system.left_out(paths, str)) == ["a.jpg", "b.jpg"]
    assert str(system) == "3 system files (._*, __MACOSX/)"
    assert str(SystemFiles()) == ""
