"""``segbatch serve --address``: deploys through the REST API that ``serve deploy`` uses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from segbatch.cluster.dashboard import connect
from segbatch.cluster.environment import with_segbatch, with_variables
from segbatch.cluster.submit import out_of_reach, values_hidden
from segbatch.console import say
from segbatch.errors import Incomplete, InputError
from segbatch.serving.service import IMPORT_PATH, Service, route_of, url_of
from segbatch.serving.start import LOOK_S, Start


def deploy(
    service: Service,
    address: str,
    *,
    name: str,
    host: str,
    port: int,
    env_vars: Mapping[str, str] | None = None,
) -> str:
    """Deploy on the cluster whose dashboard is at ``address``; returns the URL once it is served.

    Serve's other applications stay; one of the same ``name`` is updated. ``host`` and ``port`` are
    for Serve's first start there. Raises :class:`~segbatch.errors.InputError` for a model or a
    cluster that cannot be used, and what the application raises when it starts.
    """
    if problem := out_of_reach(service.model):
        raise InputError(problem)
    dashboard = connect(address)
    variables = env_vars or {}
    with values_hidden(variables):
        environment = with_segbatch(dashboard, with_variables({}, {}, variables))
        running = dashboard.serve_details()["applications"]
        others = [
            each["deployed_app_config"]
            for each in running.values()
            if each["name"] != name and each["deployed_app_config"]
        ]
        application = application_config(service, name, dashboard.upload_modules(environment))
        dashboard.deploy(
            {
                "http_options": {"host": host, "port": port},
                "applications": [*others, application],
            }
        )
        say(f"deploying at {dashboard.get_address()}; Ctrl-C leaves it to start there")
        start = Start(name)
        while True:
            details = dashboard.serve_details()
            now = details["applications"].get(name)
            if now is None:
                raise Incomplete(f"{name} was deleted from Ray Serve; deploy it again")
            messages = [now["message"], *(each["message"] for each in now["deployments"].values())]
            if start.is_over(now["status"], messages):
                break
            time.sleep(LOOK_S)
    head = urlsplit(dashboard.get_address()).hostname or host
    return url_of(head, details["http_options"]["port"], name)


def application_config(
    service: Service, name: str, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """The service as an entry of ``applications`` in a configuration of Serve."""
    return {
        "name": name,
        "route_prefix": route_of(name),
        "import_path": IMPORT_PATH,
        "args": service.model_dump(mode="json", exclude_unset=True),
        "runtime_env": dict(environment),
    }
