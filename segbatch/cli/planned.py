"""Planned: how a plan is printed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from segbatch.cluster.estimate import STAGES
from segbatch.cluster.plan import Measured, Plan

SUFFIXES = {"device": "the predict workers", "driver": "the driver, which hands out no more blocks"}


def print_plan(plan: Plan) -> None:
    """To stdout, for people."""
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


def _print_measured(console: Console, measured: Measured, plan: Plan) -> None:
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


def _nodes(plan: Plan) -> Table:
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


def _bill(plan: Plan) -> Table:
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


def _failures(plan: Plan) -> str:
    most = f"at most {plan.failed_share_at_most:.1%} of all, in 95 of 100 such samples"
    if not plan.failures:
        return f"no image of the sample failed: {most}"
    kinds = ", ".join(f"{f.expected:,} {f.kind} ({f.share:.1%})" for f in plan.failures)
    return f"failures to expect: {kinds}; {most}"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _money(amount: float | None, plan: Plan) -> str:
    if amount is None:
        return "unpriced"
    return f"{amount:,.2f} {plan.currency}"


def _size(gb: float) -> str:
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb * 1000:,.1f} MB"
