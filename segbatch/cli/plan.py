"""The command ``segbatch plan``, and how a plan is printed."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

from typer import Option, Typer

from segbatch.cli.groups import SEGMENT, example
from segbatch.cli.options import Format, JobFile, Overrides, Prices, Variables, print_facts
from segbatch.errors import InputError

if TYPE_CHECKING:  # these import torch and Ray
    from rich.console import Console
    from rich.table import Table

    from segbatch.cluster.jobplan import JobPlan, MeasuredNode

plan_app = Typer()

HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}
# What limits a job, where the name alone does not say it.
LIMITS = {
    "device": "the predict workers",
    "driver": "the driver, which cannot schedule more blocks",
}


@plan_app.command(
    "plan", rich_help_panel=SEGMENT, epilog=example("segbatch plan job.yaml --deadline 8h")
)
def plan_command(
    job: JobFile,
    overrides: Overrides = None,
    *,
    address: Annotated[
        str | None, Option(metavar="URL", help="Measure on the cluster of this dashboard.")
    ] = None,
    cluster: Annotated[
        str | None, Option(metavar="FILE", help="File with node types; default: ./cluster.yaml.")
    ] = None,
    prices: Prices = None,
    deadline: Annotated[
        str | None, Option(metavar="8h", help="Show how many nodes meet it: 90m, 8h, 2d.")
    ] = None,
    budget: Annotated[float | None, Option(min=0, help="Show how many nodes it pays for.")] = None,
    sample: Annotated[int, Option(min=1, max=10_000, help="Images to measure.")] = 200,
    list_seconds: Annotated[float, Option(min=0, help="Maximum seconds of listing.")] = 60.0,
    env: Variables = None,
    format: Format = "text",
) -> None:
    """Estimate images, hours and money of a job before it runs.

    Writes nothing.
    """
    from segbatch.jobs.runtime.sharing import PASSIVE_THREADS

    # On a busy machine, threads that spin while they wait would distort the measurement. Set before
    # torch is imported.
    for name, value in PASSIVE_THREADS.items():
        os.environ.setdefault(name, value)
    from segbatch.cluster.environment import forwarded_variables
    from segbatch.cluster.jobplan import plan
    from segbatch.cluster.nodeoptions import Wish
    from segbatch.cluster.survey import Effort
    from segbatch.config.job import load_job

    planned = plan(
        load_job(job, overrides or ()),
        address,
        cluster=cluster,
        prices=prices,
        wish=Wish(None if deadline is None else hours_of(deadline), budget),
        effort=Effort(images=sample, list_s=list_seconds),
        env_vars=forwarded_variables(env or (), os.environ),
    )
    if format == "json":
        print_facts(planned.to_json(), format)
    else:
        print_plan(planned)


def hours_of(text: str) -> float:
    """``90m``, ``8h`` or ``2d`` in hours. Raises :class:`~segbatch.errors.InputError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd])", text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"--deadline {text}: write it as 90m, 8h or 2d")
    return float(match[1]) * HOURS[match[2]]


def print_plan(plan: JobPlan) -> None:
    """Print a plan to stdout, for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    console = Console(highlight=False)
    at_least = "at least " if plan.at_least else ""
    done = f", {plan.images - plan.left:,} of them done" if plan.left < plan.images else ""
    skipped = ", ".join(f"{n:,} {end or 'without extension'}" for end, n in plan.skipped.items())
    console.print(
        f"[bold]{at_least}{plan.images:,} images[/bold]{done}"
        + (f"; skipped {escape(skipped)}" if skipped else "")
        + f" → {escape(plan.output)}"
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
        console.print(Text(f"- {note}", style="dim"), soft_wrap=True)


def _print_measured(console: Console, measured: MeasuredNode, plan: JobPlan) -> None:
    from rich.markup import escape

    from segbatch.cluster.estimate import STAGES

    sample, node = measured.sample, measured.sample.node
    console.print(
        f"[bold]{sample.images} images measured[/bold] on {escape(sample.machine)},"
        f" {node.cores:g} cores, {sample.engine}, "
        + (sample.device if sample.on_gpu else f"no GPU, {sample.threads} threads a worker")
    )
    table = _table("stage", ">ms an image", ">ms of all cores")
    for name, cost in sample.stages.items():
        shown = STAGES.get(name, name)
        label = name if shown == name else f"{name} ({shown})"
        table.add_row(label, f"{1000 * cost.wall_s:,.1f}", f"{1000 * cost.cpu_s:,.1f}")
    console.print(table)
    console.print(
        f"one worker predicts {measured.images_per_second_per_worker:,.1f} images/s;"
        f" {measured.cpus_beside_worker:.1f} more CPUs keep it busy"
        + (f": {measured.cpus_per_gpu:.1f} CPUs per GPU" if measured.cpus_per_gpu else "")
    )
    for name, times in sample.other_precisions.items():
        console.print(
            f"predict.precision: {name} would predict {times:.1f} times as fast; what it costs in"
            " mIoU: evaluate it"
        )
    where = "one such node" if plan.on_cluster else "this machine"
    limit = LIMITS.get(measured.pace.limit, measured.pace.limit)
    console.print(
        f"{where}: [bold]{measured.pace.images_per_second:,.1f} images/s,"
        f" {_hours(measured.offer.hours)}[/bold], limited by {limit}"
    )


def _nodes(plan: JobPlan) -> Table:
    from rich.markup import escape

    table = _table("nodes", ">images/s", "limit", ">hours", ">spot", ">on demand", "")
    table.title, table.title_justify = "nodes of cluster.yaml", "left"
    for option in plan.options:
        if option.money is None:
            table.add_row(escape(option.name), "", "", "", "", "", escape(option.reason or ""))
            continue
        table.add_row(
            escape(" + ".join(f"{n} × {name}" for name, n in option.nodes.items())),
            f"{option.images_per_second:,.1f}",
            option.limit,
            _hours(option.hours or 0.0),
            _money(option.money["spot"], plan),
            _money(option.money["on_demand"], plan),
            escape(option.reason or ""),
        )
    return table


def _bill(plan: JobPlan) -> Table:
    bill = plan.bill
    table = _table("", ">", ">")
    table.show_header = False
    asked = {name.upper(): count for name, count in bill.requests.items() if count}
    transfer = storing = ""  # a disk costs nothing here
    if asked:
        counts = ", ".join(f"{name} {count:,}" for name, count in asked.items())
        table.add_row("requests", counts, _money(bill.requests_money, plan))
    if "GET" in asked:
        transfer = f"{_money(bill.transfer_money, plan)} transfer"
    if "PUT" in asked:
        storing = f"{_money(bill.storage_money_a_month, plan)} a month"
    table.add_row("read", _size(bill.read_gb), transfer)
    table.add_row("stored", _size(bill.stored_gb), storing)
    return table


def _failures(plan: JobPlan) -> str:
    bound = f"(95 % upper bound: {plan.failed_share_at_most:.1%})"
    sample = plan.measured[0].sample
    seen = f"{sum(sample.failed.values())} of {sample.images} failed {bound}"
    kinds = ", ".join(f"{f.expected:,} {f.kind} ({f.share:.1%})" for f in plan.failures)
    return f"{seen}; expect {kinds}" if kinds else seen


def _table(*columns: str) -> Table:
    """A table without lines; ``>`` before a column's name aligns it to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left"
        )
    return table


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _money(amount: float | None, plan: JobPlan) -> str:
    return "unpriced" if amount is None else f"{amount:,.2f} {plan.currency}"


def _size(gb: float) -> str:
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb * 1000:,.1f} MB"
