"""Whether anything else ran on this machine while something was timed."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time

import psutil
import torch

from imagefolder.distributed import gather_objects

IDLE_CORES, IDLE_SHARE = 0.1, 0.01  # that other processes may keep busy on an idle machine: cores, or of all cores
IDLE_GPU = 5.0  # per cent of the time that they may use the GPU
LOOK_SECONDS = 0.5  # the machine is watched before it is called busy
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # of the system's times; those of guests are part of others


class Others:
    """What other processes did during the blocks `with others:`, in all of them together.

    Others are all processes but this one, the processes that it started, and those that work together with it; what a
    hypervisor took counts, too.
    """

    def __init__(self) -> None:
        self._seconds, self._machine, self._own = 0.0, 0.0, 0.0

    def __enter__(self) -> Others:
        self._seconds -= time.monotonic()
        self._count(-1)
        return self

    def __exit__(self, *_: object) -> None:
        self._count(1)
        self._seconds += time.monotonic()

    @property
    def cores(self) -> float | None:
        """Cores that they kept busy on average, on the busiest machine; None if the system does not tell."""
        counted = self._machine > 0.5 * self._own  # otherwise these are not the times of this machine
        cores = max((self._machine - self._own) / self._seconds, 0.0) if counted and self._seconds else None
        return _largest(cores)

    def _count(self, sign: int) -> None:
        host = platform.node()
        self._own += sign * sum(seconds for name, seconds in gather_objects((host, _own_seconds())) if name == host)
        times = psutil.cpu_times()._asdict()
        self._machine += sign * sum(seconds for name, seconds in times.items() if name not in NOT_BUSY)


def is_alone(cores: float | None, gpu: float | None) -> bool | None:
    """Whether nothing else ran: other processes kept no more than `idle_cores` busy, and used the GPU for no more than
    `IDLE_GPU`; None if that is not known. On a cluster, other jobs on the node are other processes.

    Args:
        cores: that others kept busy.
        gpu: per cent of the time that others used the GPU.
    """
    if (cores or 0.0) > idle_cores() or (gpu or 0.0) > IDLE_GPU:
        return False
    return None if cores is None or gpu is None else True


def idle_cores() -> float:
    """How many cores other processes may keep busy on this machine while it counts as idle."""
    return max(IDLE_CORES, IDLE_SHARE * (os.cpu_count() or 1))


def is_idle() -> bool | None:
    """Whether nothing else runs right now; None if that is not known."""
    gpu, others = gpu_share(), Others()
    with others:
        time.sleep(LOOK_SECONDS)
    return is_alone(others.cores, gpu)


def gpu_share() -> float | None:
    """Per cent of the last second in which the GPU worked while this process did not; 0 without a GPU, None if
    nvidia-smi does not tell."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    time.sleep(1.2)  # nvidia-smi reports the last second at most
    card = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["nvidia-smi", "-i", card, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        share = float(subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        share = None
    return _largest(share)


def _largest(value: float | None) -> float | None:
    """Of all processes; None if one of them does not know it."""
    found = gather_objects(value)
    known = [each for each in found if each is not None]
    return max(known) if len(known) == len(found) else None


def _own_seconds() -> float:
    """CPU time of this process and those that it started, ended ones included."""
    this, seconds = psutil.Process(), 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
