import itertools
from collections.abc import Iterator

import boto3
import pytest

from segbatch import storage
from segbatch.demo.s3server import s3_server


class S3:
    """An S3 server for tests; the AWS_* variables point at it."""

    def __init__(self) -> None:
        self.client = boto3.client("s3")
        self.numbers = itertools.count(1)

    def uri(self, name: str) -> str:
        """A prefix called ``name`` in a bucket of its own, which is empty."""
        bucket = f"bucket-{next(self.numbers)}"
        self.client.create_bucket(Bucket=bucket)
        return f"s3://{bucket}/{name}"

    def put(self, uri: str, data: bytes) -> None:
        root, key = storage.split_bucket(uri)
        self.client.put_object(Bucket=root.removeprefix("s3://"), Key=key, Body=data)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as environment:
        environment.delenv("AWS_PROFILE", raising=False)
        for name, value in variables.items():
            environment.setenv(name, value)
        yield S3()
