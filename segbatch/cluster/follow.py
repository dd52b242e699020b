"""Follow: the log of a job while it runs, through lost connections, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from ray.job_submission import JobDetails

from segbatch.cluster.dashboard import Unanswered
from segbatch.cluster.submission import Submission
from segbatch.errors import Incomplete

CHECK_S = 5.0  # a server that was switched off closes no connection
RETRY_S = 2.0
GONE_S = 60.0


class JobLog:
    """The log of one job, from its first line, without the job file that Ray begins it with.

    It can be followed again after an interruption, and goes on where it was.
    """

    def __init__(self, submission: Submission, write: Callable[[str], None]) -> None:
        self.submission = submission
        self._write = write
        entrypoint = submission.details().entrypoint
        self._header = f"Running entrypoint for job {submission.id}: {entrypoint}\n"
        self._held: str | None = ""  # until the header has come
        self._seen = 0  # characters
        self._answered = time.monotonic()

    def all(self) -> None:
        """Write what there is now, and was not written yet."""
        self._take(self.submission.dashboard.get_job_logs(self.submission.id)[self._seen :])
        self._release()

    def follow(self) -> JobDetails:
        """Write it as it grows, until the job has ended; its details then.

        Raises :class:`~segbatch.errors.Incomplete` where the cluster is gone.
        """
        self._answered = time.monotonic()
        return asyncio.run(self._follow())

    async def _follow(self) -> JobDetails:
        while True:
            with contextlib.suppress(aiohttp.ClientError, RuntimeError, OSError, Unanswered):
                await self._tail_checked()
            try:
                details = await asyncio.to_thread(self.submission.details)
            except Unanswered as error:
                silent = time.monotonic() - self._answered
                if silent > GONE_S:
                    raise Incomplete(
                        f"{error}; for {silent:.0f} s now. The job {self.submission.id} may still"
                        " run; a cluster that is gone took it along, and submitting it again goes"
                        f" on: segbatch logs {self.submission.id} --address"
                        f" {self.submission.address} --follow"
                    ) from error
            else:
                self._answered = time.monotonic()
                if details.status.is_terminal():
                    self._release()
                    return details
            await asyncio.sleep(RETRY_S)

    async def _tail_checked(self) -> None:
        """Write what comes, until the connection ends or the server no longer answers."""
        tail = asyncio.create_task(self._tail())
        idle = seen = 0  # checks of a job that has ended, without a new line
        try:
            while not tail.done() and idle < 2:
                await asyncio.wait({tail}, timeout=CHECK_S)
                ended = (await asyncio.to_thread(self.submission.details)).status.is_terminal()
                self._answered = time.monotonic()
                idle = idle + 1 if ended and self._seen == seen else 0
                seen = self._seen
            if tail.done():
                await tail
        finally:
            tail.cancel()

    async def _tail(self) -> None:
        position = 0
        pieces: AsyncIterator[str] = self.submission.dashboard.tail_job_logs(self.submission.id)
        async for piece in pieces:
            self._take(piece[max(0, self._seen - position) :])
            position += len(piece)

    def _take(self, piece: str) -> None:
        self._seen += len(piece)
        if self._held is None:
            self._write(piece)
            return
        self._held += piece
        if self._header in self._held:
            self._held = self._held.replace(self._header, "", 1)
            self._release()

    def _release(self) -> None:
        if self._held:
            self._write(self._held)
        self._held = None
