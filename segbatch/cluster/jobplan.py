"""JobPlan: what a job would take: images, what limits it, hours, money, requests, gigabytes.

What is measured stands in :mod:`segbatch.cluster.survey`, how hours follow from it in
:mod:`segbatch.cluster.estimate`. Nothing is written, and no node is asked for unless a cluster is
named.
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
from segbatch.jobs.runtime.nodes import ClusterFile, read_cluster_file
from segbatch.results.cost import requests
from segbatch.results.prices import GB, Prices, read_prices
from segbatch.results.schema import TRANSIENT_ERRORS

BUSY = 0.6  # of the cores that a network could take; on an idle machine it is 0.8 and more
CLUSTER = "cluster.yaml"  # of the folder that one is in, if no other is named


@dataclass(frozen=True)
class Measured:
    """A node on which a sample was measured, alone: its pace, and the whole job on it."""

    sample: Measurement
    pace: Throughput
    offer: Estimate
    images_per_second_per_worker: float  # that waits for nothing
    cpus_beside_worker: float  # with which it does not
    cpus_per_gpu: float | None


@dataclass(frozen=True)
class Failures:
    """Of one kind: how many in the sample, how many to expect; shares are 0 to 1, the larger one
    fits 95 of 100 such samples.
    """

    kind: str
    seen: int
    expected: int
    share: float
    share_at_most: float


@dataclass(frozen=True)
class Bill:
    """What is paid beside nodes. GB are 10⁹ bytes; ``stored`` is of all the run's results."""

    requests: dict[str, int]
    requests_money: float
    read_gb: float
    transfer_money: float
    stored_gb: float
    storage_money_a_month: float


@dataclass(frozen=True)
class JobPlan:
    """What a job would take: ``left`` of ``images`` are still to be done."""

    output: str
    images: int
    at_least: bool
    left: int
    skipped: dict[str, int]
    on_cluster: bool
    measured: list[Measured]
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
    """What a job would take, by a sample of its images that goes through the real stages.

    It is measured in this process; with ``RAY_ADDRESS`` on that cluster, on one worker of each
    kind; with ``address``, that of a Jobs server, by a job that is sent there. ``cluster`` is a
    file for ``ray up`` (``cluster.yaml`` of this folder, if there is one), ``prices`` a table like
    the one that comes with segbatch. ``wish`` settles the number of nodes, ``env_vars`` are set for
    the job that is sent. Raises
    :class:`~segbatch.errors.SegbatchError` as the job would before its workers start.
    """
    job = load_kind(job, SegmentJob)
    table = read_prices(prices)
    if cluster is None and storage.exists(CLUSTER):
        cluster = CLUSTER
    nodes = read_cluster_file(cluster) if cluster is not None else ClusterFile(None, [], None)
    effort = effort or Effort()
    if address is None:
        found = survey_job(job, effort)
    else:
        from segbatch.cluster.remote import survey_remotely

        found = survey_remotely(job, effort, address, env_vars)
    return make_plan(job, found, nodes, table, wish or Wish())


def make_plan(
    job: SegmentJob, found: Survey, cluster: ClusterFile, prices: Prices, wish: Wish
) -> JobPlan:
    """The plan that follows from a survey; arithmetic alone."""
    samples = sorted(found.samples, key=lambda sample: not sample.on_gpu)
    bill = _bill(job, found, samples[0], prices)
    fixed = bill.requests_money + bill.transfer_money
    terms = Terms(found.left, job.resources, cluster, prices, fixed, wish)
    failures = [
        Failures(
            kind,
            seen,
            round(found.left * seen / samples[0].images),
            seen / samples[0].images,
            share_at_most(seen, samples[0].images),
        )
        for kind, seen in sorted(samples[0].failed.items())
    ]
    return JobPlan(
        output=job.output,
        images=found.images,
        at_least=not found.whole,
        left=found.left,
        skipped=found.skipped,
        on_cluster=found.on_cluster,
        measured=[_measured(job, found, sample) for sample in samples],
        options=node_options(samples, terms),
        bill=bill,
        failures=failures,
        failed_share_at_most=share_at_most(sum(samples[0].failed.values()), samples[0].images),
        currency=prices.currency,
        notes=_notes(job, found, samples, cluster, prices),
    )


