"""The command line of ``segbatch plan``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from segbatch.cli.options import Facts, FactsFormat, JobFile, Overrides, print_facts
from segbatch.errors import InputError
from segbatch.jobs.runtime.sharing import PASSIVE_THREADS

if TYPE_CHECKING:  # these import torch and Ray
    from rich.console import Console
    from rich.table import Table

    from segbatch.cluster.jobplan import JobPlan, Measured

# Planned: how a plan is printed.


SUFFIXES = {"device": "the predict workers", "driver": "the driver, which hands out no more blocks"}


def print_plan(plan: JobPlan) -> None:
    """To stdout, for people."""
    from rich.console import Console

    console = Console(highlight=False)
    at_least = "at least " if plan.at_least else ""
    done = f", {plan.images - plan.left:,} of them done" if plan.left < plan.images else ""
    skipped = ", ".join(f"{n:,} {end or 'without extension'}" for end, n in plan.skipped.items())
    console.print(
        f"[bold]{at_least}{plan.images:,} images[/bold]{done}"
        + (f"; skipped {skipped}" if skipped else "")
        + f" → {plan.output}"
    )
    for measured in plan.measured:
        console.print()
        _print_measured(console, measured, plan)
    if plan.options:
        console.print()
        console.print(_nodes(plan))
    console.print()
    console.print(_bill(plan))
    console.print()
    console.print(_failures(plan))
    for note in plan.notes:
        console.print(f"[dim]- {note}[/dim]", soft_wrap=True)


def _print_measured(console: Console, measured: Measured, plan: JobPlan) -> None:
    from rich.table import Table

    from segbatch.cluster.estimate import STAGES

    sample, node = measured.sample, measured.sample.node
    where = f"{sample.machine}, {node.cores:g} cores"
    console.print(
        f"[bold]{sample.images} images measured[/bold] on {where}, "
        + (sample.device if sample.on_gpu else f"no GPU, {sample.threads} threads a worker")
    )
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "ms an image", "ms of all cores"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, cost in sample.stages.items():
        shown = STAGES.get(name, name)
        label = name if shown == name else f"{name} ({shown})"
        table.add_row(label, f"{1000 * cost.wall_s:,.1f}", f"{1000 * cost.cpu_s:,.1f}")
    console.print(table)
    console.print(
        f"one worker predicts {measured.images_per_second_per_worker:,.1f} images/s, and"
        f" {measured.cpus_beside_worker:.1f} CPUs beside it keep it busy"
        + (f": {measured.cpus_per_gpu:.1f} CPUs per GPU" if measured.cpus_per_gpu else "")
    )
    hours = _hours(measured.offer.hours)
    where = "one such node" if plan.on_cluster else "this machine"
    console.print(
        f"{where}: [bold]{measured.pace.images_per_second:,.1f} images/s, {hours}[/bold],"
        f" limited by {SUFFIXES.get(measured.pace.limit, measured.pace.limit)}"
    )


def _nodes(plan: JobPlan) -> Table:
    from rich.table import Table

    table = Table(title="nodes of cluster.yaml", title_justify="left", box=None, pad_edge=False)
    for column in ("nodes", "images/s", "limit", "hours", "spot", "on demand", ""):
        table.add_column(column, justify="left" if column in ("nodes", "limit", "") else "right")
    for option in plan.options:
        if option.money is None:
            table.add_row(option.name, "", "", "", "", "", option.reason)
            continue
        count = " + ".join(f"{n} × {name}" for name, n in option.nodes.items())
        table.add_row(
            count,
            f"{option.images_per_second:,.1f}",
            option.limit,
            _hours(option.hours or 0.0),
            *(_money(option.money[market], plan) for market in ("spot", "on_demand")),
            option.reason or "",
        )
    return table


def _bill(plan: JobPlan) -> Table:
    from rich.table import Table

    bill = plan.bill
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    asked = ", ".join(f"{name.upper()} {count:,}" for name, count in bill.requests.items())
    table.add_row("requests", asked, _money(bill.requests_money, plan))
    table.add_row("read", _size(bill.read_gb), f"{_money(bill.transfer_money, plan)} transfer")
    table.add_row(
        "stored", _size(bill.stored_gb), f"{_money(bill.storage_money_a_month, plan)} a month"
    )
    return table


def _failures(plan: JobPlan) -> str:
    most = f"at most {plan.failed_share_at_most:.1%} of all, in 95 of 100 such samples"
    if not plan.failures:
        return f"no image of the sample failed: {most}"
    kinds = ", ".join(f"{f.expected:,} {f.kind} ({f.share:.1%})" for f in plan.failures)
    return f"failures to expect: {kinds}; {most}"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _money(amount: float | None, plan: JobPlan) -> str:
    if amount is None:
        return "unpriced"
    return f"{amount:,.2f} {plan.currency}"


def _size(gb: float) -> str:
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb * 1000:,.1f} MB"


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
    from segbatch.cluster.jobplan import plan
    from segbatch.cluster.nodeoptions import Wish
    from segbatch.cluster.survey import Effort
    from segbatch.config.job import load_job

    env_vars = {}
    if env:
        from segbatch.cluster.environment import forwarded_variables

        env_vars = forwarded_variables(env, os.environ)
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
