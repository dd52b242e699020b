"""Sharing: how CPUs are shared out among the stages of a pipeline, and cores among processes.

Ray Data reserves CPUs for one task of each stage, from the first stage to the last. A stage for
which none are left over has to wait until those before it are through: if that is the one that
writes, nothing is committed before the last image is read. So whoever shares out workers leaves
``BESIDE_CPUS`` to the others. Stages that ask for different CPUs are not fused.
"""

READ_CPUS = 1.0  # of a task that fetches or decodes images
ENCODE_CPUS = 0.5
PARQUET_CPUS = 0.4  # of a task that moves bytes from or to a Parquet file
BESIDE_CPUS = READ_CPUS + ENCODE_CPUS + PARQUET_CPUS

# Ray would end a process that is idle for a second, and start another for the next task.
IDLE_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
# Threads that spin while they wait take the cores from the others. For before torch is imported.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

FEW_CORES = IDLE_WORKERS | PASSIVE_THREADS


def worker_cpus(threads: int) -> float:
    """CPUs that a predict worker asks for: a little less than it has threads.

    So Ray does not fuse it with what reads, for which there is room beside it on any node.
    """
    return threads - 0.01
