"""What a run took and cost, from its run.json alone."""

from typing import Any

import pytest

from segbatch.cluster.prices import read_prices
from segbatch.review.cost import facts

GPU_NODE = {"cpus": 16.0, "gpus": 1.0, "instance": "g6.4xlarge", "spot": True}
HEAD = {"cpus": 0.0, "gpus": 0.0, "instance": "m6i.large", "spot": False}


def start(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "at": 0.0,
        "device": "cuda",
        "workers": "1 or more × 1 GPU",
        "block_rows": 100,
        "file_rows": 500,
        "rows": 1_000_000,
        "read_bytes": 200e9,
        "written_bytes": 20e9,
        "stage_s": {"fetch": 9000.0, "predict": 10_800.0, "wait": 3600.0},
        "nodes": list(nodes),
        **more,
    }


def test_machines_of_known_prices_give_an_estimate() -> None:
    first = start({**GPU_NODE, "seconds": 7200}, {**HEAD, "seconds": 3600})
    told = facts([first, start({**GPU_NODE, "seconds": 3600})], read_prices(None))
    assert told["machines"] == "g6.4xlarge (spot): 3.0 hours; m6i.large: 1.0 hours"
    assert told["workers"] == "1 or more × 1 GPU (cuda): 8.0 worker-hours, 75% of them predicting"
    assert told["read and written"] == "400.0 GB of images, 40.0 GB of rows"
    assert told["requests, about"] == "2,044,000 GET, 4,006 PUT"
    nodes, others = 3 * 0.57 + 0.096, 2.044 * 0.40 + 0.004006 * 5
    assert told["estimated cost"].startswith(
        f"{nodes + others:.2f} USD: machines while they worked {nodes:.2f},"
        f" requests and transfer {others:.2f} (list prices of aws us-east-1, "
    )


def test_money_is_not_guessed() -> None:
    unknown = {"cpus": 4.0, "gpus": 0.0, "instance": None, "spot": None, "seconds": 90.0}
    priced = {**HEAD, "seconds": 10}
    told = facts([start(unknown, priced)], read_prices(None))
    assert told["machines"] == "nodes of 4 CPUs: 1.5 minutes; m6i.large: 0.2 minutes"
    assert told["estimated cost"] == ""
    told = facts([start({**unknown, "instance": "n2-standard-4"}, priced)], read_prices(None))
    assert told["estimated cost"] == "not known: no price of n2-standard-4"


@pytest.mark.parametrize("starts", [[], [{"at": 0.0, "device": "cpu"}]])
def test_what_an_early_run_does_not_say_is_left_out(starts: list[dict[str, Any]]) -> None:
    assert not any(facts(starts, read_prices(None)).values())
