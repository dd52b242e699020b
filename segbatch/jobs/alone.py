"""Alone: the whole way of a few images in one process, for those that crash the process that they
are in, and what is asked of a sample.
"""

from __future__ import annotations

import pyarrow as pa

from segbatch import storage
from segbatch.errors import Incomplete, SegbatchError
from segbatch.images.decode import Decoded, decode_image
from segbatch.images.fetch import fetch
from segbatch.jobs.stages import (
    PREDICTED,
    Pipeline,
    PredictStage,
    Reading,
    decode_stage,
    encode_stage,
    fetch_stage,
    write_stage,
)


class AllStages:
    """The whole way of a few images, in one process, which loads the model once."""

    def __init__(self, stages: Pipeline) -> None:
        self.stages = stages
        try:
            self.predict = PredictStage(stages.predicting, stages.reading)
        except SegbatchError:
            raise
        except Exception as error:  # of this node, and of no image
            raise Incomplete(f"a worker cannot start: {storage.one_line(error)}") from error

    def run(self, table: pa.Table) -> pa.Table:
        """Images of the manifest in, accounts out."""
        stages = self.stages
        fetched = fetch_stage(table, stages.reading, stages.writing.tenure)
        predicted = self.predict(decode_stage(fetched, stages.reading))
        return write_stage(encode_stage(predicted, stages.encoding), stages.writing)


def all_stages(table: pa.Table, stages: Pipeline) -> pa.Table:
    """The same for images that have a process to themselves."""
    return AllStages(stages).run(table)


def decoded_sizes(table: pa.Table, reading: Reading) -> list[tuple[int, int]]:
    """Of each image that can be decoded: its pixels, and its bytes as the model takes it."""
    fetched = fetch(table, reading.limits)
    decoded = (
        decode_image(data.as_py(), max_pixels=reading.max_pixels, long_side=reading.long_side)
        for data in fetched["data"]
        if data.is_valid
    )
    return [(i.width * i.height, i.pixels.nbytes) for i in decoded if isinstance(i, Decoded)]


def crashed_row(image: pa.Table, message: str, stages: Pipeline) -> pa.Table:
    """Write the failed row of one image of the manifest that crashed its worker."""
    unknown = {name: pa.nulls(1, type_) for name, type_ in PREDICTED.items()}
    said = {"error": pa.array(["crashed"]), "message": pa.array([message])}
    columns = {name: image[name] for name in image.column_names} | unknown | said
    return write_stage(encode_stage(pa.table(columns), stages.encoding), stages.writing)
