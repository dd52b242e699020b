"""Options that have no effect on a job are refused before anything else, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from segbatch.cluster.submit import submit
from segbatch.config.job import load_job
from segbatch.errors import InputError
from segbatch.jobs.options import check_options
from segbatch.jobs.segment import segment

# Nothing of it is there.
WORK = {"kind": "segment", "images": "s3://b/i/", "model": "s3://b/m", "output": "s3://b/run"}


@pytest.mark.parametrize("start", [segment, submit])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["timeout"]}, "^--only needs --retry-failed$"),
        ({"only": ["timeout"], "repair": True}, "^--only needs --retry-failed$"),
        ({"only": ["tiemout"], "retry_failed": True}, "^--only tiemout: no such kind; kinds: ti"),
        ({"only": ["ok", "crashed"], "retry_failed": True}, "^--only ok: no such kind"),
    ],
)
def test_an_option_without_effect_is_refused(
    start: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        start(WORK, **options)


@pytest.mark.parametrize("option", ["retry_failed", "repair", "extend"])
def test_an_option_of_segment_jobs_is_refused_for_other_ones(option: str) -> None:
    options: dict[str, Any] = {option: True}
    job = load_job({"kind": "evaluate", "dataset": "labels", "model": "model", "output": "out"})
    with pytest.raises(InputError, match=r"^--\S+ is for jobs of kind: segment, not evaluate$"):
        check_options(job, **options)
