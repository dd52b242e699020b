"""What a benchmark leaves behind: Markdown tables, and a dated JSON file with its machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from segbatch.jobs.stamp import software
from segbatch.machine import cpu_model, num_cores

RESULTS = Path(__file__).parent / "results"
MEASURED_WITH = ("pillow", "pyarrow", "obstore", "zlib-ng", "numpy")


def machine() -> dict[str, Any]:
    """Where and with what was measured; ``load`` is what else went on when it began."""
    on_gpu = torch.cuda.is_available()
    return {
        "date": date.today().isoformat(),
        "machine": cpu_model(),
        "cores": num_cores(),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "load": round(os.getloadavg()[0], 2),
        "software": software(*MEASURED_WITH),
    }


def markdown(rows: Sequence[Mapping[str, Any]], left: int = 1) -> str:
    """A table of ``rows``, whose keys are its columns; all but ``left`` of them stand right."""
    columns = list(rows[0])
    lines = [columns, [":--" if n < left else "--:" for n in range(len(columns))]]
    lines += [[_shown(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    """The mean with three digits and, of several values, the standard deviation."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def save(name: str, figures: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write ``figures`` to ``path``, or where results are kept, under the date that they have."""
    path = path or RESULTS / f"{figures['date']}-{name}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    return path


def link(path: Path) -> str:
    """A result in brackets, for a page in benchmarks; nothing if it is not kept with the others."""
    return (
        f" ([figures](results/{path.name}))" if path.resolve().parent == RESULTS.resolve() else ""
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)
