"""What a driver leaves in run.json about itself, without a Ray."""

from pathlib import Path
from typing import Any

from segbatch.jobs.progress import Progress
from segbatch.jobs.runstate import RunState
from segbatch.results.runfolder import read_info

NODE = {"cpus": 4.0, "gpus": 0.0, "instance": None, "spot": None, "seconds": 1.5}
INFO: dict[str, Any] = {"manifest": {"rows": 1}, "identity": {}, "status": "running"}


def test_machines_are_kept_though_ray_is_gone_when_run_json_is_written(tmp_path: Path) -> None:
    state = RunState(str(tmp_path), {**INFO, "starts": [{"at": 0.0}]})
    state.note_nodes()  # before there is a Ray to ask
    state.nodes = lambda: [NODE]
    state.progress = Progress(state.uri, 1, 0)
    state.note_nodes()
    state.nodes = lambda: []  # as after ray.shutdown()
    state.write("incomplete")

    def gone() -> list[dict[str, Any]]:
        raise RuntimeError("Ray is gone")

    state.nodes = gone
    state.note_nodes()
    state.write("incomplete")
    written = read_info(state.uri)
    assert written is not None
    assert written["starts"][0]["nodes"] == [NODE]
    assert written["starts"][0]["passes"] == 0
