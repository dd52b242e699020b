"""What questions to a run cost, and would cost in other layouts: scripts/bench query.

    scripts/bench query [--rows 10000000] [--s3-rows N] [--rounds 7] [--folder FOLDER] [-o FILE]

The same rows × 6 classes stand on local disk, and then on an S3 server (moto, on the same cores),
as a run of ours, asked through its views `images` and `wide`, and as a good engineer would lay them
out: in flat columns, in a list of structs, and in one table that also holds the masks (row groups
of 500, so that one mask costs no more there than in `rows/`). Every layout is read by the same
DuckDB through the same client, from nothing but its URI to the answer, in turns; medians of at
most `--rounds`, of fewer where they take longer than a minute. Answers must be equal. On S3 the
CPU time of the server is named beside ours: a server elsewhere would not take it from us.

Statistics are random and masks those of rendered facades. Files of `stats/` are written by what
writes them at the finish, with its options, and committed to a Delta table as it does; of `rows/`
the files of the first million rows are there.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from segbatch import storage  # noqa: E402
from segbatch.demo.facades.facades import render_facade  # noqa: E402
from segbatch.demo.s3server import s3_server  # noqa: E402
from segbatch.machine import cpu_model, num_cores  # noqa: E402
from segbatch.masks import decode_mask, encode_mask  # noqa: E402
from segbatch.masks.classes import Classes  # noqa: E402
from segbatch.results.database import open_database, register_filesystems, scan  # noqa: E402
from segbatch.results.finish import STATS_ROW_GROUP_ROWS, write_stats_file  # noqa: E402
from segbatch.results.runinfo import FORMAT, parse_info, write_info  # noqa: E402
from segbatch.results.schema import rows_schema, stats_schema  # noqa: E402
from segbatch.results.stats import coverage, struct_column  # noqa: E402
from segbatch.results.table import DataFile, Table, file_name  # noqa: E402
from segbatch.results.write import ROW_GROUP_ROWS, write_file  # noqa: E402
from segbatch.run import open_run  # noqa: E402

GOAL = 1.1  # of flat columns
BUDGET_S = 60.0  # of one layout's answers to one question
STATS_FILE_ROWS = 8 * STATS_ROW_GROUP_ROWS  # about finish.PART_BYTES
TOGETHER_FILE_ROWS = 16_384
MASK_ROWS = 1_000_000
FILE_ROWS = 500

CLASSES = Classes(["background", "brick", "wall", "window", "door", "roof"])
SCHEMA = rows_schema(CLASSES, stats=["confidence"], user_columns=[pa.field("city", pa.string())])
CITIES = [f"city {number}" for number in range(200)]

OPENING = "nothing (opening)"
# A question over {table}, in which {window} and {brick} are coverages.
QUESTIONS = {
    OPENING: "SELECT 1 FROM {table} LIMIT 1",
    "top 100 by a class": (
        "SELECT image_id, uri, {window} AS share FROM {table} ORDER BY share DESC, uri LIMIT 100"
    ),
    "filter on two classes": (
        "SELECT count(*), min(uri) FROM {table} WHERE {window} > 0.5 AND {brick} > 0.2"
    ),
    "histogram": "SELECT floor({window} * 20) AS bin, count(*) FROM {table} GROUP BY 1 ORDER BY 1",
    "group by a user's column": (
        "SELECT city, count(*), round(avg({window}), 4) FROM {table} GROUP BY 1 ORDER BY 1"
    ),
}
LOOKUP = "one mask by id"
STRUCT, FLAT = "coverage.{}", "coverage_{}"
LIST = "list_filter(classes, lambda c: c.class = '{}')[1].coverage"  # its order is no promise
OURS, WIDE, FLAT_COLUMNS = "images", "wide", "flat columns"
LIST_OF_STRUCTS, TOGETHER = "list of structs", "with the masks"
LAYOUTS = [OURS, WIDE, FLAT_COLUMNS, LIST_OF_STRUCTS, TOGETHER]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--s3-rows", type=int, help="on the S3 server; as many by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="of the data; a temporary one by default")
    parser.add_argument(
        "-o", "--output", type=Path,
        default=ROOT / f"benchmarks/results/{date.today()}-query.json",
    )  # fmt: skip
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{cpu_model()}, {num_cores()} cores",
        "software": {name: importlib.metadata.version(name) for name in ("duckdb", "pyarrow")},
        "classes": len(CLASSES),
    }
    s3_rows = arguments.s3_rows or arguments.rows
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_layouts(folder, arguments.rows)
        result["local disk"] = ask_all(folder, arguments.rows, arguments.rounds)
        if s3_rows != arguments.rows:
            write_layouts(folder := f"{folder}/s3", s3_rows)
        with served(folder) as (uri, server):
            result["S3"] = ask_all(uri, s3_rows, arguments.rounds, server)
    for place in ("local disk", "S3"):
        show(place, result[place])
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


# ----------------------------------------------------------------------------------------- data


def write_layouts(folder: str, num_rows: int) -> None:
    """All layouts below ``folder``: ``run``, and one for each of its peers."""
    say(f"writing {num_rows:,} rows in each layout")
    masks = distinct_masks()
    run = storage.join(folder, "run")
    rows = Table.create(storage.join(run, "rows"), SCHEMA)
    stats = Table.create(storage.join(run, "stats"), stats_schema(SCHEMA))
    epoch = rows.commit(note={"driver": "bench", "event": "driver"})
    with_masks: list[DataFile] = []
    without: list[DataFile] = []
    for start in range(0, num_rows, STATS_FILE_ROWS):
        part = random_rows(start, min(start + STATS_FILE_ROWS, num_rows))
        peer = part.drop_columns("mask")
        write_stats_file(flattened(peer), storage.join(folder, FLAT_COLUMNS), epoch)
        write_stats_file(listed(peer), storage.join(folder, LIST_OF_STRUCTS), epoch)
        for first in range(0, len(part), TOGETHER_FILE_ROWS):
            block = masked(part.slice(first, TOGETHER_FILE_ROWS), masks)
            write_file(block, storage.join(folder, TOGETHER), epoch, "ok")
        files: list[str] = []
        for first in range(0, len(part), FILE_ROWS):
            block = part.slice(first, FILE_ROWS)
            if start + first < MASK_ROWS:
                with_masks.append(write_file(masked(block, masks), rows.uri, epoch, "ok"))
                files += [with_masks[-1].name] * len(block)
            else:
                files += [file_name(epoch, "ok")] * len(block)
        where = [pa.array(files), pa.array(np.arange(len(part)) % FILE_ROWS)]
        placed = peer.append_column("file", where[0]).append_column("file_row", where[1])
        without.append(write_stats_file(placed.cast(stats.schema), stats.uri, epoch))
    rows.commit(with_masks, note={"driver": "bench", "event": "rows"})
    stats.commit(without, note={"event": "stats", "rows": rows.version})
    now = time.time()
    info = {
        "format": FORMAT, "status": "complete", "identity": {}, "job": {},
        "model": {"uri": "models/facades", "sha256": "0" * 64, "classes": CLASSES.to_json()},
        "manifest": {"rows": num_rows, "duplicates": 0, "files": []},
        "created": now, "updated": now,
    }  # fmt: skip
    write_info(run, parse_info(run, info))


def random_rows(start: int, end: int) -> pa.Table:
    """Rows of the ids from ``start`` to ``end`` - 1, in the schema of ``rows/``, without masks."""
    rng = np.random.default_rng(start)
    num = end - start
    pixels = (rng.dirichlet([0.5] * len(CLASSES), num) * 192 * 256).astype(np.int64)
    valid = np.ones(num, bool)
    values: dict[str, Any] = {
        "image_id": pa.array(np.arange(start, end)),
        "uri": [f"s3://bucket/facades/{n // 1000:06d}/{n:09d}.jpg" for n in range(start, end)],
        "status": ["ok"] * num,
        "pixels": pixels, "coverage": coverage(pixels),
        "confidence": rng.random(pixels.shape, np.float32),
        "uncertainty": pa.array(rng.random(num, np.float32)),
        "city": [CITIES[n] for n in rng.integers(len(CITIES), size=num)],
        **dict.fromkeys(("width", "mask_width"), np.full(num, 256)),
        **dict.fromkeys(("height", "mask_height"), np.full(num, 192)),
    }  # fmt: skip
    columns = []
    for field in SCHEMA:
        value = values.get(field.name)
        if value is None:
            columns.append(pa.nulls(num, field.type))
        elif pa.types.is_struct(field.type):
            columns.append(struct_column(value, valid, field.type))
        else:
            columns.append(pa.array(value, field.type))
    return pa.table(columns, schema=SCHEMA)


def distinct_masks() -> list[bytes]:
    """As many as a row group holds, so that compression finds none of them again."""
    maps = [render_facade(seed, 256).label_map % len(CLASSES) for seed in range(25)]
    return [
        encode_mask(np.roll(maps[n % 25], 12 * (n // 25), axis=1), CLASSES.palette)
        for n in range(ROW_GROUP_ROWS)
    ]


def masked(rows: pa.Table, masks: list[bytes]) -> pa.Table:
    chosen = pa.array([masks[n % len(masks)] for n in rows["image_id"].to_pylist()], pa.binary())
    return rows.set_column(rows.column_names.index("mask"), "mask", chosen)


def flattened(rows: pa.Table) -> pa.Table:
    flat = rows.flatten()
    return flat.rename_columns([name.replace(".", "_") for name in flat.column_names])


def listed(rows: pa.Table) -> pa.Table:
    """The statistics of the classes as one column: a list of structs, one a class."""
    names = ["pixels", "coverage", "confidence"]
    flat = [
        np.column_stack([part.to_numpy() for part in rows[name].combine_chunks().flatten()]).ravel()
        for name in names
    ]
    entries = pa.StructArray.from_arrays(
        [pa.array(CLASSES.fields * len(rows)), *map(pa.array, flat)], ["class", *names]
    )
    offsets = np.arange(0, len(entries) + 1, len(CLASSES), dtype=np.int32)
    return rows.drop_columns(names).append_column(
        "classes", pa.ListArray.from_arrays(offsets, entries)
    )


@contextmanager
def served(folder: str) -> Iterator[tuple[str, int]]:
    """What is in ``folder``, on an S3 server: its URI there, and the server's process."""
    with s3_server() as variables:
        os.environ.update(variables)
        [server] = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        storage.filesystem("s3://bench-query")[0].mkdir("bench-query")
        say("copying them to S3")
        for file in storage.list_files(folder):
            key = str(Path(file.uri).relative_to(folder))
            storage.write_bytes(f"s3://bench-query/{key}", storage.read_bytes(file.uri))
        yield "s3://bench-query", int(server)