def _measured(job: SegmentJob, found: Survey, sample: Measurement) -> Measured:
    node, beside = sample.node, cpus_beside_worker(sample.cost)
    reached = throughput(sample.cost, node)
    start_s = start_up_s(sample.load_s) + (0.0 if found.on_cluster else COMMAND_S)
    alone = Unit([UnitPart("", 1.0, None)], reached, 1)
    per_gpu = None
    if sample.on_gpu:
        per_gpu = (beside + node.worker_cpus) / job.resources.gpus_per_worker
    return Measured(
        sample=sample,
        pace=reached,
        offer=estimate(Work(found.left, start_s, 0.0, 0.0), alone, 1),
        images_per_second_per_worker=1 / sample.stages["predict"].wall_s,
        cpus_beside_worker=beside,
        cpus_per_gpu=per_gpu,
    )


def _bill(job: SegmentJob, found: Survey, sample: Measurement, prices: Prices) -> Bill:
    passing = sum(sample.failed.get(kind, 0) for kind in TRANSIENT_ERRORS) / sample.images
    asked = requests(
        found.left,
        found.listed,
        block_rows=sample.block_rows,
        file_rows=sample.file_rows,
        passing_failures=passing,
        tries=job.limits.passes * (1 + job.limits.retries),
    )
    read_gb = found.left * sample.read_bytes / GB
    stored_gb = found.images * (sample.rows_bytes + sample.stats_bytes) / GB
    return Bill(
        requests=asked,
        requests_money=prices.of_requests(asked),
        read_gb=read_gb,
        transfer_money=read_gb * prices.transfer_gb,
        stored_gb=stored_gb,
        storage_money_a_month=stored_gb * prices.storage_gb_month,
    )


def _notes(
    job: SegmentJob, found: Survey, samples: list[Measurement], cluster: ClusterFile, prices: Prices
) -> list[str]:
    """What one must know to believe the figures."""
    sample = samples[0]
    notes = []
    if not found.whole:
        notes.append(
            f"listing was stopped at {found.images:,} images, and the sample is of these: all"
            " figures are at least so large; --list-seconds lists longer"
        )
    if found.done:
        notes.append(f"{found.done:,} of {found.images:,} images are done: the plan is of the rest")
    if sum(s.images for s in samples) < 50:
        notes.append(f"a sample of {sample.images} images is small: figures are rough")
    if not found.on_cluster:
        notes.append(
            f"measured on this machine ({sample.machine}): another CPU, and another way to the"
            " storage, take other times; RAY_ADDRESS or --address measures a cluster"
        )
    got = sample.stages["predict"].cpu_s / (sample.threads * sample.stages["predict"].wall_s)
    if not sample.on_gpu and got < BUSY:
        notes.append(
            f"the machine was busy with other work: predicting got {got:.0%} of its"
            f" {sample.threads} cores, and is so much faster on an idle one"
        )
    limit = throughput(sample.cost, sample.node).limit
    if sample.on_gpu and limit == "decode" and job.predict.decode == "cpu" and sample.plain_share:
        notes.append(
            "CPUs are the limit: with predict.decode: device the GPU decodes the JPEGs that need no"
            f" downscaling, {sample.plain_share:.0%} of all; or take nodes with more CPUs a GPU"
        )
    failed = sum(sample.failed.values()) / sample.images
    if failed > job.limits.max_failed_fraction:
        notes.append(
            f"{failed:.1%} of the sample failed, and limits.max_failed_fraction allows"
            f" {job.limits.max_failed_fraction:.1%}: the run would end as failed"
        )
    if cluster.workers:
        where = f" ({prices.region})" if prices.region else ""
        notes.append(
            f"prices{where} are of {prices.date}, from a table and from nowhere else: hold them"
            " against today's, and give yours with --prices"
        )
        if cluster.region and prices.region and cluster.region not in prices.region:
            notes.append(f"the nodes are in {cluster.region}, whose prices are others")
        if cluster.head and prices.of(cluster.head.instance, spot=False) is None:
            notes.append(f"the head ({cluster.head.instance}) has no price and is left out")
    return notes
