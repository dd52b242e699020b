"""What a repair makes of a damaged manifest, from the rows of its images."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segbatch.images.manifestfile import ManifestFile
from segbatch.images.video import FRAME_COLUMNS
from segbatch.results.repair import plan_repair
from segbatch.results.runinfo import write_info
from segbatch.run import open_run
from tests.written_run import USER_COLUMNS, USER_VALUES, write_run


def test_the_manifest_of_a_video_has_its_frames_and_times_again(tmp_path: Path) -> None:
    run = write_run(
        str(tmp_path / "run"),
        user_columns=[*USER_COLUMNS, *FRAME_COLUMNS],
        user_values={**USER_VALUES, "frame": lambda n: 25 * n, "time_s": float},
    )
    names = ["image_id", "uri", *(field.name for field in (*USER_COLUMNS, *FRAME_COLUMNS))]
    listed = run.sql(f"SELECT {', '.join(names)} FROM images ORDER BY image_id").to_arrow_table()
    file = Path(run.uri, "manifest", "00000.parquet")
    file.parent.mkdir()
    pq.write_table(listed, file)
    run.info.manifest.files = [
        ManifestFile(
            name=file.name,
            rows=len(listed),
            first_id=0,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
            size=file.stat().st_size,
        )
    ]
    write_info(run.uri, run.info)
    assert not plan_repair(open_run(run.uri)).manifest
    file.write_bytes(b"PAR1")
    rebuilt = plan_repair(open_run(run.uri)).manifest
    read = pq.read_table(io.BytesIO(rebuilt[file.name]))
    assert read.to_pylist() == listed.to_pylist()
    assert read.schema.field("time_s").type == pa.float64()
