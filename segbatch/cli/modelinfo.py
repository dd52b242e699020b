"""What ``segbatch model info`` prints on a terminal: the network, its classes, its provenance."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from textwrap import indent
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segbatch.cli.options import print_facts

# In this order; what else a bundle has follows.
FIRST = ("uri", "arch", "backbone", "output_stride", "long_side", "parameters", "runs_here")
APART = ("classes", "metrics", "provenance")


def print_model(facts: Mapping[str, Any], terms: tuple[str, ...]) -> None:
    """Print the facts of a bundle; ``terms`` are keys of its provenance that stand by themselves.

    Provenance is printed as YAML.
    """
    provenance = dict(facts["provenance"])
    metrics = dict(facts["metrics"])
    iou = metrics.pop("iou", {})
    shown = {key: facts[key] for key in FIRST if key in facts}
    shown |= {key: value for key, value in facts.items() if key not in (*FIRST, *APART)}
    shown |= {term: provenance.pop(term) for term in terms if term in provenance}
    print_facts({key: value for key, value in shown.items() if value not in (None, {}, [])})
    print()
    Console(soft_wrap=True, highlight=False).print(_table_of_classes(facts["classes"], iou))
    if metrics:
        print()
        print_facts({k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()})
    if provenance:
        text = yaml.safe_dump(
            provenance, sort_keys=False, allow_unicode=True, default_flow_style=None
        )
        print(f"\nprovenance\n{indent(text, '  ')}", end="")


def _table_of_classes(classes: list[dict[str, Any]], iou: Mapping[str, float | None]) -> Table:
    """Id, name and colour of each class, and its IoU if it was measured."""
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("id", justify="right")
    table.add_column("class")
    table.add_column("colour")
    if iou:
        table.add_column("IoU", justify="right")
    swatch = "██ " if sys.stdout.isatty() else ""
    for entry in classes:
        colour = f"#{bytes(entry['color']).hex()}"
        score = iou.get(entry["name"])
        cells = [Text(str(entry["id"])), Text(entry["name"]), Text(swatch + colour, style=colour)]
        table.add_row(*cells, *([Text("-" if score is None else f"{score:.3f}")] if iou else []))
    return table
