import itertools
import logging
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from segbatch import storage


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
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("AWS_PROFILE", raising=False)
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield S3()
    server.stop()
