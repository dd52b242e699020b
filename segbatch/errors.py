"""All exceptions that segbatch raises on purpose, with the exit code of the command.

    SegbatchError
    ├── InputError          2   the user's input is wrong; found before any worker starts
    │   ├── JobFileError        the job file, or a --set
    │   ├── SourceError         the images, the manifest, a labelled dataset
    │   ├── ModelError          the model bundle or its weights
    │   └── RunError            the run's folder: not a run, another job's run, a finished one
    │       ├── Damaged             one of its files is not what was written
    │       └── UnreadableMask      the mask of one image is damaged
    ├── JobFailed           1   the job ran and will fail again unchanged
    │   └── DoesNotFit          one image needs more memory than the device has
    ├── Incomplete          3   run the same command again
    │   ├── LeaseHeld           another driver works on this run
    │   ├── Fenced              another driver has taken over this run
    │   └── CredentialsRefused  the storage no longer accepts our credentials
    └── Interrupted     130/143 stopped by SIGINT or SIGTERM; can be resumed

A message is one line: what is wrong, where, and what to do. Only the command line prints it, and
exits with ``exit_code``. :func:`segbatch.storage.translate_errors` makes these of storage errors.
"""

from __future__ import annotations

import copyreg
import re
import signal
from typing import Any

MAX_WORD = 250  # characters: file names have up to 255 bytes
MAX_LINE = 700
MAX_QUOTED = 60  # characters of a value that a message quotes
# The query of a web address, without the punctuation of the sentence around it.
_QUERY = re.compile(r"(https?://[^\s?]+)\?\S+?(?=[:;,.)}\]]*(?:\s|$))", re.I)


class SegbatchError(Exception):
    """Base of all errors that segbatch raises on purpose; its message is :func:`presentable`."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(presentable(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the message: some errors are made of something else."""
        return copyreg.__newobj__, (type(self), str(self)), self.__dict__  # type: ignore[attr-defined]


def presentable(message: str) -> str:
    """``message`` as a terminal can show it.

    Control characters are written out. Web addresses lose their queries, which may be signatures.
    Of a long value the middle is left out, so that the file, the key and the advice around it stay.
    """
    unsigned = _QUERY.sub(r"\1", visible(message))
    text = re.sub(rf"\S{{{MAX_WORD + 1},}}", lambda word: shortened(word[0], MAX_WORD), unsigned)
    return "\n".join(shortened(line, MAX_LINE) for line in text.split("\n"))


def visible(message: str) -> str:
    """``message`` with its control characters written out; line ends stay."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", _escaped, message)


def shortened(value: object, most: int = MAX_QUOTED) -> str:
    """``value`` as a text, without its middle if that has more than ``most`` characters."""
    text, half = str(value), (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class InputError(SegbatchError):
    """The user's input is wrong."""

    exit_code = 2


class JobFileError(InputError):
    """The job file, or an override of it, is invalid."""


class SourceError(InputError):
    """Images, manifest or labels are missing, empty or of another format than expected."""


class ModelError(InputError):
    """A model bundle, or the weights in it, cannot be used."""


class RunError(InputError):
    """The run's folder is not suitable for the command."""


class Damaged(RunError):
    """A file of a run is not what was written, as its bytes show; never raised for an outage."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"{uri}: is damaged: {why}; repair it with: segbatch run JOB --repair")


class UnreadableMask(RunError):
    """The mask of one image is damaged; ``why`` is the reason without the image's name."""

    def __init__(self, run: str, image_id: int, uri: str, why: SegbatchError) -> None:
        self.why = str(why) if isinstance(why, Damaged) else f"{why}; audit the run"
        super().__init__(f"{run}: image_id {image_id} ({uri}): {self.why}")


class JobFailed(SegbatchError):
    """The job ran to its end and failed; it will fail again unchanged."""

    exit_code = 1


class DoesNotFit(JobFailed):
    """One image needs more memory than the device has."""


class Incomplete(SegbatchError):
    """Something outside the job stopped it; the same command resumes it."""

    exit_code = 3


class LeaseHeld(Incomplete):
    """Another driver holds the run."""


class Fenced(Incomplete):
    """Another driver took over the run while this one was working."""


class CredentialsRefused(Incomplete):
    """The storage refuses our credentials for all objects."""


class Interrupted(SegbatchError):
    """A signal stopped the job; committed results stay, and the next start resumes."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; run it again to resume")
        self.exit_code = 128 + signum
