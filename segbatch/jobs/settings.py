"""The settings of the segment job's stages, which a run and a plan's measurement share."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from segbatch.config.job import Predict, SegmentJob
from segbatch.jobs.preflight import Prepared
from segbatch.jobs.stages import Predicting, Stages
from segbatch.masks.classes import Classes
from segbatch.model.bundle import Packed
from segbatch.results.encode import Encoding, user_fields
from segbatch.results.schema import rows_schema
from segbatch.results.write import Writing


def schema_of(job: SegmentJob, classes: Classes, images: pa.Table) -> pa.Schema:
    """The schema of every file in ``rows/``; ``images`` are rows of the manifest."""
    return rows_schema(
        classes,
        stats=job.stats,
        formulas=list(job.formulas),
        user_columns=user_fields(images.schema),
    )


def stages_of(
    job: SegmentJob,
    prepared: Prepared,
    writing: Writing,
    *,
    model: str | Callable[[], Packed],
    options: Predict,
    device: str,
    threads: int,
) -> Stages:
    """The settings of all stages, with the model and the options that the workers predict with."""
    encoding = Encoding(
        prepared.config.classes,
        writing.schema,
        prepared.formulas,
        store_masks=job.masks != "none",
    )
    predicting = Predicting(
        model=model,
        options=options,
        device=device,
        threads=threads,
        original_grid=job.masks == "original",
        keep_label_maps=encoding.wants_label_maps,
        confidence="confidence" in job.stats,
    )
    return Stages(prepared.reading, predicting, encoding, writing)
