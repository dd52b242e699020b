"""Dashboard: the Jobs server on a cluster's head, spoken to without joining its Ray."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import requests
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from segbatch.errors import Incomplete, InputError, SegbatchError
from segbatch.storage import one_line

ADDRESS = "RAY_API_SERVER_ADDRESS"
CONNECT_S = 5.0
ANSWER_S = 15.0
UPLOAD_S = 120.0
EXAMPLE = "--address http://head:8265"

for _module in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(_module).setLevel(logging.WARNING)  # each socket that closes, each upload
logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


class Unanswered(Incomplete):
    """The Jobs server does not answer, or says that it cannot now."""


class Dashboard(JobSubmissionClient):
    """Ray's client, which alone would wait without end, with errors of one line.

    Every method raises :class:`~segbatch.errors.InputError` for a token that is wrong or missing
    and for what the server refuses, :class:`Unanswered` where it does not answer.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        patience_s = ANSWER_S if method == "GET" else UPLOAD_S
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECT_S, patience_s), **options)
        except AuthenticationError as error:
            said = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"{self._address}: {said}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (or"
                " RAY_AUTH_TOKEN) to the cluster's token"
            ) from error
        except requests.RequestException as error:
            raise Unanswered(f"{self._address}: does not answer: {_why(error)}") from error

    def _raise_error(self, r: requests.Response) -> NoReturn:
        said = f"{self._address}: {last_line(r.text).removeprefix('ValueError: ')}"
        raise InputError(said) if r.status_code < 500 else Unanswered(said)


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, what it was."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines else "no reason is given"


def connect(address: str | None) -> Dashboard:
    """The Jobs server at ``address``, else where Ray's own variables say, else of a Ray here.

    ``address`` is the dashboard's URL, or ``host:port`` of it or of the GCS. Raises
    :class:`~segbatch.errors.InputError` where none answers.
    """
    given = address or os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")
    try:
        if given in (None, "auto", "local"):
            return _dashboard(ray_address_to_api_server_url(None))
        return _at(given.rstrip("/"))
    except SegbatchError as error:
        raise InputError(str(error)) from error
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        where = f"{given}: is no Ray dashboard" if given else "no address"
        raise InputError(f"{where}: {one_line(error)}; give it as {EXAMPLE}") from error


def _at(address: str) -> Dashboard:
    if "@" in address:
        raise InputError("the address holds a password; give headers as JSON in RAY_JOB_HEADERS")
    if address.startswith("ray://"):
        raise InputError(f"{address}: is Ray Client's address; jobs are sent to {EXAMPLE}")
    if "://" in address:
        return _dashboard(address)
    try:
        return _dashboard(f"http://{address}")
    except Unanswered as error:
        if isinstance(error.__cause__, requests.Timeout) or "refused" in str(error):
            raise
        return _dashboard(ray_address_to_api_server_url(address))  # it is the GCS that listens


def _dashboard(url: str) -> Dashboard:
    headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
    with _address_only(url):
        return Dashboard(url, headers=headers)


@contextmanager
def _address_only(url: str) -> Iterator[None]:
    """Ray's client prefers the address of the environment to the one that it is given."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = url
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before


def _why(error: requests.RequestException) -> str:
    """What the operating system said, out of a chain of clients."""
    if isinstance(error, requests.Timeout):
        return "it timed out"
    text = str(error)
    for part in ("Connection refused", "Name or service not known", "No route to host"):
        if part in text:
            return part.lower()
    return one_line(error)
