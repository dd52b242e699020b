"""Environment: the runtime environment that a job is submitted with, and segbatch in it."""

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
from segbatch.cluster.submission import PROBE_ID, NoAnswer, Submission, start
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
PROBE_S = 1800.0  # making an environment with torch in it takes its time


@dataclass(frozen=True)
class Installed:
    """The versions that the driver of a job would have. ``segbatch`` is ``None`` without it."""

    segbatch: str | None
    ray: str


def read_environment(
    file: str | None = None, text: str | None = None, working_dir: str | None = None
) -> dict[str, Any]:
    """A ``runtime_env`` of a YAML or JSON file (any URI) or of JSON, as ``ray job submit`` has it.

    Raises :class:`~segbatch.errors.InputError` for what is none.
    """
    if file is not None and text is not None:
        raise InputError("--runtime-env and --runtime-env-json exclude each other")
    where = "--runtime-env-json" if file is None else file
    values: Any = {}
    try:
        if file is not None:
            values = yaml.safe_load(storage.read_input(file, InputError))
        elif text is not None:
            values = json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: no runtime environment: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: no runtime environment: it should be a mapping of its fields")
    if working_dir is not None:
        values["working_dir"] = working_dir
    return values


def forwarded(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that ``--env NAME`` and ``--env NAME=VALUE`` send along.

    Raises :class:`~segbatch.errors.InputError` for a name that is not set here.
    """
    variables = {}
    for given in names:
        name, equals, value = given.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise InputError(f"--env {name}: no name of a variable")
        if not equals and name not in environment:
            raise InputError(f"--env {name}: is not set here; set it, or give --env {name}=VALUE")
        variables[name] = value if equals else environment[name]
    if SESSION_TOKEN in variables:
        known = [environment[name] for name in EXPIRATIONS if environment.get(name)]
        say(
            f"{SESSION_TOKEN} expires {f'at {known[0]}' if known else 'in some hours'}: the job"
            " stops then, and goes on when it is submitted again; a role of the nodes does not"
        )
    return variables


def with_variables(
    environment: Mapping[str, Any], defaults: Mapping[str, str], variables: Mapping[str, str]
) -> dict[str, Any]:
    """``environment`` with these variables before and after its own.

    Raises :class:`~segbatch.errors.InputError` for a variable that is no text.
    """
    own = environment.get("env_vars") or {}
    if not isinstance(own, Mapping):
        raise InputError("runtime environment: env_vars: should be names and values")
    for name, value in own.items():
        if not isinstance(value, str):
            raise InputError(f"runtime environment: env_vars: {name}: quote it: it is no text")
    return {**environment, "env_vars": {**defaults, **own, **variables}}


def with_segbatch(dashboard: Dashboard, environment: dict[str, Any]) -> dict[str, Any]:
    """``environment``, in which the driver has this version of segbatch: it is asked for it.

    Where it has none it is added: by name if it was installed by name here, else this checkout and
    what it needs. Raises :class:`~segbatch.errors.InputError` where it has another version.
    """
    found = installed(dashboard, environment)
    where = dashboard.get_address()
    if found.segbatch is None:
        _refuse_ray(found.ray, where)
        environment = added(environment)
        what = "this checkout" if "py_modules" in environment else f"segbatch=={_here()}"
        say(f"{where} has no segbatch: sending {what}; pip installs what is missing on each node")
        found = installed(dashboard, environment)
    if found.segbatch != _here():
        raise InputError(
            f"{where} has segbatch {found.segbatch} and here is {_here()}: install"
            f" segbatch=={_here()} there, or submit with {found.segbatch}; another version for one"
            f' job is --runtime-env-json \'{{"pip": ["segbatch=={_here()}"]}}\''
        )
    return environment


def installed(dashboard: Dashboard, environment: dict[str, Any]) -> Installed:
    """What a driver in ``environment`` has, asked by a job of a second.

    Raises :class:`~segbatch.errors.InputError` where the environment cannot be made, and
    :class:`~segbatch.errors.Incomplete` where the cluster lost the job.
    """
    probe = Submission(f"{PROBE_ID}{uuid.uuid4().hex[:12]}", dashboard)
    start(probe, PROBE, environment, {})
    try:
        return Installed(**probe.answer(MARK, PROBE_S))
    except NoAnswer as error:
        where = dashboard.get_address()
        if error.code == Incomplete.exit_code:
            raise Incomplete(f"{where}: {error}; submit it again") from error
        raise InputError(
            f"{where}: cannot run python in this runtime environment: {error}"
        ) from error


def added(environment: dict[str, Any]) -> dict[str, Any]:
    """``environment`` with this segbatch in it.

    Ray makes a virtual environment of ``pip`` upon what the nodes have; what ``uv`` and ``conda``
    make does not see it, and would get a second Ray.
    """
    for kind in ("uv", "conda", "image_uri", "container"):
        if kind in environment:
            raise InputError(
                f"runtime environment: {kind} has no segbatch in it; add segbatch=={_here()}"
            )
    pip = RuntimeEnv(pip=environment.get("pip", [])).to_dict()["pip"]
    package = Path(__file__).parents[1]
    if _released(package):
        return {**environment, "pip": _with_packages(pip, [f"segbatch=={_here()}"])}
    return {
        **environment,
        "py_modules": [*(environment.get("py_modules") or []), str(package)],
        "excludes": [*(environment.get("excludes") or []), "__pycache__"],
        "pip": _with_packages(pip, requirements()),
    }


def _with_packages(pip: dict[str, Any], packages: list[str]) -> dict[str, Any]:
    return {**pip, "packages": [*pip["packages"], *packages]}


def requirements() -> list[str]:
    """What segbatch needs beside Ray, which the cluster has."""
    parsed = map(Requirement, distribution("segbatch").requires or [])
    return [str(one) for one in parsed if one.marker is None and one.name != "ray"]


def _refuse_ray(version: str, where: str) -> None:
    """Raises :class:`~segbatch.errors.InputError` for a Ray that this segbatch does not take."""
    try:
        wanted = distribution("segbatch").requires or []
    except PackageNotFoundError:
        return
    for one in map(Requirement, wanted):
        if one.name == "ray" and not one.specifier.contains(version):
            raise InputError(
                f"{where} runs Ray {version}, and segbatch {_here()} takes ray{one.specifier}"
                f" (here is {ray.__version__}): start the cluster with that"
            )


def _released(package: Path) -> bool:
    """Whether an index has what is installed here, as far as pip has noted it."""
    info = package.parent / f"segbatch-{_here()}.dist-info"
    return info.is_dir() and not (info / "direct_url.json").exists()


def _here() -> str:
    return __version__
