"""The guarantees, proved in five minutes: scripts/prove.

In a temporary folder, with an S3 server of its own: a run is killed three times and resumed, two
drivers are started on one output, and a byte of a finished run is flipped, found and repaired. Each
result is compared with a run that nothing happened to, row by row. Everything is done by the
commands that users type; a driver commits every five seconds instead of every minute, so that a
short run has several commits.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.programs import program  # noqa: E402
from segbatch import open_run, storage  # noqa: E402
from segbatch.demo.facades.facades import render_facade  # noqa: E402
from segbatch.demo.s3server import s3_server  # noqa: E402
from segbatch.errors import SegbatchError  # noqa: E402
from tests.runs import FEW, SAME, rows_of, share_that_differs  # noqa: E402

BUCKET = "s3://prove"
KILLS = 3
SEGBATCH = """
import sys
from segbatch.results import ledger
ledger.COMMIT_EVERY_S = 5.0
from segbatch.cli.main import main
main()
"""


@dataclass(frozen=True)
class Outcome:
    """What was done to a run, and what came out."""

    done: str
    out: str
    good: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120)
    arguments = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="segbatch-prove-") as folder,
        s3_server() as variables,
        ExitStack() as drivers,
    ):
        os.environ |= variables
        proof = Proof(Path(folder), arguments.images, drivers)
        steps: list[Callable[[], Outcome]] = [
            proof.undisturbed,
            proof.killed,
            proof.two_drivers,
            proof.flipped_byte,
        ]
        outcomes = [shown(number, step()) for number, step in enumerate(steps, 1)]
    good = sum(outcome.good for outcome in outcomes)
    print(f"{good} of {len(outcomes)} as promised, in {time.monotonic() - began:.0f} s")
    sys.exit(good < len(outcomes))


def shown(number: int, outcome: Outcome) -> Outcome:
    verdict = "" if outcome.good else "NOT AS PROMISED: "
    print(f"{number}. {outcome.done}\n   → {verdict}{outcome.out}\n", flush=True)
    return outcome


class Proof:
    """The images in the bucket, and the runs over them.

    ``folder`` is for job files and logs; ``drivers`` ends those that still run.
    """

    def __init__(self, folder: Path, num_images: int, drivers: ExitStack) -> None:
        self.folder, self.num_images, self.drivers = folder, num_images, drivers
        storage.filesystem(BUCKET)[0].mkdir(BUCKET.removeprefix("s3://"))
        for number in range(num_images):
            sink = BytesIO()
            Image.fromarray(render_facade(number, 320).image).save(sink, "JPEG", quality=90)
            # One file is cut off, as in every large collection.
            data = sink.getvalue()[: 2000 if number == num_images // 2 else None]
            storage.write_bytes(f"{BUCKET}/photos/{number:04d}.jpg", data)

    def undisturbed(self) -> Outcome:
        began = time.monotonic()
        code = self.start("reference").wait()
        run = open_run(f"{BUCKET}/reference")
        counts = run.info.counts
        return Outcome(
            f"a run over {self.num_images} photographs, one of which is cut off",
            f"exit code {code}: {counts.ok} ok, {sum(counts.failed.values())} failed with its"
            f" reason, in {time.monotonic() - began:.0f} s",
            code == 0 and counts.ok == self.num_images - 1,
        )

    def killed(self) -> Outcome:
        seen = []
        for _ in range(KILLS):
            process = self.start("killed")
            seen.append(self.wait_for_more("killed", seen[-1] if seen else 0, process))
            process.send_signal(signal.SIGKILL)
            process.wait()
        code = self.start("killed").wait()
        compared, good = self.compared("killed")
        return Outcome(
            f"its driver killed -9 when {', '.join(map(str, seen))} images were committed, and"
            " started again by the same command",
            f"exit code {code}: {compared}",
            code == 0 and good,
        )

    def two_drivers(self) -> Outcome:
        pair = [self.start("two"), self.start("two")]
        codes = sorted(process.wait() for process in pair)
        refused = [
            line
            for log in sorted(self.folder.glob("two-*.log"))
            for line in log.read_text().splitlines()
            if line.startswith("segbatch:")
        ]
        compared, good = self.compared("two")
        return Outcome(
            "two drivers started on one output at the same moment",
            f"exit codes {codes[0]} and {codes[1]} ({'; '.join(refused)}): {compared}",
            codes[0] == 0 and codes[1] != 0 and good,
        )

    def flipped_byte(self) -> Outcome:
        files = [file.uri for file in storage.list_files(f"{BUCKET}/killed/rows")]
        victim = min(f for f in files if f.endswith(".parquet") and "_delta_log" not in f)
        data = bytearray(storage.read_bytes(victim))
        data[len(data) // 2] ^= 1
        storage.write_bytes(victim, bytes(data))
        found = self.command("audit", f"{BUCKET}/killed", "--deep")
        repaired = self.start("killed", "--repair").wait()
        compared, good = self.compared("killed")
        return Outcome(
            f"one bit of {storage.name_of(victim)} flipped, then `segbatch audit --deep` and"
            " `segbatch run --repair`",
            f"the audit ends with exit code {found}; repaired with {repaired}: {compared}",
            found == 1 and repaired == 0 and good,
        )

    def start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """``segbatch run`` of the job ``name``, in a process of its own."""
        job = self.folder / f"{name}.yaml"
        job.write_text(
            f"kind: segment\nimages: {BUCKET}/photos/\nmodel: zoo:facades\n"
            f"output: {BUCKET}/{name}\nrows_per_file: 16\npredict: {{precision: fp32}}\n"
        )
        number = len(list(self.folder.glob(f"{name}-*.log")))
        log = (self.folder / f"{name}-{number}.log").open("wb")
        command = [sys.executable, "-c", SEGBATCH, "run", str(job), *options]
        return self.drivers.enter_context(program(command, stdout=log, stderr=subprocess.STDOUT))

    def command(self, *words: str) -> int:
        """The exit code of a command."""
        return subprocess.run(
            [sys.executable, "-m", "segbatch", *words], capture_output=True, check=False
        ).returncode

    def wait_for_more(self, name: str, before: int, process: subprocess.Popen[bytes]) -> int:
        """Wait until more than ``before`` images are committed; returns how many."""
        while process.poll() is None:
            time.sleep(0.5)
            try:
                rows = open_run(f"{BUCKET}/{name}").audit().rows
            except SegbatchError:
                continue  # not begun
            if rows > before:
                return rows
        raise SystemExit(f"the run ended before it could be killed: {process.returncode}")

    def compared(self, name: str) -> tuple[str, bool]:
        """The audit of a run, how its rows differ from the first run's, and whether all is well."""
        run = open_run(f"{BUCKET}/{name}")
        audit = run.audit(deep=True)
        first, rows = rows_of(open_run(f"{BUCKET}/reference")), rows_of(run)
        same = first.select(SAME).equals(rows.select(SAME))
        differing = share_that_differs(first, rows) if same else 1.0
        masks = "equal" if not differing else f"differ in {differing:.1e} of their pixels"
        text = (
            f"{audit.missing} lost, {audit.twice} twice, {len(audit.damaged)} damaged; compared"
            f" with the undisturbed run, rows {'equal' if same else 'DIFFER'}, masks {masks}"
        )
        return text, audit.exit_code == 0 and same and differing <= FEW


if __name__ == "__main__":
    main()
