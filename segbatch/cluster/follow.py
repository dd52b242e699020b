"""The log of a job on a cluster, followed to the job's end through lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
from ray.job_submission import JobDetails

from segbatch.cluster.dashboard import GONE_S, Unanswered
from segbatch.cluster.submission import Submission
from segbatch.errors import Incomplete
from segbatch.jobs.runtime.compat import log_header

CHECK_S = 5.0  # a server that is switched off does not close its connections
RETRY_S = 2.0
BEFORE_HEADER = 10_000  # characters that Ray may write before it


class JobLog:
    """The log of one job from its first line, without the job file that Ray puts before it.

    ``write`` gets each piece of text once. :meth:`follow` may be interrupted and called again; it
    continues where it stopped.
    """

    def __init__(self, submission: Submission, write: Callable[[str], None]) -> None:
        self.submission = submission
        self._write = write
        entrypoint = submission.details().entrypoint
        self._header = log_header(submission.id, entrypoint)
        self._held: str | None = ""  # text held back until the header is complete
        self._seen = 0  # characters
        self._answered = time.monotonic()

    def write_available(self) -> None:
        """Write what the log holds now and was not written yet."""
        self._take(self.submission.dashboard.get_job_logs(self.submission.id)[self._seen :])
        self._release()

    def follow(self) -> JobDetails:
        """Write the log as it grows until the job has ended, and return the job's details.

        Raises :class:`~segbatch.errors.Incomplete` after ``GONE_S`` without an answer.
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
                silent_s = time.monotonic() - self._answered
                if silent_s > GONE_S:
                    raise Incomplete(
                        f"{error}; no answer for {silent_s:.0f} s. If the cluster is up, the job"
                        f" {self.submission.id} may still run: segbatch logs {self.submission.id}"
                        f" --address {self.submission.address} --follow. If it is down, submit the"
                        " job again to resume it"
                    ) from error
            else:
                self._answered = time.monotonic()
                if details.status.is_terminal():
                    self._release()
                    return details
            await asyncio.sleep(RETRY_S)

    async def _tail_checked(self) -> None:
        """Write what arrives until the connection ends or the server stops answering."""
        tail = asyncio.create_task(self._tail())
        idle = seen = 0  # idle counts checks of an ended job that found no new text
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
        """Write what one connection sends, which starts at the log's first character."""
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
        elif len(self._held) > BEFORE_HEADER + len(self._header):
            self._release()

    def _release(self) -> None:
        if self._held:
            self._write(self._held)
        self._held = None
