import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.errors import InputError


@pytest.mark.parametrize("name", ["file", "file/demo", "/proc/demo"])
def test_a_place_where_no_folder_can_be_made_is_wrong_input(tmp_path: Path, name: str) -> None:
    from segbatch.demo.tour import tour

    (tmp_path / "file").write_text("a user's")
    with pytest.raises(InputError, match=rf"{tmp_path / name}: no folder .*; name another folder"):
        tour(tmp_path / name)
    assert (tmp_path / "file").read_text() == "a user's"


def test_the_demo_says_in_one_line_what_it_lacks_before_it_renders(tmp_path: Path) -> None:
    """With the modules of the extra hidden, as in an installation without it."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'moto' else find(name, *a);"
        "sys.argv = ['segbatch', 'demo', 'out'];"
        "from segbatch.cli.main import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == ("segbatch: the S3 server needs moto: pip install 'segbatch[demo]'\n")
    assert list(tmp_path.iterdir()) == []
