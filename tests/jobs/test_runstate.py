"""What a start leaves in run.json about itself, without a Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from segbatch.config.job import SegmentJob, load_kind
from segbatch.errors import JobFileError, RunError
from segbatch.images.manifest import FrozenManifest
from segbatch.jobs.preflight import prepare
from segbatch.jobs.progress import Progress
from segbatch.jobs.runstate import RunState, StartRecord
from segbatch.results.runinfo import NodeTime, RunInfo, Start, parse_info, read_info

NODE = NodeTime(cpus=4.0, gpus=0.0, instance=None, spot=None, seconds=1.5)
INFO: dict[str, Any] = {
    "format": 2,
    "status": "running",
    "created": 0.0,
    "job": {},
    "identity": {},
    "model": {"uri": "m", "sha256": "0", "classes": []},
    "manifest": {"rows": 1, "duplicates": 0, "skipped": {}, "files": []},
    "starts": [{"at": 0.0}],
}


def test_machines_are_kept_though_ray_is_gone_when_run_json_is_written(tmp_path: Path) -> None:
    state = RunState(str(tmp_path), parse_info("run", INFO))
    StartRecord(state, Progress(state.uri, 1, 0), lambda: [NODE]).update()
    state.write("incomplete")

    def gone() -> list[NodeTime]:
        raise RuntimeError("Ray is gone")

    StartRecord(state, Progress(state.uri, 1, 0), gone).update()
    state.write("incomplete")
    written = read_info(state.uri)
    assert written is not None
    assert written.starts[0].nodes == [NODE]
    assert written.starts[0].passes == 0


def test_run_json_has_no_signature_and_a_new_one_resumes(tmp_path: Path, model_uri: str) -> None:
    def job(query: str) -> SegmentJob:
        address = f"https://h/list.csv?{query}"
        sources = [address, {"panorama": {"glob": f"https://h/a.jpg?{query}"}}]
        mapping = {"kind": "segment", "images": sources, "model": model_uri, "output": "/run"}
        return load_kind(mapping, SegmentJob)

    first = job("X-Amz-Date=1&X-Amz-Signature=SECRET&v=2")
    prepared = prepare(first)
    listed = FrozenManifest(1, 0, [], [], {})
    state = RunState.new(str(tmp_path), first, prepared, listed)
    state.write("running")
    assert "SECRET" not in Path(tmp_path, "run.json").read_text()
    renewed = job("X-Amz-Date=2&X-Amz-Signature=OTHER&v=2")
    state.refuse_changes(renewed, prepared.model_sha256)
    with pytest.raises(RunError, match="images was "):
        state.refuse_changes(job("X-Amz-Date=1&X-Amz-Signature=SECRET&v=3"), prepared.model_sha256)
    # Earlier versions kept the whole address.
    state.info.identity["images"] = first.model_dump(mode="json")["images"]
    state.refuse_changes(renewed, prepared.model_sha256)


def test_a_run_with_exif_within_its_panorama_resumes_without_it(tmp_path: Path) -> None:
    source: dict[str, Any] = {"panorama": {"prefix": "/panos/"}}
    mapping = {"kind": "segment", "images": source, "model": "/model", "output": "/run"}
    new = load_kind(mapping, SegmentJob)
    state = RunState(str(tmp_path), parse_info("run", INFO))
    state.info.identity = new.identity()
    [begun] = json.loads(json.dumps(state.info.identity["images"]))
    begun["panorama"]["exif"] = True
    state.info.identity["images"] = [begun]
    state.refuse_changes(new, "0")
    source["panorama"]["exif"] = True
    with pytest.raises(JobFileError, match="write exif: true beside panorama"):
        load_kind(mapping, SegmentJob)


def test_the_pace_is_that_of_all_starts(tmp_path: Path) -> None:
    state = RunState(str(tmp_path), parse_info("run", INFO))
    state.info.starts = [Start(at=0.0, images=1000, wall_s=100.0), Start(at=200.0)]
    progress = Progress(state.uri, 1001, 1000)
    progress.kinds["ok"] += 1  # a failed image that was retried
    StartRecord(state, progress, list).update()
    assert state.info.starts[1].images == 1
    assert state.info.images_per_second == pytest.approx(10.0, rel=0.02)


def test_keys_of_later_versions_are_kept_and_what_is_not_set_is_not_written(tmp_path: Path) -> None:
    content = {**INFO, "later": {"a": [1]}, "starts": [{"at": 0.0, "watts": 300}]}
    info = parse_info("run", content)
    assert info.to_json() == content
    state = RunState(str(tmp_path), info)
    state.info.reason = "storage: no answer"
    state.write("incomplete")
    assert read_info(str(tmp_path)) == state.info
    state.write("running")
    written = read_info(str(tmp_path))
    assert isinstance(written, RunInfo)
    assert "reason" not in written.to_json()
