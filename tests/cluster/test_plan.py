"""Plans: exact arithmetic, measurements of a real job, and what is printed."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segbatch import storage
from segbatch.cli.plan import hours_of, print_plan
from segbatch.cluster import jobplan
from segbatch.cluster.estimate import (
    BLOCK_CPU_S,
    ImageCost,
    Node,
    StageCost,
    Throughput,
    Unit,
    UnitPart,
    Work,
    cpus_beside_worker,
    estimate,
    share_at_most,
    solve,
    start_up_s,
    throughput,
    with_threads,
)
from segbatch.cluster.jobplan import JobPlan, make_plan, plan
from segbatch.cluster.measure import Measurement, measure_stages
from segbatch.cluster.nodeoptions import NodeOption, Wish
from segbatch.cluster.survey import Counts, Effort, Survey, count_left, local_setup, take_census
from segbatch.config.job import Resources, SegmentJob, load_job
from segbatch.errors import InputError, SourceError
from segbatch.jobs.preflight import prepare
from segbatch.jobs.runstate import RunState
from segbatch.jobs.runtime.nodes import NO_CLUSTER, ClusterFile, NodeType, read_cluster_file
from segbatch.jobs.runtime.sharing import ENCODE_CPUS, PARQUET_CPUS, READ_CPUS
from segbatch.results.cost import count_requests
from segbatch.results.prices import read_prices
from segbatch.run import Run
from tests.conftest import EVERYTHING, ROOT, S3, job

# ---------------------------------------------------------------------------------- arithmetic

COST = ImageCost(
    stages={
        "fetch": StageCost(0.020, 0.001),
        "decode": StageCost(0.050, 0.050),
        "predict": StageCost(0.010, 0.005),
        "encode": StageCost(0.005, 0.005),
        "write": StageCost(0.002, 0.001),
    },
    read_bytes=1_000_000,
    block_rows=100,
)
GPU_NODE = Node(cpus=16, cores=16, workers=1, worker_cpus=1)


def test_the_cpus_beside_a_gpu_limit_it() -> None:
    reached = throughput(COST, GPU_NODE)
    slots = READ_CPUS * 0.070 + ENCODE_CPUS * 0.005 + PARQUET_CPUS * 0.002
    assert reached.bounds["device"] == pytest.approx(100)
    assert reached.bounds["cpus"] == pytest.approx(15 / slots)
    assert reached.bounds["cores"] == pytest.approx(16 / (0.062 + BLOCK_CPU_S / 100))
    assert reached.images_per_second == pytest.approx(100)
    assert reached.limit == "device"
    few = throughput(COST, replace(GPU_NODE, cpus=4))
    assert few.images_per_second == pytest.approx(3 / slots)
    assert few.limit == "decode"


def test_waiting_for_the_network_is_called_so() -> None:
    far = replace(COST, stages={**COST.stages, "fetch": StageCost(0.5, 0.001)})
    assert throughput(far, GPU_NODE).limit == "network"
    thin = throughput(COST, replace(GPU_NODE, gbps=0.4))
    assert thin.limit == "network"
    assert thin.images_per_second == pytest.approx(50)  # 0.4 Gbit/s of images of 1 MB


def test_what_a_worker_needs_beside_it_balances_a_node() -> None:
    beside = cpus_beside_worker(COST)
    assert beside == pytest.approx(7.33)
    shaped = throughput(COST, replace(GPU_NODE, cpus=1 + beside))
    assert shaped.bounds["cpus"] == pytest.approx(shaped.bounds["device"])


def test_more_threads_than_in_the_sample_predict_so_much_faster() -> None:
    once, twice = COST.stages["predict"].wall_s, with_threads(COST, 2).stages["predict"].wall_s
    assert twice == pytest.approx(once / 2)


def test_a_node_whose_workers_leave_no_cpu_never_ends() -> None:
    stuck = throughput(COST, replace(GPU_NODE, cpus=4, workers=4))
    assert stuck.images_per_second == 0
    assert estimate(WORK, Unit([UnitPart("gpu", 1, 1.0)], stuck, max_units=8), 1).hours == math.inf


WORK = Work(images=3_600_000, start_up_s=360, fixed_cost=2.0, head_price=0.5)
UNIT = Unit(
    [UnitPart("gpu", 1, 1.0), UnitPart("cpu", 0.5, 0.4)], Throughput(100, "device"), max_units=8
)


def test_hours_and_money_of_some_nodes() -> None:
    three = estimate(WORK, UNIT, 3)
    assert three.hours == pytest.approx(0.1 + 10 / 3)
    # Two whole CPU nodes for three GPU nodes, the head, and what is paid however long it takes.
    assert three.money == pytest.approx((0.1 + 10 / 3) * (3 * 1.0 + 2 * 0.4 + 0.5) + 2)
    assert estimate(replace(WORK, images=0), UNIT, 1).hours == pytest.approx(0.1)
    assert estimate(replace(WORK, max_images_per_second=150), UNIT, 3).images_per_second == 150
    assert estimate(WORK, replace(UNIT, parts=[UnitPart("gpu", 1, None)]), 3).money is None


def test_a_deadline_takes_the_fewest_nodes_that_meet_it() -> None:
    found = solve(WORK, UNIT, deadline_h=1.1, budget=None).chosen
    assert found is not None
    assert found.units == 10  # also beyond what the cluster may have now
    assert found.hours == pytest.approx(1.1)
    never = solve(WORK, UNIT, deadline_h=0.1, budget=None)
    assert never.chosen is None
    assert never.fastest.units == 1000


def test_a_budget_takes_the_most_nodes_that_it_pays_for() -> None:
    found = solve(WORK, UNIT, None, budget=100).chosen
    assert found is not None
    assert found.units == 8  # no more may be started
    poor = solve(WORK, UNIT, None, budget=1)
    assert poor.chosen is None
    assert poor.cheapest is not None
    assert poor.cheapest.money == min(estimate(WORK, UNIT, n).money or 0 for n in range(1, 9))
    both = solve(WORK, UNIT, deadline_h=4, budget=poor.cheapest.money)
    assert both.chosen is not None
    assert both.chosen.hours <= 4


def test_requests_are_counted() -> None:
    asked = count_requests(
        1000, 2500, block_rows=100, file_rows=300, passing_failures=0.01, tries=18
    )
    assert asked["get"] == 1000 + 170 + 2 * 10 + 4
    assert asked["put"] == 4 + 3
    assert asked["list"] == 3
    assert count_requests(1000, 0, block_rows=100, file_rows=300, views=4)["get"] == 250 + 24
    in_shards = count_requests(
        1000, 0, block_rows=100, file_rows=300, parts=1.0, part_requests=2.0, headers=7
    )
    assert in_shards["get"] == 10 * 2 + 7 + 2 * 10 + 4


def test_no_failure_in_a_sample_is_not_none_at_all() -> None:
    assert share_at_most(0, 200) == pytest.approx(0.01335, abs=1e-5)
    assert share_at_most(20, 200) == pytest.approx(0.1404, abs=1e-4)
    assert share_at_most(0, 0) == 1


@pytest.mark.parametrize(("text", "hours"), [("90m", 1.5), ("8h", 8), ("0.5d", 12)])
def test_deadlines(text: str, hours: float) -> None:
    assert hours_of(text) == hours


@pytest.mark.parametrize("text", ["8", "0h", "h", "-1h", "8 hours"])
def test_a_deadline_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="write it as 90m, 8h or 2d"):
        hours_of(text)


# ------------------------------------------------------------------------------------ options

SAMPLE = Measurement(
    machine="a CPU",
    node=Node(16, 16, 1, 0.99),
    device="NVIDIA L4",
    threads=1,
    engine="openvino fp32",
    other_precisions={"int8": 2.0},
    images=200,
    load_s=4.0,
    stages=dict(COST.stages),
    read_bytes=1_000_000,
    parts=0.0,
    part_requests=0.0,
    decoded_bytes=3_000_000,
    rows_bytes=5_000,
    stats_bytes=500,
    failed={"timeout": 1, "truncated": 2},
    plain_share=0.75,
    block_rows=100,
    file_rows=500,
)
COUNTS = Counts(1_000_000, whole=True, listed=1_000_000)
JOB = SegmentJob.model_validate(
    {"kind": "segment", "images": "s3://b/i/", "model": "s3://b/m", "output": "s3://b/o"}
)


def planned(
    sample: Measurement, wish: Wish | None = None, cluster: ClusterFile | None = None
) -> JobPlan:
    found = Survey(COUNTS, [sample], on_cluster=True)
    nodes = cluster or read_cluster_file(str(ROOT / "cluster.yaml"))
    return make_plan(JOB, found, nodes, read_prices(None), wish or Wish())


def option(plan: JobPlan, name: str) -> NodeOption:
    [found] = [option for option in plan.options if option.name == name]
    return found


def test_a_gpu_that_was_measured_has_hours_and_two_prices() -> None:
    found = option(planned(SAMPLE), "gpu-spot")
    assert found.nodes == {"gpu-spot": 8}
    assert found.market == "spot"
    assert found.images_per_second == pytest.approx(800)
    hours = (start_up_s(4.0, 6 * 60) + 1_000_000 / 800) / 3600
    assert found.hours == pytest.approx(hours)
    assert found.money is not None
    prices = read_prices(None)
    for market, money in found.money.items():
        each = prices.per_hour("g6.4xlarge", spot=market == "spot")
        head = prices.per_hour("m7i.2xlarge", spot=False)
        assert each is not None
        assert head is not None
        bill = planned(SAMPLE).bill
        assert money == pytest.approx(hours * (8 * each + head) + bill.requests_money)


def test_a_gpu_that_was_not_measured_has_no_hours() -> None:
    on_cpu = planned(replace(SAMPLE, device="cpu", threads=4))
    for name in ("gpu", "gpu-spot"):
        assert option(on_cpu, name).reason == "no L4 was measured"
        assert option(on_cpu, name).hours is None
    assert option(on_cpu, "cpu").hours is not None
    # One word of another GPU's name is not this GPU.
    assert option(planned(replace(SAMPLE, device="NVIDIA L40S")), "gpu").hours is None


def test_nodes_that_prepare_images_are_added_where_gpus_would_wait() -> None:
    slow = {**COST.stages, "decode": StageCost(0.5, 0.5)}
    found = planned(replace(SAMPLE, stages=slow))
    alone, together = option(found, "gpu"), option(found, "gpu + cpu")
    assert alone.limit == "decode"
    assert together.limit == "device"
    beside = cpus_beside_worker(replace(COST, stages=slow))
    slots = beside - (16 - 0.99)  # CPUs that one GPU node lacks
    units = int(8 / (slots / 16))
    assert together.nodes == {"gpu": units, "cpu": math.ceil(units * slots / 16)}
    assert option(found, "cpu").reason == "prepares images for the GPUs of other nodes"
    assert found.measured[0].cpus_per_gpu == pytest.approx(0.99 + beside)


def test_where_cpus_keep_a_gpu_waiting_the_plan_says_what_the_gpu_can_take_over() -> None:
    slow = replace(SAMPLE, stages={**COST.stages, "decode": StageCost(0.5, 0.5)})
    assert any("predict.decode: device" in note for note in planned(slow).notes)
    for other in (SAMPLE, replace(slow, device="cpu", threads=4), replace(slow, plain_share=0.0)):
        assert not any("predict.decode" in note for note in planned(other).notes)


def test_a_deadline_and_a_budget_settle_the_nodes() -> None:
    found = option(planned(SAMPLE, Wish(deadline_h=1)), "gpu")
    assert found.nodes == {"gpu": 4}
    never = option(planned(SAMPLE, Wish(deadline_h=0.05)), "gpu")
    assert never.reason is not None
    assert never.reason.startswith("impossible: at the fastest")
    poor = option(planned(SAMPLE, Wish(budget=0.01)), "gpu")
    assert poor.reason is not None
    assert "USD" in poor.reason


def test_no_more_workers_are_reckoned_with_than_the_job_file_allows() -> None:
    three = JOB.model_copy(update={"resources": Resources(workers=[1, 3])})
    found = Survey(COUNTS, [SAMPLE], on_cluster=True)
    nodes = read_cluster_file(str(ROOT / "cluster.yaml"))
    for wish in (Wish(), Wish(deadline_h=0.5)):
        gpu = option(make_plan(three, found, nodes, read_prices(None), wish), "gpu")
        assert gpu.nodes == {"gpu": 3}
        assert gpu.images_per_second == pytest.approx(300)
        assert gpu.limit == "resources.workers"
    assert gpu.reason is not None


def test_a_node_without_a_price_has_hours_and_no_money() -> None:
    own = NodeType("mine", 16, 1, "L4", "a box under a desk", spot=False, most=2)
    found = option(planned(SAMPLE, cluster=ClusterFile(None, [own], None, own.most)), "mine")
    assert found.hours is not None
    assert found.money == {"spot": None, "on_demand": None}
    held = planned(SAMPLE, Wish(budget=100), ClusterFile(None, [own], None, own.most))
    assert "has no price" in (option(held, "mine").reason or "")


@pytest.mark.parametrize(
    ("share", "output", "billed"),
    [
        (1.0, "s3://b/o", {"get", "put", "list"}),
        (0.0, "s3://b/o", {"put"}),
        (0.5, "runs/o", {"get", "list"}),
        (0.0, "runs/o", set()),
    ],
)
def test_only_object_storage_costs_money(share: float, output: str, billed: set[str]) -> None:
    job = JOB.model_copy(update={"output": output})
    found = Survey(replace(COUNTS, headers=10), [SAMPLE], True, share)
    nodes = read_cluster_file(str(ROOT / "cluster.yaml"))
    bill = make_plan(job, found, nodes, read_prices(None), Wish()).bill
    assert {kind for kind, number in bill.requests.items() if number} == billed
    assert (bill.storage_money_a_month > 0) == ("put" in billed)
    assert (bill.requests_money > 0) == bool(billed)


def test_failures_are_told_by_kind_and_what_they_lead_to() -> None:
    found = planned(SAMPLE)
    assert {f.kind: (f.seen, f.expected) for f in found.failures} == {
        "timeout": (1, 5_000),
        "truncated": (2, 10_000),
    }
    assert found.bill.requests["get"] == 1_000_000 + 5_000 * 17 + 2 * 10_000 + 2_000
    assert any("the run would end as failed" in note for note in found.notes)


# ------------------------------------------------------------------------- files of the user


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("currency: EUR", "date: is missing"),
        ("[]", "p.yaml: should have keys and values"),
    ],
)
def test_a_table_of_prices_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_prices(str(tmp_path / "p.yaml"))


def test_prices_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "{date: 2026-11-21, currency: CHF, node_start_minutes: 0, storage_gb_month: 0.02,"
        " requests_per_million: {get: 1, put: 2, list: 3}, instances: {box: {on_demand: 2}}}"
    )
    table = read_prices(str(file))
    assert table.currency == "CHF"
    assert table.per_hour("box", spot=False) == 2
    assert table.per_hour("box", spot=True) is None
    assert table.for_requests({"get": 10**6, "put": 10**6, "list": 10**6}) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("cluster_name: x", "has no available_node_types"),
        ("available_node_types: {w: {resources: {CPU: many}}}", "available_node_types.w"),
    ],
)
def test_a_cluster_file_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_cluster_file(str(tmp_path / "c.yaml"))


def test_a_cluster_of_machines_of_your_own_has_no_types_of_nodes() -> None:
    assert read_cluster_file(str(ROOT / "docs/clusters/local.yaml")) == NO_CLUSTER


def test_another_tools_cluster_yaml_in_the_folder_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobplan._cluster_here() == NO_CLUSTER
    (tmp_path / "cluster.yaml").write_text("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n")
    assert jobplan._cluster_here() == NO_CLUSTER
    assert "cluster.yaml: has no available_node_types" in capsys.readouterr().err
    (tmp_path / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    assert jobplan._cluster_here().workers


def test_the_node_types_of_cluster_yaml_have_prices() -> None:
    cluster, prices = read_cluster_file(str(ROOT / "cluster.yaml")), read_prices(None)
    assert cluster.head is not None
    for kind in [cluster.head, *cluster.workers]:
        assert prices.per_hour(kind.instance, spot=True) is not None, kind
        if kind.gpus:
            assert prices.instances[kind.instance or ""].gpu


# --------------------------------------------------------------------------------- real images


@pytest.fixture(scope="module")
def on_s3(s3: S3, collection: Path) -> str:
    prefix = s3.uri("images")
    for file in sorted(collection.iterdir()):
        s3.put(f"{prefix}/{file.name}", file.read_bytes())
    return f"{prefix}/"


Segment = Callable[..., SegmentJob]


@pytest.fixture
def segment_job(on_s3: str, model_uri: str, s3: S3) -> Segment:
    def make(**keys: Any) -> SegmentJob:
        loaded = load_job(job(on_s3, model_uri, s3.uri("run"), **keys))
        assert isinstance(loaded, SegmentJob)
        return loaded

    return make


def test_a_sample_goes_through_the_real_stages(segment_job: Segment) -> None:
    asked = segment_job(**EVERYTHING)
    census = take_census(asked, 100, list_s=60)
    assert (census.counts.images, census.counts.whole, census.counts.listed) == (21, True, 21)
    prepared = prepare(asked)
    sample = measure_stages(
        asked, prepared, census.sample, local_setup(Resources()), num_images=21, seconds=60
    )
    assert sample.images == 21
    assert sample.failed == {"truncated": 2, "undecodable": 2, "unsupported": 1, "too_large": 2}
    assert set(sample.stages) == {"fetch", "decode", "predict", "encode", "write"}
    assert all(cost.wall_s > 0 for cost in sample.stages.values())
    readable = [uri for uri in census.sample["uri"].to_pylist() if "too_large-bytes" not in uri]
    read = sum(len(storage.read_bytes(uri)) for uri in readable)
    assert sample.read_bytes * 21 == pytest.approx(read)
    assert sample.rows_bytes > sample.stats_bytes > 0
    assert Measurement.from_json(json.loads(json.dumps(sample.to_json()))) == sample
    assert list(storage.list_files(asked.output)) == []


def test_the_sample_is_drawn_from_all_over_the_list(segment_job: Segment) -> None:
    drawn = take_census(segment_job(), 6, list_s=60).sample
    ids = drawn["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 6
    assert ids == sorted(ids)
    whole = take_census(segment_job(), 100, list_s=60).sample
    assert drawn["uri"].to_pylist() == whole.take(ids)["uri"].to_pylist()


def test_listing_is_stopped_and_that_is_said(
    model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/a.jpg").write_bytes(b"")
    sources = [f"{tmp_path}/1/", f"{tmp_path}/2/"]
    asked = load_job(job(sources, model_uri, str(tmp_path / "run")))
    assert isinstance(asked, SegmentJob)
    census = take_census(asked, 10, list_s=0)
    assert (census.counts.images, census.counts.whole) == (1, False)
    found = Survey(census.counts, [SAMPLE], on_cluster=False)
    print_plan(make_plan(asked, found, ClusterFile(None, [], None, 0), read_prices(None), Wish()))
    shown = capsys.readouterr().out
    assert "at least 1 images" in shown
    assert "--list-seconds" in shown


def test_a_manifest_asks_for_no_listing(model_uri: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri\nfile:///a.jpg\nfile:///b.jpg\n")
    asked = load_job(job(f"{tmp_path}/m.csv", model_uri, str(tmp_path / "run")))
    assert isinstance(asked, SegmentJob)
    census = take_census(asked, 10, list_s=60)
    assert (census.counts.images, census.counts.listed) == (2, 0)


def test_a_prefix_without_images_is_refused(s3: S3, model_uri: str) -> None:
    asked = load_job(job(f"{s3.uri('nothing')}/", model_uri, s3.uri("run")))
    assert isinstance(asked, SegmentJob)
    with pytest.raises(SourceError, match="nothing in it"):
        take_census(asked, 10, list_s=60)


# -------------------------------------------------------------------------------------- on Ray


def test_a_cluster_is_measured_on_its_workers(
    ray_address: str, segment_job: Segment, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = segment_job(resources={"cpus_per_worker": 1})
    found = plan(asked, cluster=str(ROOT / "cluster.yaml"), effort=Effort(images=8))
    assert (found.images, found.left, found.on_cluster) == (21, 21, True)
    [measured] = found.measured
    assert measured.sample.images == 8
    assert measured.sample.node.cpus == 4
    assert option(found, "cpu").hours is not None
    assert option(found, "gpu").hours is None
    print_plan(found)
    shown = capsys.readouterr().out
    assert "21 images" in shown
    assert "no L4 was measured" in shown
    json.dumps(found.to_json())
    assert list(storage.list_files(asked.output)) == []


def test_what_a_run_has_done_is_left_out(whole_run: Run) -> None:
    state = RunState.read(whole_run.uri)
    assert state is not None
    census = count_left(state, 5)
    assert (census.counts.images, census.counts.done, census.counts.listed) == (21, 21, 0)
    assert census.sample.num_rows == 5


@pytest.mark.long  # two jobs are sent
def test_a_cluster_is_measured_through_its_jobs_server(
    jobs_server: str, segment_job: Segment, model_uri: str
) -> None:
    asked = segment_job()
    there = asked.model_copy(update={"model": f"file://{model_uri}"})
    found = plan(there, jobs_server, effort=Effort(images=8))
    assert (found.images, found.on_cluster) == (21, True)
    assert found.measured[0].sample.images == 8
    gone = asked.model_copy(update={"model": f"file://{model_uri}-gone"})
    with pytest.raises(InputError, match="-gone"):
        plan(gone, jobs_server, effort=Effort(images=8))
