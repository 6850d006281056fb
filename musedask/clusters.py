"""Dask clusters of all kinds: what a ``--cluster`` option may say, started or joined, and ended."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import compute
from .errors import InputError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

#: batch systems that dask-jobqueue knows, and the names of its classes
SYSTEMS = {
    "slurm": "SLURM", "pbs": "PBS", "lsf": "LSF", "htcondor": "HTCondor", "sge": "SGE", "oar": "OAR", "moab": "Moab",
}  # fmt: skip
#: resources that workers declare: calls of esorex at a time, and bytes for the tasks that run
ESOREX, MEMORY = "esorex", "MEMORY"
#: how long workers of a scheduler that is joined may take to appear [s]
JOIN_TIMEOUT = 60.0
_HINT_EVERY = 60.0
EXPECTED = (
    "local[:N[:THREADS]], slurm, pbs, lsf, htcondor, sge, oar or moab[:JOBS], the YAML file of a site[:JOBS], "
    "tcp://host:port, or the JSON file of a scheduler[:WORKERS]"
)


@dataclass(frozen=True)
class ClusterSpec:
    """What a ``--cluster`` option asks for.

    Attributes
    ----------
    text : str
        As it was given.
    kind : str
        ``local``, ``batch`` (jobs of a batch system), ``address`` or ``file`` (a running scheduler).
    name : str
        Batch system, YAML file, address or scheduler file.
    number : int or None
        Worker processes, jobs, or workers to wait for.
    threads : int
        Of a local worker process.
    """

    text: str
    kind: Literal["local", "batch", "address", "file"]
    name: str
    number: int | None = None
    threads: int = 1


def parse_spec(text: str) -> ClusterSpec:
    """Understand a ``--cluster`` option.

    Raises
    ------
    InputError
        If it is none of the forms that there are.
    """
    if re.fullmatch(r"(tcp|tls|ws)://.+:\d+", text):
        return ClusterSpec(text, "address", text)
    systems = "|".join(SYSTEMS)
    patterns: dict[Literal["local", "batch", "file"], str] = {
        "local": r"(local)(?::(\d+)(?::(\d+))?)?",
        "batch": rf"({systems}|(?!\w+://).+\.ya?ml)(?::(\d+))?",
        "file": r"((?!\w+://).+\.json)(?::(\d+))?",
    }
    for kind, pattern in patterns.items():
        if match := re.fullmatch(pattern, text):
            numbers = [None if part is None else int(part) for part in match.groups()[1:]]
            if 0 in numbers:
                raise InputError(f"--cluster {text!r}: at least one worker is needed")
            threads = numbers[1] if len(numbers) > 1 and numbers[1] else 1
            return ClusterSpec(text, kind, match[1], numbers[0], threads)
    raise InputError(f"--cluster {text!r} found, expected {EXPECTED}")


@contextlib.contextmanager
def open_cluster(spec: str | None, memory_limit: str | int | None = None) -> Iterator[Client | None]:
    """See `musedask.compute.open_cluster`."""
    if spec is None:
        yield None
        return
    parsed = parse_spec(spec)
    if parsed.kind == "local":
        opened = _local(parsed, memory_limit)
    elif parsed.kind == "batch":
        from .batch import open_batch

        opened = open_batch(parsed)
    else:
        opened = _joined(parsed)
    with opened as client:
        yield client


# --- processes of this machine ---------------------------------------------------------------------


@contextlib.contextmanager
def _local(spec: ClusterSpec, memory_limit: str | int | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    started = time.perf_counter()
    n = spec.number or compute.default_workers()
    limit = compute.default_memory_limit() if memory_limit is None else compute.parse_bytes(memory_limit)
    # the planner keeps the promise; a nanny that kills workers near it would only lose work
    with _deaf_children():
        cluster = LocalCluster(
            n_workers=n, threads_per_worker=spec.threads, memory_limit=0, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", resources={ESOREX: spec.threads, MEMORY: max(1, limit // n)},
        )  # fmt: skip
    with cluster, Client(cluster) as client:
        log.info(
            "cluster: %d worker processes, started in %.1f s; dashboard %s",
            n, time.perf_counter() - started, client.dashboard_link,
        )  # fmt: skip
        yield client


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C, which is meant for this one; it ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- a scheduler that runs --------------------------------------------------------------------------


@contextlib.contextmanager
def _joined(spec: ClusterSpec) -> Iterator[Client]:
    from distributed import Client

    where: dict[str, Any] = {"address": spec.name}
    if spec.kind == "file":
        path = Path(spec.name).expanduser()
        where = {"address": _address_in(path, spec.text)}
    try:
        with warnings_logged():
            client = Client(**where, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"--cluster {spec.text}: no scheduler answers at {where['address']}: {error or type(error).__name__}"
        ) from error
    with client:
        log.info("cluster: scheduler %s; dashboard %s", where["address"], client.dashboard_link)
        wanted = spec.number or 1
        found = wait_for_workers(client, wanted, timeout=JOIN_TIMEOUT)
        if not found:
            raise InputError(f"--cluster {spec.text}: the scheduler has had no worker for {JOIN_TIMEOUT:.0f} s")
        if found < wanted:
            log.warning("--cluster %s: %d workers so far; going on without the others", spec.text, found)
        if spec.number is not None:
            threads = list(client.nthreads().values())
            compute.expect_threads(client, round(max(spec.number, found) * sum(threads) / len(threads)))
        yield client


def _address_in(path: Path, text: str) -> str:
    """Address in the file that ``dask scheduler --scheduler-file`` writes."""
    import json

    try:
        address = json.loads(path.read_text())["address"]
    except OSError as error:
        raise InputError(f"--cluster {text}: {path}: {error.strerror}; has the scheduler been started?") from error
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--cluster {text}: {path} is not the file of a Dask scheduler: no address found") from None
    return str(address)


def wait_for_workers(
    client: Client, number: int = 1, *, timeout: float | None = None, errors: Sequence[BaseException] = (),
    hint: str = "",
) -> int:  # fmt: skip
    """Wait until so many workers are there; give up after the timeout, or if starting them has failed.

    Parameters
    ----------
    client : distributed.Client
    number : int
    timeout : float, optional
        [s]; None waits as long as it takes.
    errors : sequence of exceptions
        Filled meanwhile by who starts the workers.
    hint : str
        Logged now and then while there is none.

    Returns
    -------
    int
        Workers that are there.
    """
    started = told = time.monotonic()
    while True:
        found = len(client.nthreads())
        now = time.monotonic()
        if found >= number or errors or (timeout is not None and now - started > timeout):
            return found
        if now - told > _HINT_EVERY:
            told = now
            log.info("cluster: %d of %d workers after %.0f s%s", found, number, now - started, hint)
        time.sleep(0.1)


@contextlib.contextmanager
def warnings_logged() -> Iterator[None]:
    """Warnings of Dask become lines of the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if not issubclass(warning.category, DeprecationWarning | ResourceWarning):
            log.warning("cluster: %s", " ".join(str(warning.message).split()))
