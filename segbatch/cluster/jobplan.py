"""What a job would take: images, hours, money, requests and gigabytes, and what limits it.

:mod:`segbatch.cluster.survey` measures, :mod:`segbatch.cluster.estimate` calculates. Nothing is
written, and no node is requested unless a cluster is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from segbatch import storage
from segbatch.cluster.estimate import (
    COMMAND_S,
    Estimate,
    Throughput,
    Unit,
    UnitPart,
    Work,
    cpus_beside_worker,
    estimate,
    share_at_most,
    start_up_s,
    throughput,
)
from segbatch.cluster.measure import Measurement
from segbatch.cluster.nodeoptions import NodeOption, Terms, Wish, node_options
from segbatch.cluster.survey import Effort, Survey, survey_job
from segbatch.config.job import Job, SegmentJob, load_kind
from segbatch.console import say
from segbatch.errors import InputError
from segbatch.images.panorama import views_each
from segbatch.jobs.runtime.nodes import NO_CLUSTER, ClusterFile, read_cluster_file
from segbatch.results.cost import count_requests
from segbatch.results.prices import GB, Prices, read_prices
from segbatch.results.schema import TRANSIENT_ERRORS

CLUSTER = "cluster.yaml"  # in the current folder, if no other file is named
SMALL_SAMPLE = 50  # images
BUSY = 0.6  # share of its cores that predicting gets on a busy machine; 0.8 and more on an idle one


@dataclass(frozen=True)
class MeasuredNode:
    """A node on which the sample was measured, and what the job would take on it alone.

    The names are those of ``segbatch plan --format json``.
    """

    sample: Measurement
    pace: Throughput
    offer: Estimate
    images_per_second_per_worker: float  # if the worker never waits
    cpus_beside_worker: float  # CPUs with which it never waits
    cpus_per_gpu: float | None


@dataclass(frozen=True)
class Failures:
    """Failures of one kind; shares are 0 to 1, ``share_at_most`` is the 95 % upper bound."""

    kind: str
    seen: int  # in the sample
    expected: int  # in the job
    share: float
    share_at_most: float


@dataclass(frozen=True)
class Bill:
    """What is paid besides the nodes: only object storage costs anything.

    A GB is 10⁹ bytes; ``stored_gb`` is of all results.
    """

    requests: dict[str, int]
    requests_money: float
    read_gb: float
    transfer_money: float
    stored_gb: float
    storage_money_a_month: float


@dataclass(frozen=True)
class JobPlan:
    """What a job would take. ``left`` of its ``images`` are not done yet."""

    output: str
    images: int
    at_least: bool  # listing was stopped, and there may be more images
    left: int
    skipped: dict[str, int]
    on_cluster: bool
    measured: list[MeasuredNode]
    options: list[NodeOption]
    bill: Bill
    failures: list[Failures]
    failed_share_at_most: float
    currency: str
    notes: list[str]

    @property
    def limit(self) -> str:
        """What limits the job where it was measured: network, decode, device, encode or write."""
        return self.measured[0].pace.limit

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"limit": self.limit}


def plan(
    job: str | Mapping[str, Any] | Job,
    address: str | None = None,
    *,
    cluster: str | None = None,
    prices: str | None = None,
    wish: Wish | None = None,
    effort: Effort | None = None,
    env_vars: Mapping[str, str] | None = None,
) -> JobPlan:
    """Estimate what a job would take from a sample of its images, run through the real stages.

    The sample is measured in this process; with ``RAY_ADDRESS``, on one worker of each kind of
    node of that cluster; with ``address``, by a job that is sent to that Jobs server, with
    ``env_vars`` set. ``cluster`` is a file for ``ray up`` (default: ``cluster.yaml`` in the current
    folder, if there is one), ``prices`` a table like ``prices.yaml`` of segbatch. ``wish`` decides
    the number of nodes. Raises :class:`~segbatch.errors.SegbatchError` as the job would before its
    workers start.
    """
    job = load_kind(job, SegmentJob)
    price_table = read_prices(prices)
    nodes = _cluster_here() if cluster is None else read_cluster_file(cluster)
    effort = effort or Effort()
    if address is None:
        survey = survey_job(job, effort)
    else:
        from segbatch.cluster.remote import survey_remotely

        survey = survey_remotely(job, effort, address, env_vars)
    return make_plan(job, survey, nodes, price_table, wish or Wish())


def _cluster_here() -> ClusterFile:
    """The ``cluster.yaml`` in the current folder, if there is one for ``ray up``."""
    try:
        return read_cluster_file(CLUSTER) if storage.exists(CLUSTER) else NO_CLUSTER
    except InputError as error:  # other tools have files of this name
        say(f"{error}; left out, --cluster names another")
        return NO_CLUSTER


def make_plan(
    job: SegmentJob, survey: Survey, cluster: ClusterFile, prices: Prices, wish: Wish
) -> JobPlan:
    """The plan that follows from a survey; only arithmetic."""
    counts = survey.counts
    measurements = sorted(survey.measurements, key=lambda each: not each.on_gpu)
    measured = measurements[0]
    bill = _bill(job, survey, measured, prices)
    fixed_cost = bill.requests_money + bill.transfer_money
    terms = Terms(counts.left, job.resources, cluster, prices, fixed_cost, wish)
    return JobPlan(
        output=job.output,
        images=counts.images,
        at_least=not counts.whole,
        left=counts.left,
        skipped=counts.skipped,
        on_cluster=survey.on_cluster,
        measured=[_measured_node(job, survey, each) for each in measurements],
        options=node_options(measurements, terms),
        bill=bill,
        failures=[
            Failures(
                kind=kind,
                seen=seen,
                expected=round(counts.left * seen / measured.images),
                share=seen / measured.images,
                share_at_most=share_at_most(seen, measured.images),
            )
            for kind, seen in sorted(measured.failed.items())
        ],
        failed_share_at_most=share_at_most(sum(measured.failed.values()), measured.images),
        currency=prices.currency,
        notes=_notes(job, survey, measurements, cluster, prices),
    )


def _measured_node(job: SegmentJob, survey: Survey, measured: Measurement) -> MeasuredNode:
    node, beside = measured.node, cpus_beside_worker(measured.cost)
    reached = throughput(measured.cost, node)
    start_s = start_up_s(measured.load_s) + (0.0 if survey.on_cluster else COMMAND_S)
    work = Work(survey.counts.left, start_s, fixed_cost=0.0, head_price=0.0)
    cpus_per_gpu = None
    if measured.on_gpu:
        cpus_per_gpu = (beside + node.worker_cpus) / job.resources.gpus_per_worker
    return MeasuredNode(
        sample=measured,
        pace=reached,
        offer=estimate(work, Unit([UnitPart("", 1.0, None)], reached, max_units=1), 1),
        images_per_second_per_worker=1 / measured.stages["predict"].wall_s,
        cpus_beside_worker=beside,
        cpus_per_gpu=cpus_per_gpu,
    )


def _bill(job: SegmentJob, survey: Survey, measured: Measurement, prices: Prices) -> Bill:
    counts = survey.counts
    transient = sum(measured.failed.get(kind, 0) for kind in TRANSIENT_ERRORS)
    num_requests = count_requests(
        counts.left,
        counts.listed,
        block_rows=measured.block_rows,
        file_rows=measured.file_rows,
        passing_failures=transient / measured.images,
        tries=job.limits.passes * (1 + job.limits.retries),
        parts=measured.parts,
        part_requests=measured.part_requests,
        headers=counts.headers,
        views=views_each(job.sources),
    )
    reads = survey.in_object_storage
    writes = storage.scheme_of(job.output) in storage.OBJECT_SCHEMES
    billed = {"get": reads, "list": reads, "put": float(writes)}
    num_requests = {kind: round(num * billed[kind]) for kind, num in num_requests.items()}
    read_gb = counts.left * measured.read_bytes / GB
    stored_gb = counts.images * (measured.rows_bytes + measured.stats_bytes) / GB
    return Bill(
        requests=num_requests,
        requests_money=prices.for_requests(num_requests),
        read_gb=read_gb,
        transfer_money=reads * read_gb * prices.transfer_gb,
        stored_gb=stored_gb,
        storage_money_a_month=writes * stored_gb * prices.storage_gb_month,
    )


def _notes(
    job: SegmentJob,
    survey: Survey,
    measurements: list[Measurement],
    cluster: ClusterFile,
    prices: Prices,
) -> list[str]:
    """What a reader must know to judge the figures."""
    counts, measured = survey.counts, measurements[0]
    notes = []
    if not counts.whole:
        notes.append(
            f"listing was stopped at {counts.images:,} images, and the sample is of these: all"
            " figures are lower bounds; --list-seconds lists longer"
        )
    if counts.done:
        notes.append(
            f"{counts.done:,} of {counts.images:,} images are done: the plan is for the rest"
        )
    if sum(each.images for each in measurements) < SMALL_SAMPLE:
        notes.append(f"a sample of {measured.images} images is small: figures are rough")
    if not survey.on_cluster:
        notes.append(
            f"measured on this machine ({measured.machine}): times differ with another CPU or"
            " another connection to the storage; RAY_ADDRESS or --address measures a cluster"
        )
    got = measured.stages["predict"].cpu_s / (measured.threads * measured.stages["predict"].wall_s)
    if not measured.on_gpu and got < BUSY:
        notes.append(
            f"the machine was busy with other work: predicting got {got:.0%} of its"
            f" {measured.threads} cores and is faster on an idle machine"
        )
    limit = throughput(measured.cost, measured.node).limit
    if (
        measured.on_gpu
        and limit == "decode"
        and job.predict.decode == "cpu"
        and measured.plain_share
    ):
        notes.append(
            "CPUs are the limit: with predict.decode: device the GPU decodes the JPEGs that need no"
            f" downscaling, {measured.plain_share:.0%} of all; or use nodes with more CPUs per GPU"
        )
    failed = sum(measured.failed.values()) / measured.images
    if failed > job.limits.max_failed_fraction:
        notes.append(
            f"{failed:.1%} of the sample failed, and limits.max_failed_fraction allows"
            f" {job.limits.max_failed_fraction:.1%}: the run would end as failed"
        )
    if cluster.workers:
        where = f" ({prices.region})" if prices.region else ""
        notes.append(
            f"prices{where} are a table of {prices.date}: compare them with today's, and give your"
            " own with --prices"
        )
        if cluster.region and prices.region and cluster.region not in prices.region:
            notes.append(f"the nodes are in {cluster.region}, where prices differ")
        if cluster.head and prices.per_hour(cluster.head.instance, spot=False) is None:
            notes.append(f"the head ({cluster.head.instance}) has no price and is left out")
    return notes
