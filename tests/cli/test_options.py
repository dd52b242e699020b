"""How facts are printed."""

from pathlib import Path

import pytest

from segbatch.cli.options import print_status
from segbatch.run import open_run
from tests.written_run import write_run


def test_the_status_of_a_run_is_in_blocks_without_what_is_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_run(str(tmp_path / "run"), finished=False).uri
    print_status(open_run(uri).summary())
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    keys = [[line.split()[0] for line in block] for block in blocks]
    assert keys[0] == ["run", "status"]
    assert keys[1] == ["images", "ok", "failed", "remaining"]
    assert blocks[0][1].split(maxsplit=1)[1] == (
        "interrupted (its driver is gone; run the same command to resume)"
    )
    assert not {"submission", "driver", "duplicates"} & {key for block in keys for key in block}
