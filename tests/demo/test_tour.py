import subprocess
import sys
from pathlib import Path

import pytest

from segbatch.config.images import Prefix
from segbatch.config.job import FinetuneJob, SegmentJob, load_job
from segbatch.errors import InputError


@pytest.mark.parametrize("name", ["file", "file/demo", "/proc/demo"])
def test_a_place_where_no_folder_can_be_made_is_wrong_input(tmp_path: Path, name: str) -> None:
    from segbatch.demo.tour import tour

    (tmp_path / "file").write_text("a user's")
    with pytest.raises(InputError, match=rf"{tmp_path / name}: no folder .*; name another folder"):
        tour(tmp_path / name)
    assert (tmp_path / "file").read_text() == "a user's"


@pytest.mark.parametrize("name", ["a: b", "Zürich 🏠", "{x} 'y' \"z\"", "- a", "& b, c"])
def test_the_jobs_of_the_demo_can_be_read_in_any_folder(tmp_path: Path, name: str) -> None:
    from segbatch.demo.tour import PHOTOS, SEGMENT, _load_training, _write_job, _yaml_text

    folder = tmp_path / name
    folder.mkdir()
    labels, photos = str(folder / "labels"), str(folder / "photos")
    training = _load_training(folder)
    assert isinstance(training, FinetuneJob)
    assert (training.dataset, training.output) == (labels, str(folder / "model"))
    for template in (PHOTOS, SEGMENT):
        extra = {"model": folder / "m"} if template is SEGMENT else {}
        job = _write_job(folder / "b.yaml", template, images=photos, output=folder / "run", **extra)
        assert load_job(job).output == str(folder / "run")
        again = load_job(job, [f"output={_yaml_text(folder / 'run-again')}"])
        assert isinstance(again, SegmentJob)
        assert (again.images, again.output) == ([Prefix(prefix=photos)], str(folder / "run-again"))


def test_a_folder_that_no_job_may_write_to_is_refused_before_anything_is_rendered(
    tmp_path: Path,
) -> None:
    from segbatch.demo.tour import tour

    with pytest.raises(InputError, match=r"output: .*a #1/model has # in it"):
        tour(tmp_path / "a #1")


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
