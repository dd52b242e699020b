"""A bucket for one run of a benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from segbatch import storage


@contextmanager
def new_bucket(name: str) -> Iterator[str]:
    """A fresh bucket on the server of the AWS_* variables, deleted in the end; yields its URI."""
    root = f"s3://{name}-{int(time.time())}"
    filesystem, path = storage.filesystem(root)
    filesystem.mkdir(path)
    try:
        yield root
    finally:
        storage.delete([file.uri for file in storage.list_files(root)])
        filesystem.rmdir(path)
