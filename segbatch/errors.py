"""Everything that segbatch raises on purpose, and the exit code that it ends with.

    SegbatchError
    ├── InputError          2   what the user gave is wrong; found before any worker starts
    │   ├── JobFileError        the job file, or a --set
    │   ├── SourceError         the images, the manifest, a labelled dataset
    │   ├── ModelError          the model bundle or its weights
    │   └── RunError            the run's folder: not a run, another job's run, a finished one
    │       ├── Damaged             a file of it is not what was written
    │       └── UnreadableMask      the mask of one image
    ├── JobFailed           1   the job ran and will fail again unchanged
    ├── Incomplete          3   run it again as it is
    │   ├── LeaseHeld           another driver works on this run
    │   ├── Fenced              another driver has taken this run over
    │   └── CredentialsRefused  the storage no longer accepts our credentials
    └── Interrupted     130/143 a signal; resumable

A message is one line that says what was wrong, where, and what to do. The command line
prints it and exits with ``exit_code``; nobody else prints an error.
"""

from __future__ import annotations

import signal


class SegbatchError(Exception):
    """Base of all errors that segbatch raises on purpose."""

    exit_code = 1


class InputError(SegbatchError):
    """What the user gave is wrong."""

    exit_code = 2


class JobFileError(InputError):
    """The job file or an override of it cannot be used."""


class SourceError(InputError):
    """Images, manifest or labels are missing, empty or not what they claim to be."""


class ModelError(InputError):
    """A model bundle, or the weights in it, cannot be used."""


class RunError(InputError):
    """The run's folder cannot be used for what was asked."""


class Damaged(RunError):
    """A file of a run is not what was written. Only its bytes tell: never an error of storage."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"{uri}: is damaged: {why}; mend it with: segbatch run JOB --repair")


class UnreadableMask(RunError):
    """The mask of one image of a run is damaged; ``why`` says how, without which image it is."""

    def __init__(self, run: str, image_id: int, uri: str, why: SegbatchError) -> None:
        self.why = str(why) if isinstance(why, Damaged) else f"{why}; audit the run"
        super().__init__(f"{run}: image_id {image_id} ({uri}): {self.why}")


class JobFailed(SegbatchError):
    """The job ran to its end and failed; it will fail again unchanged."""

    exit_code = 1


class Incomplete(SegbatchError):
    """Something outside of the job stopped it; running it again goes on from there."""

    exit_code = 3


class LeaseHeld(Incomplete):
    """Another driver holds the run."""


class Fenced(Incomplete):
    """Another driver took the run over while this one was working."""


class CredentialsRefused(Incomplete):
    """The storage refuses our credentials, for every object and not for one."""


class Interrupted(SegbatchError):
    """A signal ended the job; what was committed stays and the next start resumes."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; run it again to go on")
        self.exit_code = 128 + signum
