"""The runtime environment that a job is submitted with, and how segbatch gets into it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import ray
import yaml
from packaging.requirements import Requirement
from ray.runtime_env import RuntimeEnv

from segbatch import storage
from segbatch.__version__ import __version__
from segbatch.cluster.dashboard import Dashboard
from segbatch.cluster.submission import PROBE_ID, NoAnswer, Submission
from segbatch.console import say
from segbatch.errors import Incomplete, InputError
from segbatch.storage import one_line

SESSION_TOKEN = "AWS_SESSION_TOKEN"
EXPIRATIONS = ("AWS_CREDENTIAL_EXPIRATION", "AWS_SESSION_EXPIRATION")
MARK = "segbatch found: "
PROBE = f"""\
exec python - <<'PROBE'
import json
from importlib.metadata import version
try:
    from segbatch import __version__
except ImportError:
    __version__ = None
print({MARK!r} + json.dumps({{"segbatch": __version__, "ray": version("ray")}}))
PROBE
"""
PACKAGE = Path(__file__).parents[1]
PROBE_S = 1800.0  # long enough to install torch


@dataclass(frozen=True)
class Versions:
    """The versions in a runtime environment. ``segbatch`` is ``None`` if it is not installed."""

    segbatch: str | None
    ray: str


def read_environment(
    file: str | None = None, text: str | None = None, working_dir: str | None = None
) -> dict[str, Any]:
    """Read a ``runtime_env`` from a YAML or JSON file (any URI) or from JSON text.

    These are the options of ``ray job submit``. Raises :class:`~segbatch.errors.InputError` for
    anything but a mapping.
    """
    if file is not None and text is not None:
        raise InputError("--runtime-env and --runtime-env-json exclude each other")
    where = "--runtime-env-json" if file is None else file
    values: Any = {}
    try:
        if file is not None:
            values = yaml.safe_load(storage.read_text(file, InputError))
        elif text is not None:
            values = json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: not a runtime environment: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: not a runtime environment: it must be a mapping of its fields")
    if working_dir is not None:
        values["working_dir"] = working_dir
    return values


def forwarded_variables(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``--env NAME`` and ``--env NAME=VALUE`` send with the job.

    Raises :class:`~segbatch.errors.InputError` for a name that is not set in ``environment``.
    """
    variables = {}
    for given in names:
        name, equals, value = given.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"--env {name}: not the name of a variable")
        if not equals and name not in environment:
            raise InputError(f"--env {name}: not set here; set it, or give --env {name}=VALUE")
        variables[name] = value if equals else environment[name]
    if SESSION_TOKEN in variables:
        known = [environment[name] for name in EXPIRATIONS if environment.get(name)]
        say(
            f"{SESSION_TOKEN} expires {f'at {known[0]}' if known else 'in some hours'}: the job"
            " stops then; submit it again to resume it. A role of the nodes does not expire"
        )
    return variables


def with_variables(
    environment: Mapping[str, Any], defaults: Mapping[str, str], variables: Mapping[str, str]
) -> dict[str, Any]:
    """``environment`` with more ``env_vars``: ``variables`` before its own before ``defaults``.

    Raises :class:`~segbatch.errors.InputError` for a variable of ``environment`` that is not a
    string.
    """
    own = environment.get("env_vars") or {}
    if not isinstance(own, Mapping):
        raise InputError("runtime environment: env_vars: must be a mapping of names to values")
    for name, value in own.items():
        if not isinstance(value, str):
            raise InputError(f"runtime environment: env_vars: {name}: not a string; quote it")
    return {**environment, "env_vars": {**defaults, **own, **variables}}


def with_segbatch(dashboard: Dashboard, environment: dict[str, Any]) -> dict[str, Any]:
    """``environment`` in which the cluster is known to have this version of segbatch.

    A short probe job asks for the versions. Where segbatch is missing it is added
    (:func:`add_segbatch`). Raises :class:`~segbatch.errors.InputError` if the cluster has another
    version of segbatch, or a version of Ray that segbatch does not support.
    """
    found = installed_versions(dashboard, environment)
    where = dashboard.get_address()
    if found.segbatch is None:
        _refuse_ray(found.ray, where)
        environment = add_segbatch(environment)
        say(f"{where} has no segbatch: sending this one; each node installs what it needs with pip")
        found = installed_versions(dashboard, environment)
    if found.segbatch != __version__:
        raise InputError(
            f"{where} has segbatch {found.segbatch} and here is {__version__}: install"
            f" {__version__} there, or submit with {found.segbatch}; to send this one with the job:"
            f' --runtime-env-json \'{{"py_modules": ["{PACKAGE}"]}}\''
        )
    return environment


def installed_versions(dashboard: Dashboard, environment: dict[str, Any]) -> Versions:
    """The versions that a driver in ``environment`` would have, found by a job that prints them.

    Raises :class:`~segbatch.errors.InputError` if the environment cannot be created, and
    :class:`~segbatch.errors.Incomplete` if the cluster lost the job.
    """
    probe = Submission(f"{PROBE_ID}{uuid.uuid4().hex[:12]}", dashboard)
    probe.start(PROBE, environment, {})
    try:
        return Versions(**probe.answer(MARK, PROBE_S))
    except NoAnswer as error:
        where = dashboard.get_address()
        if error.code == Incomplete.exit_code:
            raise Incomplete(f"{where}: {error}; submit the job again") from error
        raise InputError(
            f"{where}: cannot run python in this runtime environment: {error}"
        ) from error


def add_segbatch(environment: dict[str, Any]) -> dict[str, Any]:
    """``environment`` with this segbatch and what it needs.

    The package itself is sent, because segbatch is on no package index. What it needs is added to
    ``pip``, for which Ray creates a virtual environment on top of the node's packages. Environments
    of ``uv`` and ``conda`` do not see those and would need a second Ray. Raises
    :class:`~segbatch.errors.InputError` for an environment of such a kind.
    """
    for kind in ("uv", "conda", "image_uri", "container"):
        if kind in environment:
            raise InputError(
                f"runtime environment: {kind} has no segbatch in it; add a wheel of segbatch"
                f" {__version__} that the nodes can reach"
            )
    pip = RuntimeEnv(pip=environment.get("pip", [])).to_dict()["pip"]
    return {
        **environment,
        "py_modules": [*(environment.get("py_modules") or []), str(PACKAGE)],
        "excludes": [*(environment.get("excludes") or []), "__pycache__"],
        "pip": {**pip, "packages": [*pip["packages"], *_requirements()]},
    }


def _requirements() -> list[str]:
    """What segbatch requires except Ray, which the cluster has, and its extras.

    A requirement for some platforms keeps its condition, which pip evaluates on the node.
    """
    parsed = map(Requirement, distribution("segbatch").requires or [])
    return [
        str(one) for one in parsed if one.name != "ray" and "extra ==" not in str(one.marker or "")
    ]


def _refuse_ray(version: str, where: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a Ray that this segbatch does not support."""
    try:
        requirements = distribution("segbatch").requires or []
    except PackageNotFoundError:
        return
    for one in map(Requirement, requirements):
        if one.name == "ray" and not one.specifier.contains(version):
            raise InputError(
                f"{where} runs Ray {version}, and segbatch {__version__} needs ray{one.specifier}"
                f" (here is {ray.__version__}): start the cluster with that"
            )
