"""HTTP client for a Ray cluster's dashboard: its Jobs server and Serve's REST API.

It has time-outs and one-line errors, and does not join the cluster's Ray.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient
from urllib3.exceptions import ProtocolError

from segbatch.errors import Incomplete, InputError, SegbatchError
from segbatch.jobs.runtime.compat import JOBS_CLIENT_LOGS, api_server_url
from segbatch.storage import one_line

ADDRESS = "RAY_API_SERVER_ADDRESS"
CONNECT_S = 5.0
ANSWER_S = 15.0
UPLOAD_S = 120.0
EXAMPLE = "--address http://head:8265"
SERVE = "/api/serve/applications/"

GONE_S = 60.0  # without an answer, a server is taken for gone

for _name in JOBS_CLIENT_LOGS:
    logging.getLogger(_name).setLevel(logging.WARNING)


class Unanswered(Incomplete):
    """The Jobs server does not answer, or answers that it is unavailable."""


class Dashboard(JobSubmissionClient):
    """Ray's Jobs client with time-outs, which Ray's own does not set, and one-line errors.

    Two methods that it overrides are private. In a Ray that no longer calls them, requests have no
    time-out and errors are Ray's. A third, which it calls, uploads a checkout for ``segbatch
    serve``.

    Every method raises :class:`~segbatch.errors.InputError` for a missing or wrong token and for
    requests that the server refuses, and :class:`Unanswered` where the server does not answer.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        answer_s = ANSWER_S if method == "GET" else UPLOAD_S
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECT_S, answer_s), **options)
        except AuthenticationError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"{self.get_address()}: {reason}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"
                " (or RAY_AUTH_TOKEN) to the cluster's token"
            ) from error
        except requests.RequestException as error:
            reason = f"{_reason(error)}{_proxy_hint(self.get_address())}"
            raise Unanswered(f"{self.get_address()}: does not answer: {reason}") from error

    def serve_details(self) -> dict[str, Any]:
        """What Ray Serve runs on the cluster, as its REST API says it."""
        return dict(self._answer("GET", SERVE).json())

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make Ray Serve run the applications of ``config``, and no others that came this way."""
        self._answer("PUT", SERVE, json_data=dict(config))

    def upload_modules(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """``environment`` with its local ``py_modules`` uploaded to the cluster."""
        uploaded = dict(environment)
        self._upload_py_modules_if_needed(uploaded)
        return uploaded

    def _answer(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        answer = self._do_request(method, endpoint, **options)
        if answer.status_code != 200:
            self._raise_error(answer)
        return answer

    def _raise_error(self, r: requests.Response) -> NoReturn:
        message = f"{self.get_address()}: {last_line(r.text).removeprefix('ValueError: ')}"
        if r.status_code >= 500 or r.status_code in (403, 407):
            message += _proxy_hint(self.get_address())
        raise InputError(message) if r.status_code < 500 else Unanswered(message)


def _proxy_hint(url: str) -> str:
    """What to do about the proxy that the environment names for ``url``, if there is one."""
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    if proxy is None:
        return ""
    host = urlsplit(url).hostname
    shown = urlsplit(proxy)._replace(netloc=urlsplit(proxy).netloc.rpartition("@")[2]).geturl()
    return f"; it was asked through the proxy {shown}: set NO_PROXY={host} to ask it directly"


def connect(address: str | None) -> Dashboard:
    """Connect to the Jobs server at ``address``, by default to the one of Ray's own variables.

    ``address`` is the dashboard's URL, also as a browser shows it (``…/#/jobs``), or ``host:port``
    of the dashboard or of the GCS. Without it, ``RAY_API_SERVER_ADDRESS`` and ``RAY_ADDRESS`` are
    tried, then a Ray on this machine. Raises :class:`~segbatch.errors.InputError` where no Jobs
    server answers.
    """
    given = address or os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")
    try:
        if given in (None, "auto", "local"):
            return _dashboard(api_server_url(None))
        return _dashboard_at(given.rstrip("/"))
    except SegbatchError as error:
        raise InputError(str(error)) from error
    except (
        *(AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError),
        RayError,
    ) as error:
        where = f"{given}: not a Ray dashboard" if given else "no address"
        hint = ""
        if given and isinstance(error, requests.RequestException | RuntimeError):  # an answer
            hint = _proxy_hint(given if "://" in given else f"http://{given}")
        hint = hint or f"; give it as {EXAMPLE}"
        raise InputError(f"{where}: {one_line(error).rstrip('.')}{hint}") from error


def _dashboard_at(address: str) -> Dashboard:
    if "@" in address:
        raise InputError("the address holds a password; give headers as JSON in RAY_JOB_HEADERS")
    if address.startswith("ray://"):
        raise InputError(f"{address}: is Ray Client's address; jobs are sent to {EXAMPLE}")
    address = re.sub(r"/*[?#].*", "", address)  # the page of the dashboard that a browser shows
    if "://" in address:
        return _dashboard(address)
    try:
        return _dashboard(f"http://{address}")
    except Unanswered as error:
        cause = error.__cause__
        if cause is None or not any(isinstance(arg, ProtocolError) for arg in cause.args):
            raise  # nothing listens, or a server of HTTP that does not work
        # Something listens that does not speak HTTP: the GCS, which knows the dashboard's URL.
        return _dashboard(api_server_url(address))


def _dashboard(url: str) -> Dashboard:
    headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
    with _address_variable(url):
        return Dashboard(url, headers=headers)


@contextmanager
def _address_variable(url: str) -> Iterator[None]:
    """Set ``RAY_API_SERVER_ADDRESS``, which Ray's client prefers to the address it is given."""
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = url
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        if before is not None:
            os.environ[ADDRESS] = before


def last_line(text: str) -> str:
    """The last line with a word in it (of a traceback, the error), at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines else "no reason is given"


def _reason(error: requests.RequestException) -> str:
    """The operating system's reason, taken out of the nested messages of HTTP clients."""
    if isinstance(error, requests.Timeout):
        return "it timed out"
    text = str(error)
    for reason in (
        "Connection refused",
        "Name or service not known",
        "Temporary failure in name resolution",
        "Network is unreachable",
        "No route to host",
    ):
        if reason in text:
            return reason.lower()
    return one_line(error)
