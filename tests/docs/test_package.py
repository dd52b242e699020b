"""The wheel and the sdist: they hold what the checkout holds, and work without it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from segbatch.__version__ import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = (
        "import sys; from setuptools import build_meta as b; folder = sys.argv[1];"
        " b.build_sdist(folder); b.build_wheel(folder)"
    )
    # From a copy: setuptools leaves files of its own in the folder that it builds.
    tree = tmp_path_factory.mktemp("tree")
    for name in sources():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=tree, check=True, capture_output=True
    )
    return folder


def sources() -> list[str]:
    """What the package is built from, relative to the checkout."""
    package = [
        path
        for path in sorted((ROOT / "segbatch").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    files = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    return [str(path.relative_to(ROOT)) for path in [*files, *package]]


def test_the_wheel_and_the_sdist_hold_every_file_of_the_package(built: Path) -> None:
    expected = {name for name in sources() if name.startswith("segbatch/")}
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        assert expected <= set(wheel.namelist())
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert expected <= names


def test_the_package_has_the_version_of_the_code(built: Path) -> None:
    assert next(built.glob("*.whl")).name == f"segbatch-{__version__}-py3-none-any.whl"
    assert [file.name for file in built.glob("*.tar.gz")] == [f"segbatch-{__version__}.tar.gz"]


def test_the_wheel_works_without_the_checkout(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)

    def said(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "segbatch", *words],
            cwd=tmp_path, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout

    where = "import segbatch; print(segbatch.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(tmp_path))
    assert "kind: segment" in said("init", "segment")
    assert "CC BY 4.0" in said("model", "info", "zoo:facades")