# ------------------------------------------------------------------------------------ questions


def ask_all(folder: str, num_rows: int, rounds: int, server: int | None = None) -> dict[str, Any]:
    """What every question costs in every layout below ``folder``."""
    run = storage.join(folder, "run")
    found: dict[str, Any] = {
        "rows": num_rows,
        "bytes": {
            name: sum(f.size for f in storage.list_files(storage.join(folder, name)))
            for name in ("run/rows", "run/stats", *LAYOUTS[2:])
        },
        "questions": {},
    }
    for name, question in QUESTIONS.items():
        peers = {FLAT_COLUMNS: FLAT, LIST_OF_STRUCTS: LIST, TOGETHER: STRUCT}
        tasks: dict[str, Callable[[], Any]] = {
            OURS: partial(ask_run, run, filled(question, OURS, STRUCT)),
            WIDE: partial(ask_run, run, filled(question, WIDE, FLAT)),
            **{
                peer: partial(ask_peer, storage.join(folder, peer), filled(question, "t", column))
                for peer, column in peers.items()
            },
        }
        found["questions"][name] = in_turns(name, tasks, rounds, server)
    ids = np.random.default_rng(0).integers(min(num_rows, MASK_ROWS), size=2 * rounds)
    ours, theirs = iter(ids.tolist()), iter(ids.tolist())
    lookups: dict[str, Callable[[], Any]] = {
        OURS: lambda: open_run(run).mask(next(ours)).tobytes(),
        TOGETHER: lambda: mask_of_peer(storage.join(folder, TOGETHER), next(theirs)),
    }
    found["questions"][LOOKUP] = in_turns(LOOKUP, lookups, rounds, server)
    return found


