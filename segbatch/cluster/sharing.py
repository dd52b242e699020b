"""Sharing: environment variables for processes of which many share few cores, as on one machine."""

# Ray would end a process that is idle for a second, and start another for the next task.
IDLE_WORKERS = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
# Threads that spin while they wait take the cores from the others. For before torch is imported.
PASSIVE_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

FEW_CORES = IDLE_WORKERS | PASSIVE_THREADS
