"""The cost of a run, from its run.json alone."""

from pathlib import Path
from typing import Any

import pytest

from segbatch.results.cost import ObjectStorageUse, cost_facts, object_storage_use
from segbatch.results.prices import read_prices
from segbatch.results.runinfo import Start
from tests.written_run import with_uris, write_run

GPU_NODE = {"cpus": 16.0, "gpus": 1.0, "instance": "g6.4xlarge", "spot": True}
HEAD = {"cpus": 0.0, "gpus": 0.0, "instance": "m6i.large", "spot": False}
ALL, NOTHING = ObjectStorageUse(1.0, True), ObjectStorageUse(0.0, False)


def start(*nodes: dict[str, Any], **more: Any) -> Start:
    return Start.model_validate({
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
    })  # fmt: skip


def test_machines_with_known_prices_give_an_estimate() -> None:
    first = start({**GPU_NODE, "seconds": 7200}, {**HEAD, "seconds": 3600})
    found = cost_facts([first, start({**GPU_NODE, "seconds": 3600})], read_prices(None), ALL)
    assert found["machines"] == "g6.4xlarge (spot): 3.0 hours; m6i.large: 1.0 hours"
    assert found["workers"] == "1 or more × 1 GPU (cuda): 8.0 worker-hours, 75% of them predicting"
    assert found["read and written"] == "400.0 GB of images, 40.0 GB of rows"
    assert found["requests, about"] == "2,044,000 GET, 4,006 PUT"
    nodes, others = 3 * 0.57 + 0.096, 2.044 * 0.40 + 0.004006 * 5
    assert found["estimated cost"].startswith(
        f"{nodes + others:.2f} USD: machines while they worked {nodes:.2f},"
        f" requests and transfer {others:.2f} (list prices of aws us-east-1, "
    )


def test_money_is_not_guessed() -> None:
    unknown = {"cpus": 4.0, "gpus": 0.0, "instance": None, "spot": None, "seconds": 90.0}
    priced = {**HEAD, "seconds": 10}
    found = cost_facts([start(unknown, priced)], read_prices(None), ALL)
    assert found["machines"] == "nodes of 4 CPUs: 1.5 minutes; m6i.large: 0.2 minutes"
    assert found["estimated cost"] == ""
    found = cost_facts(
        [start({**unknown, "instance": "n2-standard-4"}, priced)], read_prices(None), ALL
    )
    assert found["estimated cost"] == "not known: no price of n2-standard-4"


def test_only_object_storage_bills_requests_and_transfer() -> None:
    prices = read_prices(None).model_copy(update={"transfer_gb": 0.01})
    worked = [start({**HEAD, "seconds": 3600})]

    def billed(stored: ObjectStorageUse) -> tuple[str, str]:
        found = cost_facts(worked, prices, stored)
        return found["requests, about"], found["estimated cost"].split("transfer ")[1][:4]

    assert billed(NOTHING) == ("", "0.00")
    half_of_the_images = ObjectStorageUse(0.5, False)  # 0.20 for requests, 1.00 for 100 GB
    assert billed(half_of_the_images) == ("500,000 GET", "1.20")
    assert billed(ObjectStorageUse(0.0, True)) == ("22,000 GET, 2,003 PUT", "0.02")
    assert billed(ALL) == ("1,022,000 GET, 2,003 PUT", "2.42")


def test_uris_tell_what_is_in_object_storage(tmp_path: Path) -> None:
    uris = ["s3://b/a.jpg", "gs://b/b#t=1.jpg", "/b/s3://c.jpg", "https://b/d.jpg",
            "s3://b/e.mp4#t=0.040", "s3a://b/f.jpg", "az://b/g.jpg", "file:///b/h.jpg"]  # fmt: skip
    run = write_run(str(tmp_path / "run"), num_ok=8, failed=(), finished=False)
    assert object_storage_use(run) == ObjectStorageUse(1.0, False)
    run.info.job["output"] = "s3://runs/it"  # and this is a copy
    assert object_storage_use(with_uris(run, uris.__getitem__)) == ObjectStorageUse(
        0.625, True, parts=0.125, part_requests=1.0
    )


def test_parts_of_objects_are_asked_for_by_block() -> None:
    stored = ObjectStorageUse(1.0, False, parts=1.0, part_requests=2.0)
    found = cost_facts([start({**HEAD, "seconds": 3600})], read_prices(None), stored)
    assert found["requests, about"] == "20,000 GET"


def test_requests_that_were_counted_count() -> None:
    counted = start({**HEAD, "seconds": 3600}, requests=1234.0)
    for stored, said in ((ObjectStorageUse(1.0, False, 1.0, 2.0), "1,234 GET"), (NOTHING, "")):
        assert cost_facts([counted], read_prices(None), stored)["requests, about"] == said


@pytest.mark.parametrize("starts", [[], [{"at": 0.0, "device": "cpu"}]])
def test_facts_that_an_early_run_does_not_have_are_left_out(starts: list[dict[str, Any]]) -> None:
    assert not any(
        cost_facts([Start(**start) for start in starts], read_prices(None), ALL).values()
    )
