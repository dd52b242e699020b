"""``segbatch serve`` on this machine, or on the Ray of RAY_ADDRESS, until a signal stops it."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from typing import Any
from urllib.request import ProxyHandler, build_opener

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from segbatch import signals
from segbatch.console import say
from segbatch.errors import Incomplete, InputError
from segbatch.jobs.runtime.workers import connected
from segbatch.machine import listen
from segbatch.model.bundle import load_config
from segbatch.serving.app import build
from segbatch.serving.service import Service, route_of, url_of
from segbatch.serving.start import LOOK_S, Start
from segbatch.storage import one_line

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # for listening → to ask this machine itself
ANSWER_S = 30.0


def serve_here(
    service: Service, host: str, port: int, name: str, ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` gets the URL once requests are answered.

    Port 0 takes any free one. Raises :class:`~segbatch.errors.InputError` for a service that cannot
    start, and :class:`~segbatch.errors.Incomplete` if Ray is lost.
    """
    load_config(service.model)  # a wrong name is found before Ray starts
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with signals.interruptible(), connected(say):
        found = serve.status()
        if name in found.applications:
            raise InputError(f"Ray Serve runs an application {name} there already; choose --name")
        if not found.proxies:  # else Serve keeps the host and port that it has
            port = free_port(host, port)
        application = build(service)
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run_many(
                [serve.RunTarget(application, name=name, route_prefix=route_of(name))],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            if _has_started(name):
                _require_answer(url_of(ANY_ADDRESS.get(host, host), port, name))
                shown = socket.gethostname() if host in ANY_ADDRESS else host
                ready(url_of(shown, port, name))
            while not signals.arrived():
                _application(name)
                time.sleep(LOOK_S)
            say("stopping")
        except RayError as error:
            raise Incomplete(f"Ray was lost: {one_line(error)}; start it again") from error
        finally:
            with suppress(RayError, RayServeException):
                serve.delete(name)


def _has_started(name: str) -> bool:
    """Wait for the application to run; ``False`` if a signal came first.

    Raises what :meth:`.Start.is_over` raises.
    """
    start = Start(name)
    while not signals.arrived():
        application = _application(name)
        messages = [application.message, *(d.message for d in application.deployments.values())]
        if start.is_over(application.status, messages):
            return True
        time.sleep(LOOK_S)
    return False


def _application(name: str) -> Any:
    """What Serve says of the application.

    Raises :class:`~segbatch.errors.Incomplete` if somebody has deleted it, ``RayError`` if Ray is
    gone.
    """
    application = serve.status().applications.get(name)
    if application is None:
        raise Incomplete(f"{name} was deleted from Ray Serve; start it again")
    return application


def _require_answer(url: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` unless the server answers at ``url``."""
    deadline = time.monotonic() + ANSWER_S
    direct = build_opener(ProxyHandler({}))  # no proxy leads to this machine
    while not signals.arrived():
        try:
            with direct.open(f"{url}healthz", timeout=5):
                return
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{url}: does not answer: {one_line(error)}; if Ray Serve was running there"
                    " already, give its own --host and --port"
                ) from error
        time.sleep(LOOK_S)


def free_port(host: str, port: int) -> int:
    """``port``, or a free one for 0. Raises ``InputError`` if nothing can listen there."""
    with listen(host, port) as tried:
        found: int = tried.getsockname()[1]
        return found