def filled(question: str, table: str, column: str) -> str:
    return question.format(
        table=table, window=column.format("window"), brick=column.format("brick")
    )


def ask_run(run: str, question: str) -> list[Any]:
    return open_run(run).sql(question).fetchall()


def ask_peer(folder: str, question: str) -> list[Any]:
    """The answer over the Parquet files in ``folder``, which the question calls ``t``."""
    con = open_database()
    register_filesystems(con, [folder])
    files = [{"path": storage.name_of(file.uri)} for file in storage.list_files(folder)]
    con.execute(f"CREATE VIEW t AS FROM {scan(con, 'peer', folder, files, pa.schema([]))}")
    return con.sql(question).fetchall()


def mask_of_peer(folder: str, image_id: int) -> bytes:
    [(png,)] = ask_peer(folder, f"SELECT mask FROM t WHERE image_id = {image_id}")
    return decode_mask(png).tobytes()


def in_turns(
    name: str, tasks: dict[str, Callable[[], Any]], rounds: int, server: int | None
) -> dict[str, dict[str, float]]:
    """The median seconds of each task, over rounds in which all take turns, and the server's."""
    seconds: dict[str, list[float]] = {task: [] for task in tasks}
    servers: dict[str, list[float]] = {task: [] for task in tasks}
    answers: dict[str, Any] = {}
    for number in count():
        due = [t for t in tasks if number < rounds and sum(seconds[t]) < BUDGET_S]
        if not due:
            break
        for task in due:
            before, start = cpu_s(server), time.perf_counter()
            answer = tasks[task]()
            seconds[task].append(time.perf_counter() - start)
            servers[task].append(cpu_s(server) - before)
            if number == 0:
                answers[task] = answer
    if wrong := [task for task in tasks if answers[task] != answers[OURS]]:
        raise SystemExit(f"{name}: another answer than {OURS}: {', '.join(wrong)}")
    say(f"{name}: " + ", ".join(f"{t} {statistics.median(s):.3f} s" for t, s in seconds.items()))
    return {
        task: {
            "s": round(statistics.median(seconds[task]), 4),
            "fastest_s": round(min(seconds[task]), 4),
            "server_cpu_s": round(statistics.median(servers[task]), 4),
            "rounds": len(seconds[task]),
        }
        for task in tasks
    }


def cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --------------------------------------------------------------------------------------- tables


def show(place: str, found: dict[str, Any]) -> None:
    """Ratios to flat columns first, seconds behind them."""
    others = [name for name in LAYOUTS if name != FLAT_COLUMNS]
    server = ["server's CPU ÷ seconds, images"] if place == "S3" else []
    print(f"\n{found['rows']:,} rows × {len(CLASSES)} classes on {place}: times flat columns\n")
    head = ["question", *others, "flat columns, s", "images, s", *server]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for question in QUESTIONS:
        costs = found["questions"][question]
        flat_s = costs[FLAT_COLUMNS]["s"]
        cells = [f"{costs[other]['s'] / flat_s:.2f}" for other in others]
        if costs[OURS]["s"] > GOAL * flat_s and question != OPENING:
            cells[0] += " !"
        cells += [f"{flat_s:.3f}", f"{costs[OURS]['s']:.3f}"]
        if server:
            cells.append(f"{costs[OURS]['server_cpu_s'] / costs[OURS]['s']:.2f}")
        print(f"| {question} | {' | '.join(cells)} |")
    one = found["questions"][LOOKUP]
    print(f"\none mask by id: {1000 * one[OURS]['s']:.1f} ms; in one table {TOGETHER}:"
          f" {1000 * one[TOGETHER]['s']:.1f} ms")  # fmt: skip
    sizes = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in found["bytes"].items())
    print(f"on storage: {sizes}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
