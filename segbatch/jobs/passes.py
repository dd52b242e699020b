"""Passes over the images that are not committed, until every image has its row.

A pass leaves transient failures to the next one; the last pass commits them. Images without any
result (their block was lost with a node or a worker) get further passes as long as each finishes
something, or other images show that workers work. Up to ``FEW_LOST`` of them are done one at a
time, and an image that crashes its own process twice is committed as ``crashed``; more of them are
first tried in blocks again. So a killed driver, a lost node, a dropped block and an image that
kills its worker are handled alike.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch import signals
from segbatch.config.job import Limits
from segbatch.errors import CredentialsRefused, Fenced, Incomplete, Interrupted, JobFailed
from segbatch.jobs.progress import Progress
from segbatch.jobs.watch import Watch
from segbatch.results.ledger import IdSet, Ledger
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.results.write import Account
from segbatch.storage.failures import REFUSED_CREDENTIALS, one_line

READS_WATCHED = 1000
MAX_BLOCKS = 10_000  # of one execution; the driver keeps about 7 KB of each until it ends
GIVE_UP_FAILED = 1000
FEW_LOST = 1000  # images of lost blocks that are done one at a time at once
PAUSE_S = 5.0  # times the number of the pass, before transient failures are tried again

Ids = npt.NDArray[np.int64]
Accounts = Generator[Account, None, None]  # a caller that stops early closes it


class Executor(Protocol):
    """Does the work of a pass; :mod:`segbatch.jobs.runtime.executor` does it with Ray."""

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        """Run ``images`` through the pipeline in blocks of ``rows``; yields accounts of files.

        Images of lost blocks get no account. Raises :class:`ExecutionStopped` if the execution as a
        whole ended early.
        """

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        """Run images one at a time; one that crashes its own process twice is ``crashed``."""

    def why(self, image: pa.Table) -> str | None:
        """The error of one image that is done alone; ``None`` if it succeeds."""


class ExecutionStopped(Exception):
    """An execution ended before all of its images were done; the message says why."""


class Outcome:
    """The result of a pass: finished images, transient failures, why it stopped early."""

    def __init__(self, num_images: int) -> None:
        self.finished = 0
        self.transient = IdSet(num_images)
        self.kinds: Counter[str] = Counter()  # of all accounts, also of transient failures
        self.stopped: str | None = None


class Passes:
    """The passes of one start of a run."""

    def __init__(
        self,
        limits: Limits,
        images_of: Callable[[Ids], pa.Table],
        bounds: list[tuple[int, int]],
        block_rows: int,
        *,
        ledger: Ledger,
        watch: Watch,
        progress: Progress,
        on_commit: Callable[[], None],
    ) -> None:
        self.limits = limits
        self.images_of = images_of  # ids of one slice → rows of the manifest
        self.bounds = bounds  # (first id, end id) of each slice
        self.block_rows = block_rows
        self.ledger = ledger
        self.watch = watch
        self.progress = progress
        self.on_commit = on_commit
        self.num_images = ledger.taken.size
        self.reads: deque[tuple[int, int]] = deque()  # (reads, forbidden reads) of each account
        # Failures that may be an outage or refused credentials; entered at the end of a pass.
        self.held: list[Account] = []

    def run(self, executor: Executor) -> None:
        """Run passes until every image is committed.

        Raises ``Incomplete`` if that is impossible now, ``Fenced``, ``OSError``.
        """
        try:
            self._pass_until_done(executor)
        except Fenced:
            raise
        except (Incomplete, Interrupted, JobFailed):
            self._commit()  # keep what came in
            raise

    def _pass_until_done(self, executor: Executor) -> None:
        number, counted = 0, 0
        lost_before, suspects = IdSet(self.num_images), np.empty(0, np.int64)
        while self.ledger.remaining():
            number += 1
            last = counted + 1 >= self.limits.passes
            self.progress.passes = number
            self.progress.event("pass", remaining=self.ledger.remaining(), alone=len(suspects))
            outcome = Outcome(self.num_images)
            for start, stop in self.bounds:
                ids = self.ledger.taken.missing(start, stop)
                suspect = np.isin(ids, suspects)
                blocks = partial(executor.blocks, rows=self.block_rows, last_pass=last)
                self._take_all(blocks, ids[~suspect], outcome)
                self._take_all(partial(executor.alone, last_pass=last), ids[suspect], outcome)
            signals.check()  # an interrupted pass says nothing about lost images
            self.progress.event("pass_end", **outcome.kinds)
            self._release_held(outcome)
            self._commit()
            if not self.ledger.remaining():
                return  # also if the last pass only gave images up
            counted += 0 if outcome.stopped else 1  # a stopped pass has not tried every image
            lost = self._lost(outcome)
            if outcome.finished == 0 and (last or outcome.stopped or len(lost)):
                self._give_up(executor, outcome, lost, suspects)
            suspects = lost if len(lost) <= FEW_LOST else lost[lost_before.contains(lost)]
            lost_before.add(lost)
            if outcome.transient.count():
                self.watch.pause(PAUSE_S * number)

    def _take_all(
        self,
        work: Callable[[pa.Table], Accounts],
        ids: Ids,
        outcome: Outcome,
    ) -> None:
        """Work on ``ids`` of one slice, with a bounded number of blocks an execution."""
        step = self.block_rows * MAX_BLOCKS
        for start in range(0, len(ids), step):
            signals.check()
            try:
                with closing(work(self.images_of(ids[start : start + step]))) as accounts:
                    for account in accounts:
                        self.watch.check()
                        self._take(account, outcome)
                        if self.ledger.commit_is_due or signals.arrived():
                            self._commit_if_possible()
                        self.on_commit()
            except ExecutionStopped as stopped:
                outcome.stopped = str(stopped)
                self.progress.event("stopped", reason=stopped)

    def _take(self, account: Account, outcome: Outcome) -> None:
        num = len(account.image_ids)
        if account.kind == REFUSED_CREDENTIALS:
            raise CredentialsRefused(
                f"the storage refuses our credentials: {account.message}; renew them and run again"
            )
        self.progress.add(account)
        outcome.kinds[account.kind] += num
        self._watch_reads(num, num if account.kind == "forbidden" else 0)
        if account.kind in TRANSIENT_ERRORS:
            outcome.transient.add(np.array(account.image_ids, np.int64))
        few = not self._is_outage(outcome.transient.count())
        if few or account.kind not in TRANSIENT_ERRORS:
            self.watch.note_progress()
        if account.file is None:
            return
        if account.kind in TRANSIENT_ERRORS or account.kind == "forbidden":
            self.held.append(account)
        elif self.ledger.enter(account):
            outcome.finished += num
            if account.kind == "crashed":
                self.progress.event("crashed", image_ids=account.image_ids, reason=account.message)
            self._give_up_early()

    def _give_up_early(self) -> None:
        """Fail the job early, at more than ten times the allowed number of failed images."""
        failed = self.ledger.kinds.total() - self.ledger.kinds["ok"]
        allowed = self.limits.max_failed_fraction * self.num_images
        if failed >= GIVE_UP_FAILED and failed > 10 * allowed:
            raise JobFailed(
                f"{failed} images failed so far, and limits.max_failed_fraction allows"
                f" {allowed:.0f} of {self.num_images}: stopped; run again with a higher limit to"
                " go on"
            )

    def _watch_reads(self, reads: int, forbidden: int) -> None:
        """Stop if more than half of the last thousand reads were forbidden."""
        self.reads.append((reads, forbidden))
        total = sum(r for r, _ in self.reads)
        while total - self.reads[0][0] >= READS_WATCHED:
            total -= self.reads.popleft()[0]
        refused = sum(f for _, f in self.reads)
        if total >= READS_WATCHED and refused > total / 2:
            raise CredentialsRefused(
                f"{refused} of the last {total} reads were forbidden: check the credentials and"
                " the bucket's policy, and run again"
            )

    def _is_outage(self, num_transient: int) -> bool:
        """Whether so many transient failures mean an outage, not bad images."""
        return num_transient > self.limits.max_failed_fraction * self.num_images

    def _release_held(self, outcome: Outcome) -> None:
        """Enter the held failures, except transient ones during an outage."""
        held, self.held = self.held, []
        transient = [account for account in held if account.kind in TRANSIENT_ERRORS]
        num_transient = sum(len(account.image_ids) for account in transient)
        outage = self._is_outage(num_transient)
        for account in held:
            waits = outage and account.kind in TRANSIENT_ERRORS
            if not waits and self.ledger.enter(account):
                outcome.finished += len(account.image_ids)
        if outage:
            raise Incomplete(
                f"{num_transient} images could not be read for transient reasons"
                f" ({transient[-1].kind}: {transient[-1].message}); they are not committed as"
                " failed: run again later"
            )

    def _lost(self, outcome: Outcome) -> Ids:
        """Images without any result, which the next pass does one at a time if they are few.

        Empty if an execution stopped early: most of its images were never begun.
        """
        if outcome.stopped:
            return np.empty(0, np.int64)
        missing = np.concatenate([self.ledger.taken.missing(*bounds) for bounds in self.bounds])
        lost: Ids = missing[~outcome.transient.contains(missing)]
        if len(lost):
            self.progress.event("lost", images=len(lost))
        return lost

    def _give_up(self, executor: Executor, outcome: Outcome, lost: Ids, suspects: Ids) -> None:
        """Raise ``Incomplete`` after a pass that finished nothing, unless single images succeed.

        They do in a small collection in which a few images crash every worker. Where such images
        are the only ones that are left, one that is committed already is tried: if it succeeds,
        workers work, and the lost images that were no ``suspects`` yet are done one at a time.
        """
        num_missing = self.ledger.remaining()
        reason = outcome.stopped or "run again later"
        for image_id in np.unique(lost[[0, len(lost) // 2, -1]]) if len(lost) else []:
            why = self._why(executor, image_id)
            if why is None:
                return
            reason = why
        committed = self.ledger.committed_id() if len(np.setdiff1d(lost, suspects)) else None
        if committed is not None and self._why(executor, committed) is None:
            return
        raise Incomplete(
            f"{num_missing} images are missing and a whole pass finished none of them: {reason}"
        )

    def _why(self, executor: Executor, image_id: int) -> str | None:
        return executor.why(self.images_of(np.array([image_id])))

    def _commit_if_possible(self) -> None:
        """Commit; if storage fails, the next commit includes these files."""
        try:
            self._commit()
        except OSError as error:
            self.progress.event("not_committed", reason=one_line(error))

    def _commit(self) -> None:
        if images := self.ledger.commit():
            self.progress.commit(images, self.ledger.table.version)
        self.on_commit()
