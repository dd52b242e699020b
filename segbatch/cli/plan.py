"""The command line of ``segbatch plan``."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from segbatch.cli.facts import Facts, FactsFormat, print_facts
from segbatch.cli.options import JobFile, Overrides
from segbatch.errors import InputError
from segbatch.jobs.runtime.sharing import PASSIVE_THREADS

plan_app = typer.Typer()

_HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}


@plan_app.command("plan")
def plan_command(
    job: JobFile,
    overrides: Overrides = None,
    *,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="Measure on this cluster, by a job.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its node types; cluster.yaml, if it is here."),
    ] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="FILE", help="A table of prices of your own.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="8h", help="How many nodes it takes: 90m, 8h, 2d.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="How many nodes that pays for.")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="Images to measure.")] = 200,
    list_seconds: Annotated[
        float, typer.Option("--list-seconds", min=0, help="Seconds to list for, at most.")
    ] = 60.0,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="With --address: send this variable along."),
    ] = None,
    format: FactsFormat = Facts.text,
) -> None:
    """What a job would take, before it runs: images, hours, money; writes nothing."""
    # Threads that spin on a busy machine take many times as long, and measure nothing but that.
    for name, value in PASSIVE_THREADS.items():
        os.environ.setdefault(name, value)
    from segbatch.cli.planned import print_plan
    from segbatch.cluster.offers import Wish
    from segbatch.cluster.plan import plan
    from segbatch.cluster.survey import Effort
    from segbatch.config.job import load_job

    env_vars = {}
    if env:
        from segbatch.cluster.environment import forwarded

        env_vars = forwarded(env, os.environ)
    planned = plan(
        load_job(job, overrides or ()),
        address,
        cluster=cluster,
        prices=prices,
        wish=Wish(None if deadline is None else hours_of(deadline), budget),
        effort=Effort(images=sample, list_s=list_seconds),
        env_vars=env_vars,
    )
    if format is Facts.json:
        print_facts(planned.to_json(), format)
    else:
        print_plan(planned)


def hours_of(text: str) -> float:
    """``90m``, ``8h`` or ``2d`` in hours. Raises :class:`~segbatch.errors.InputError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd])", text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"--deadline {text}: write it as 90m, 8h or 2d")
    return float(match[1]) * _HOURS[match[2]]
