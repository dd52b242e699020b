"""The list of images of a run: frozen once, extended when asked for, counted again afterwards.

A run begins when its list is frozen, and a finished run is extended by freezing more images behind
those that it has. Both check the first images before they write ``run.json``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from segbatch import signals, storage
from segbatch.config.images import location_of
from segbatch.config.job import SegmentJob
from segbatch.console import say
from segbatch.errors import SegbatchError
from segbatch.images import manifest
from segbatch.jobs.preflight import Prepared, check_first_images
from segbatch.jobs.runstate import RunState
from segbatch.results.lease import Lease
from segbatch.results.schema import RESERVED_COLUMNS
from segbatch.storage import hub

COUNT_S = 60.0  # limit for counting the images of the sources of a finished run


def begin_run(uri: str, job: SegmentJob, prepared: Prepared, lease: Lease) -> RunState:
    """Freeze the list of images, and begin the run with its first ``run.json``."""
    say("freezing the list of images")
    frozen = manifest.freeze(job.sources, **_manifest_options(uri, job, lease))
    skipped = ", ".join(
        f"{count} {end or 'without extension'}" for end, count in sorted(frozen.skipped.items())
    )
    say(f"{frozen.rows:,} images" + (f"; skipped {skipped}" if skipped else ""))
    if frozen.duplicates:
        say(f"{frozen.duplicates:,} URIs are repeated; each occurrence gets its own row")
    state = RunState.new(uri, job, prepared, frozen)
    check_first_images(state.first_images, prepared)
    lease.confirm()
    state.write("running")
    return state


def add_new_images(state: RunState, job: SegmentJob, prepared: Prepared, lease: Lease) -> None:
    """Freeze the images that the sources have gained, behind those that the run has."""
    say("looking for new images")
    old = state.info.manifest
    frozen = manifest.extend(
        job.sources, frozen=old.files, **_manifest_options(state.uri, job, lease)
    )
    if frozen.gone:
        say(f"{frozen.gone:,} images of the run are no longer in the source; their rows stay")
    if frozen.left_out:
        say(f"left out, because the run does not have them: column {', '.join(frozen.left_out)}")
    if frozen.rows == old.rows:
        say(f"no new images: the run has all that the source has ({old.rows:,})")
        return
    first_id = old.rows
    say(f"{frozen.rows - first_id:,} new images, behind the {first_id:,} of the run")
    state.refuse_damaged_logs()
    state.extend(frozen)
    check_first_images(state.images_from(first_id), prepared)
    lease.confirm()
    state.write("running")


def _manifest_options(uri: str, job: SegmentJob, lease: Lease) -> dict[str, Any]:
    def confirm() -> None:
        signals.check()
        lease.confirm()

    return {
        "folder": storage.join(uri, "manifest"),
        "reserved": RESERVED_COLUMNS | set(job.formulas),
        "leave_out": uri,
        "confirm": confirm,
    }


def say_growth(state: RunState, job: SegmentJob) -> None:
    """Say how many images the sources have now, if they have more than the run."""
    if any(hub.is_on_hub(location_of(source)) for source in job.sources):
        return  # the run has those of one commit
    try:
        count = manifest.count_images(job.sources, leave_out=state.uri, limit_s=COUNT_S)
    except (SegbatchError, OSError) as error:
        say(f"whether there are new images is unknown: {storage.one_line(error)}")
        return
    if count.rows > state.num_images:
        frozen = datetime.fromtimestamp(state.info.frozen_at, UTC)
        say(
            f"the run has the {state.num_images:,} images of {frozen:%Y-%m-%d %H:%M} UTC; the"
            f" source has {'' if count.whole else 'at least '}{count.rows:,} now: to add the new"
            " ones, run it again with --extend; or choose a new output"
        )
    elif not count.whole:
        say(
            f"whether there are new images is unknown: counting takes more than {COUNT_S:.0f} s;"
            " --extend looks for them and adds them"
        )
