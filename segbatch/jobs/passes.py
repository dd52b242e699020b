"""Passes: over what is not committed, again and again, until every image has its row.

A pass leaves passing failures for the next; the last one commits them. Images without any result
(their block was lost: a node went, a worker crashed) get further passes as long as each finishes
something: one at a time, where an image that crashes a process of its own twice is known and
committed as ``crashed``; many of them in blocks once more before that. So a killed driver, a lost
node, a dropped block and a poisonous image are all one case.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from segbatch import signals
from segbatch.config.job import Limits
from segbatch.console import say
from segbatch.errors import CredentialsRefused, Fenced, Incomplete, Interrupted, JobFailed
from segbatch.jobs.progress import Progress
from segbatch.results.lease import Lease
from segbatch.results.ledger import Bits, Ledger
from segbatch.results.schema import TRANSIENT_ERRORS
from segbatch.results.write import NEVER_WRITTEN, Account
from segbatch.storage.failures import one_line

# Watch: what a driver looks at while it waits: signals, its lease, and whether anything moves.


class NothingYet(Exception):
    """What is waited for has not come in time."""


class Watch:
    """Over the work of one driver.

    After ``stall_minutes`` without :meth:`moved` it raises
    :class:`~segbatch.errors.Incomplete`. A signal is told to the workers through the lease, so that
    they begin nothing new; :class:`~segbatch.errors.Interrupted` is raised ``grace_s`` later, or as
    much again if results still come.
    """

    def __init__(self, lease: Lease, stall_minutes: float, grace_s: float = 0.0) -> None:
        self.lease = lease
        self.stall_minutes = stall_minutes
        self.grace_s = grace_s
        self._moved = time.monotonic()
        self._deadline: float | None = None  # once a signal arrived

    def moved(self) -> None:
        """An image was finished."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raises ``Interrupted``, ``Fenced`` or ``Incomplete`` where the work has to end."""
        now = time.monotonic()
        if signals.arrived() and self._deadline is None:
            self._deadline = now + self.grace_s  # and as much again while results come
            if self.grace_s:
                say(
                    f"finishing what is being written, {self.grace_s:.0f} s for it;"
                    " a second signal stops at once"
                )
            self.lease.announce_stop()
        if self._deadline is not None and now >= self._deadline + self.grace_s:
            signals.check()
        self.lease.check()
        if now - self._moved > self.stall_minutes * 60:
            raise Incomplete(
                f"no image was finished for {self.stall_minutes:g} minutes"
                " (limits.stall_minutes); run again"
            )

    def over(self, results: Callable[[float], Any]) -> Iterator[Any]:
        """What ``results(timeout)`` gives, until it raises ``StopIteration``.

        It raises :class:`NothingYet` while there is nothing.
        """
        while True:
            self.check()
            try:
                yield results(1.0)
            except StopIteration:
                return
            except NothingYet:
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    signals.check()

    def pause(self, seconds: float) -> None:
        """Sleep, and wake up for what :meth:`check` finds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(1.0, left))


READS_WATCHED = 1000


MAX_BLOCKS = 10_000  # of one execution: the driver keeps some 7 KB about each until it ends


GIVE_UP_FAILED = 1000


FEW_LOST = 1000  # images of lost blocks that are done alone at once; more are done as blocks again


PAUSE_S = 5.0  # times the pass's number, before what failed for a passing reason is tried again


Ids = npt.NDArray[np.int64]


Accounts = Generator[Account, None, None]  # closed where it is left early


class Executor(Protocol):
    """How a pass gets its work done; :mod:`segbatch.jobs.segment` does it with Ray."""

    def blocks(self, images: pa.Table, rows: int, *, last_pass: bool) -> Accounts:
        """Run ``images`` through the pipeline, ``rows`` a block; accounts as files are written.

        May end without an account of some images: their blocks were lost. Raises
        :class:`ExecutionStopped` where it ended as a whole.
        """

    def alone(self, images: pa.Table, *, last_pass: bool) -> Accounts:
        """Run images one at a time; one that crashes a process of its own twice is ``crashed``."""

    def why(self, image: pa.Table) -> str | None:
        """What one image ends with when it is done by itself; ``None`` if nothing is wrong."""


class ExecutionStopped(Exception):
    """An execution ended as a whole, before its images were through; says why."""


class Outcome:
    """What a pass came to: images finished, those left to a later pass, and why it stopped."""

    def __init__(self, num_images: int) -> None:
        self.finished = 0
        self.transient = Bits(num_images)
        # Of what came through, and of what will be tried again.
        self.kinds: Counter[str] = Counter()
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
        self.images_of = images_of  # ids of one slice → their rows of the manifest
        self.bounds = bounds  # (first id, end id) of each slice
        self.block_rows = block_rows
        self.ledger = ledger
        self.watch = watch
        self.progress = progress
        self.on_commit = on_commit
        self.num_images = ledger.taken.size
        self.reads: deque[tuple[int, int]] = deque()  # (reads, forbidden ones) of each account
        self.held: list[Account] = []  # files that are committed only if few are like them

    def run(self, executor: Executor) -> None:
        """Pass until every image is committed.

        Raises ``Incomplete`` where that cannot be reached now, ``Fenced``, ``OSError``.
        """
        try:
            self._pass_until_done(executor)
        except Fenced:
            raise
        except (Incomplete, Interrupted, JobFailed):
            self._commit()  # what came in is kept
            raise

    def _pass_until_done(self, executor: Executor) -> None:
        number, counted = 0, 0
        lost_before, suspects = Bits(self.num_images), np.empty(0, np.int64)
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
            signals.check()  # a pass that a signal ended says nothing
            self.progress.event("pass_end", **outcome.kinds)
            self._release_held()
            self._commit()
            if not self.ledger.remaining():
                return  # also where all that the last pass did was to give some images up
            counted += 0 if outcome.stopped else 1  # one that stopped has not tried every image
            lost = self._lost(outcome)
            if outcome.finished == 0 and (last or outcome.stopped or len(lost)):
                self._refuse_to_go_on(executor, outcome, lost)
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
        """Have ``ids`` of one slice worked on, a bounded number of blocks an execution."""
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
        if account.kind == NEVER_WRITTEN:
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
            self.watch.moved()
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
        """Ten times as many failed images as are allowed: the rest will not be better."""
        failed = self.ledger.kinds.total() - self.ledger.kinds["ok"]
        allowed = self.limits.max_failed_fraction * self.num_images
        if failed >= GIVE_UP_FAILED and failed > 10 * allowed:
            raise JobFailed(
                f"{failed} images failed so far, and limits.max_failed_fraction allows"
                f" {allowed:.0f} of {self.num_images}: stopped; run again with a higher limit to"
                " go on"
            )

    def _watch_reads(self, reads: int, forbidden: int) -> None:
        """More than half of the last thousand reads forbidden is not the images' fault."""
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
        """Whether so many passing failures are the storage's state and not the images'."""
        return num_transient > self.limits.max_failed_fraction * self.num_images

    def _release_held(self) -> None:
        """Enter the failures that were kept back, unless an outage explains them better."""
        held, self.held = self.held, []
        transient = [account for account in held if account.kind in TRANSIENT_ERRORS]
        num_transient = sum(len(account.image_ids) for account in transient)
        outage = self._is_outage(num_transient)
        for account in held:
            if not (outage and account.kind in TRANSIENT_ERRORS):
                self.ledger.enter(account)
        if outage:
            raise Incomplete(
                f"{num_transient} images could not be read for reasons that may pass"
                f" ({transient[-1].kind}: {transient[-1].message}); they are not committed as"
                " failed: run again later"
            )

    def _lost(self, outcome: Outcome) -> Ids:
        """Images without any result, whose blocks are taken apart in the next pass.

        None where an execution stopped as a whole: most of them were never begun.
        """
        if outcome.stopped:
            return np.empty(0, np.int64)
        missing = np.concatenate([self.ledger.taken.missing(*bounds) for bounds in self.bounds])
        lost: Ids = missing[~outcome.transient.contains(missing)]
        if len(lost):
            self.progress.event("lost", images=len(lost))
        return lost

    def _refuse_to_go_on(self, executor: Executor, outcome: Outcome, lost: Ids) -> None:
        """Raise ``Incomplete`` after a fruitless pass, unless single images of it go well.

        They do where a few poisonous ones took everything with them, in a small collection.
        """
        num_missing = self.ledger.remaining()
        reason = outcome.stopped or "run again later"
        for image_id in np.unique(lost[[0, len(lost) // 2, -1]]) if len(lost) else []:
            why = executor.why(self.images_of(np.array([image_id])))
            if why is None:
                return
            reason = why
        raise Incomplete(
            f"{num_missing} images are missing and a whole pass finished none of them: {reason}"
        )

    def _commit_if_possible(self) -> None:
        """Now and then: where the storage fails, all of it is in the next commit."""
        try:
            self._commit()
        except OSError as error:
            self.progress.event("not_committed", reason=one_line(error))

    def _commit(self) -> None:
        if images := self.ledger.commit():
            self.progress.event("commit", version=self.ledger.table.version, committed=images)
        self.on_commit()
