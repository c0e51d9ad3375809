"""What this process and its container are allowed: shared memory, files, locked memory, processors, disk."""

from __future__ import annotations

from collections.abc import Iterator

from aim_engine.doctor.host import Host
from aim_engine.doctor.report import Answer, NotHere, Symptom, Unknown, check
from aim_engine.units import GIB, MIB, format_bytes

_SHM_LITTLE_BYTES = 8 * GIB
_SHM_BROKEN_BYTES = GIB
_FILES = 65535
"""What the engine raises its soft limit to. Source: vllm-project/vllm:vllm/utils/system_utils.py set_ulimit@v0.32.0."""
_LOCKED_LITTLE_BYTES = 64 * MIB
_PIDS_LEFT = 512
_DISK_BYTES = 16 * 10**9
"""Weights of 8 billion parameters in 16 bits. Unit: bytes."""


@check(
    "HST021",
    "Is shared memory large enough for several ranks?",
    severity="error",
    effect="ranks exchange tensors through /dev/shm; the engine dies with a bus error when it is full",
    source="vllm-project/vllm:docs/deployment/k8s.md@v0.33.0; amd-enterprise-ai/aim-build@2be2cf8 (32 GiB)",
)
def shared_memory(host: Host) -> Iterator[Answer]:
    """A container gets 64 MiB unless told otherwise."""
    if len(host.serving) < 2:
        yield NotHere(why="fewer than two GPUs, so one rank")
    elif host.shm_bytes is None:
        yield Unknown(why="no mount of /dev/shm is shown")
    elif host.shm_bytes < _SHM_LITTLE_BYTES:
        yield Symptom(
            message=f"shared memory (/dev/shm) holds {format_bytes(host.shm_bytes)}",
            evidence=f"{len(host.serving)} devices",
            fix=(
                "# start the container with --shm-size 16g, or in Kubernetes with an emptyDir of medium Memory at /dev/shm",
            )
            if host.container.kind
            else ("sudo mount -o remount,size=16g /dev/shm",),
            severity=None if host.shm_bytes < _SHM_BROKEN_BYTES else "warning",
        )


@check(
    "HST022",
    "May the engine lock memory for transfers between GPUs?",
    severity="warning",
    effect="registering memory with a network card or with RCCL fails",
    source="ROCm/container-toolkit:docs/container-runtime@192fe8e; SemiAnalysisAI/InferenceX job.slurm@843c625",
)
def locked_memory(host: Host) -> Iterator[Answer]:
    """Asked where several GPUs exchange data. root is not bound by the limit."""
    limit = host.limits.get("Max locked memory")
    if len(host.serving) < 2:
        yield NotHere(why="fewer than two GPUs")
    elif limit is None:
        yield Unknown(why="/proc/self/limits is not shown")
    elif limit.hard is not None and limit.hard <= _LOCKED_LITTLE_BYTES and (host.user is None or host.user.uid != 0):
        yield Symptom(
            message=f"at most {format_bytes(limit.hard)} of memory can be locked",
            evidence=f"ulimit -l: {limit.hard // 1024} KiB",
            fix=("# start the container with --ulimit memlock=-1",)
            if host.container.kind
            else ("echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/90-gpu.conf", "# then log in again"),
        )


@check(
    "HST023",
    "May the engine open enough files?",
    severity="warning",
    effect="every connection is an open file: requests are refused under load",
    source="vllm-project/vllm:vllm/utils/system_utils.py set_ulimit@v0.32.0",
)
def open_files(host: Host) -> Iterator[Answer]:
    """The engine raises its own limit as far as the hard one lets it."""
    limit = host.limits.get("Max open files")
    if limit is None:
        yield Unknown(why="/proc/self/limits is not shown")
    elif limit.hard is not None and limit.hard < _FILES:
        yield Symptom(
            message=f"at most {limit.hard:,} files can be open, the engine asks for {_FILES:,}",
            evidence=f"ulimit -Hn: {limit.hard}",
            fix=(f"# start the container with --ulimit nofile={_FILES}",)
            if host.container.kind
            else (f"echo '* - nofile {_FILES}' | sudo tee /etc/security/limits.d/91-files.conf", "# then log in again"),
        )


@check(
    "HST024",
    "Has the container had memory enough so far?",
    severity="warning",
    effect="programs end without a message, exit code 137",
    source="Linux Documentation/admin-guide/cgroup-v2 (memory.events)",
)
def killed_for_memory(host: Host) -> Iterator[Answer]:
    """The group's own count of killed processes."""
    group = host.container
    if group.memory_limit_bytes is None:
        yield NotHere(why="no memory limit in force")
    elif group.oom_kills is None:
        yield Unknown(why="the control group does not count kills")
    elif group.oom_kills > 0:
        yield Symptom(
            message=f"{group.oom_kills} process{'es' * (group.oom_kills > 1)} of this container were killed for want of memory",
            evidence=f"limit {format_bytes(group.memory_limit_bytes)}",
            fix=("# raise docker run --memory, or the pod's memory limit; /dev/shm counts towards it",),
        )


@check(
    "HST025",
    "May enough threads be started?",
    severity="warning",
    effect="starting threads fails with 'resource temporarily unavailable'",
    source="Linux Documentation/admin-guide/cgroup-v2 (pids.max); threshold by judgement",
)
def processes(host: Host) -> Iterator[Answer]:
    """Threads left under the control group's limit."""
    group = host.container
    if not group.pids_known:
        yield NotHere(why="no control group counts processes here")
    elif group.pids_max is not None and group.pids_max - (group.pids_current or 0) < _PIDS_LEFT:
        yield Symptom(
            message=f"{max(0, group.pids_max - (group.pids_current or 0))} more threads may be started",
            evidence=f"pids.max {group.pids_max}",
            fix=("# start the container with --pids-limit -1",),
        )


@check(
    "HST027",
    "Are there processors enough for the GPUs?",
    severity="warning",
    effect="GPUs wait for the engine's processes between steps",
    source="vllm-project/vllm:docs/configuration/optimization.md (CPU resources)@v0.33.0",
)
def processors(host: Host) -> Iterator[Answer]:
    """One core for the server, one for the scheduler, one for each rank."""
    devices = len(host.serving)
    if not devices:
        yield NotHere(why="no AMD GPU under the driver")
    elif host.node.cpu is None:
        yield Unknown(why="/proc/cpuinfo cannot be read")
    elif host.node.cpu.cores < 2 + devices:
        yield Symptom(
            message=f"{host.node.cpu.cores} cores for {devices} devices; the engine's processes alone are {2 + devices}",
            evidence="control group quota and affinity included",
            fix=("# raise docker run --cpus, the pod's cpu request, or serve on fewer devices",),
        )


@check(
    "HST028",
    "Is there room for weights?",
    severity="warning",
    effect="fetching a model fails",
    source="16 GB are the weights of 8 billion parameters in 16 bits",
)
def disk(host: Host) -> Iterator[Answer]:
    """Free space where weights are kept."""
    if host.cache_free_bytes is None:
        yield Unknown(why="only a live machine can say" if not host.live else "the file system does not answer")
    elif host.cache_free_bytes < _DISK_BYTES:
        yield Symptom(
            message=f"{format_bytes(host.cache_free_bytes)} are free where weights are kept",
            evidence=host.cache_dir,
            fix=("aim-engine cache ls", "# or keep them elsewhere: export HF_HOME=/another/place"),
        )


CHECKS = (
    shared_memory,
    locked_memory,
    open_files,
    killed_for_memory,
    processes,
    processors,
    disk,
)
