"""The side-by-side picture of a contest, drawn from its JSON: scripts/bench chart.

scripts/bench chart RESULT.json [-o CHART.png]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

OURS, LIMIT, OTHERS = "#1f6fb4", "#c8ccd0", "#9aa3ab"
RATE = "server taken off, images/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="what `bench job` wrote")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    output = arguments.output or arguments.result.with_suffix(".png")
    draw(json.loads(arguments.result.read_text()), output)
    print(output)


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """One bar a contender: images a second in the steady state, longest first."""
    rows = [row for row in figures["table"] if row[RATE] is not None]
    rows.sort(key=lambda row: row[RATE])
    figure, axes = plt.subplots(figsize=(8, 1.0 + 0.45 * len(rows)), layout="constrained")
    bars = axes.barh(
        [row["contender"] for row in rows],
        [row[RATE] for row in rows],
        color=[_color(row["contender"]) for row in rows],
        height=0.65,
    )
    axes.bar_label(bars, [f"{row[RATE]:.3g}" for row in rows], padding=4)
    axes.margins(x=0.1)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    figure.suptitle(
        f"Images a second in the steady state: {figures['network']}\n"
        f"{figures['images']}, from {figures['from']}\n{_machine(figures)}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _color(contender: str) -> str:
    if contender == "segbatch":
        return OURS
    return LIMIT if contender.startswith("the limit") else OTHERS


def _machine(figures: Mapping[str, Any]) -> str:
    processor = figures["gpu"] if figures["task"]["device"] == "cuda" else figures["machine"]
    return f"{processor}, {figures['cores']} cores, {figures['date']}"


if __name__ == "__main__":
    main()
