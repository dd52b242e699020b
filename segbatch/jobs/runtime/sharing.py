"""CPUs that the stages of the pipeline reserve, and settings for machines with few cores.

Ray Data reserves CPUs for one task of each stage, from the first to the last. A stage that gets
none waits until the stages before it are finished; if that is the write stage, nothing is committed
before the last image is read. So ``OTHER_CPUS`` always stay free next to the predict workers. Ray
does not fuse stages that reserve different CPUs.
"""

READ_CPUS = 1.0  # of a task that fetches or decodes images
ENCODE_CPUS = 0.5
PARQUET_CPUS = 0.4  # of a task that reads or writes a Parquet file
OTHER_CPUS = READ_CPUS + ENCODE_CPUS + PARQUET_CPUS

# By default Ray ends a process that is idle for a second and starts another for the next task.
IDLE_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
# Waiting threads must not spin on the few cores. To be set before torch is imported.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

FEW_CORES = IDLE_WORKERS | PASSIVE_THREADS


def worker_cpus(threads: int) -> float:
    """CPUs that a predict worker reserves: a little less than its threads.

    So Ray does not fuse it with the read stages, which run on the same node.
    """
    return threads - 0.01
