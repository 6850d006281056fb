"""Where tasks run, how much memory they may take, and what the user sees meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from .errors import ComputeError, InputError, MusedaskError, PlanError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")
T = TypeVar("T")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """Number of bytes of a text such as ``2GB``, ``500 MiB`` or ``1.5e9``.

    Raises
    ------
    InputError
        If it is not a positive size.
    """
    number = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
    match = re.fullmatch(rf"\s*({number})\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if not match:
        raise InputError(f"memory size {text!r} found, expected something like 2GB or 500MiB")
    unit = (_BINARY if match[3] else _UNITS)[match[2].upper()]
    size = float(match[1]) * unit
    if not 1 <= size < 2**63:
        raise InputError(f"memory size {text!r} found, expected more than 0, and not that much")
    return int(size)


def format_bytes(size: float) -> str:
    """Size with a decimal unit, e.g. ``1.50 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Time with a unit that suits it, e.g. ``40 s``, ``12 min``, ``3.1 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def default_memory_limit(client: Client | None = None) -> int:
    """Six tenths of the memory that is available now, heeding a cgroup limit.

    On a cluster whose workers all declare their ``MEMORY``, the sum of that.
    """
    if client is not None:
        workers = worker_info(client).values()
        declared = [(worker.get("resources") or {}).get("MEMORY", 0) for worker in workers]
        if declared and all(declared):
            threads = sum(worker["nthreads"] for worker in workers)
            return int(sum(declared) * n_threads(client, None) / threads)
    import psutil

    available = psutil.virtual_memory().available
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            available = min(available, int(file.read()))
    return int(0.6 * available)


def default_workers() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_client(client: Client | None) -> Client | None:
    """The given client, else the current default client, else None for local threads."""
    if client is not None:
        return client
    # do not import distributed just to find that nobody uses it
    if "distributed" in sys.modules:
        from distributed import default_client

        with contextlib.suppress(ValueError):
            return default_client()
    return None


def n_threads(client: Client | None, n_workers: int | None) -> int:
    """Number of tasks that run at a time."""
    if client is None:
        return n_workers or default_workers()
    return max(sum(client.nthreads().values()), _EXPECTED_THREADS.get(client, 1))


def worker_info(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker, by address."""
    try:
        info = client.scheduler_info(n_workers=-1)
    except TypeError:
        # of older versions, which always tell all
        info = client.scheduler_info()
    return dict(info["workers"])


#: threads that a cluster will have when all its workers are there
_EXPECTED_THREADS: WeakKeyDictionary[Client, int] = WeakKeyDictionary()


def expect_threads(client: Client, number: int) -> None:
    """Tell how many threads the workers of a cluster will have, if more of them are still to come.

    Plans are made for so many, since `n_threads` and `default_memory_limit` count them.
    """
    _EXPECTED_THREADS[client] = number


def open_cluster(
    spec: str | None, memory_limit: str | int | None = None
) -> contextlib.AbstractContextManager[Client | None]:
    """Client for a ``--cluster`` option; the cluster is closed afterwards if it was started here.

    Workers that are started declare the resources ``esorex`` (calls of esorex at a time) and ``MEMORY`` (bytes for
    tasks), unless the site sets others.

    Parameters
    ----------
    spec : str or None
        None for local threads, ``local[:N[:THREADS]]`` for N worker processes on this machine, ``slurm``, ``pbs``,
        ``lsf``, ``htcondor``, ``sge``, ``oar``, ``moab`` (``[:JOBS]``) or the YAML file of a site for jobs of a batch
        system, ``tcp://host:port`` or a scheduler file (``.json[:WORKERS]``) for a running scheduler.
    memory_limit : str or int, optional
        Memory that local workers declare, all together.

    Returns
    -------
    context manager
        Of the client, with at least one worker, or None.

    Raises
    ------
    InputError
        If the text is none of these, the configuration of the site is missing or wrong, jobs cannot be
        submitted, or the scheduler cannot be reached or has no workers.
    """
    from .clusters import open_cluster as opened

    return opened(spec, memory_limit)


def _has_terminal() -> bool:
    """Whether the terminal of the standard error is there for this process, which is not in the background."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except (AttributeError, OSError):
        # a terminal that controls nothing
        return True


class Progress:
    """Progress of one kind of work: a bar on a terminal, now and then a line otherwise, or in the background.

    A bar that is drawn from the background would spoil what is typed, and where the terminal is set so
    (``stty tostop``) stop the work.

    Parameters
    ----------
    label : str
    total : int
        Pieces of work.
    done : int
        Those of an earlier run.
    enabled : bool
    estimate : callable, optional
        Tells the time that is left [s], if the pieces are too different to be counted.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        enabled: bool = True,
        estimate: Callable[[], float] | None = None,
    ) -> None:
        self.label = label
        self._estimate = estimate
        self.total = total
        self.done = done
        self._first = done
        self._start = self._printed = time.monotonic()
        self._bar: Any = None
        self._enabled = enabled and log.isEnabledFor(logging.INFO) and total > 0
        if self._enabled and _has_terminal():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            left = TextColumn("{task.fields[left]}") if estimate else TimeRemainingColumn(elapsed_when_finished=True)
            self._bar = RichProgress(
                TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), left,
                console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(label, total=total, completed=done, left="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, n: int = 1) -> None:
        """Count finished work."""
        self.done += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
            if self._estimate is not None:
                self._bar.update(self._task, left=f"{format_seconds(self._estimate())} left")
            return
        now = time.monotonic()
        if self._enabled and now - self._printed > 5 and self.done < self.total:
            self._printed = now
            left = (now - self._start) / max(self.done - self._first, 1) * (self.total - self.done)
            if self._estimate is not None:
                left = self._estimate()
            log.info("%s: %d/%d, %s left", self.label, self.done, self.total, format_seconds(left))


def run_tasks(
    function: Callable[[T], Any],
    items: Sequence[T],
    *,
    client: Client | None = None,
    n_workers: int | None = None,
    label: str = "",
    on_result: Callable[[T, Any], None] | None = None,
    on_error: Callable[[T, BaseException], None] | None = None,
    on_abort: Callable[[], None] | None = None,
    done_before: int = 0,
    retries: int = 2,
    resources: dict[str, float] | None = None,
) -> None:
    """Run independent tasks, at most one per worker thread at a time.

    Parameters
    ----------
    function : callable
        Called with one item; with a client it must be picklable and small.
    items : sequence
    client : distributed.Client, optional
        None runs them in local threads.
    n_workers : int, optional
        Number of local threads.
    label : str
        What to call the work.
    on_result : callable, optional
        Called in this thread with each item and its result, as they come.
    on_error : callable, optional
        Called in this thread with each item that failed and its error; then nothing is raised, and no failure
        stops the others.
    on_abort : callable, optional
        Called when the work is interrupted, before local tasks that are running are waited for.
    done_before : int
        Items of an earlier run, for the display.
    retries : int
        How often a failed task is tried again on a cluster; errors of the user's input are not.
    resources : dict of str to float, optional
        What a task takes of the resources that workers of a cluster declare.

    Raises
    ------
    MusedaskError
        The first error that a task raised about its input.
    ComputeError
        If tasks failed otherwise; all others have been finished.
    """
    total = len(items) + done_before
    with Progress(label, total, done=done_before) as progress:
        failures: list[tuple[T, BaseException]] = []

        def finished(item: T, result: Any) -> None:
            if on_result is not None:
                on_result(item, result)
            progress.advance()

        def failed(item: T, error: BaseException) -> bool:
            """Whether to go on."""
            if on_error is not None:
                on_error(item, error)
                progress.advance()
                return True
            failures.append((item, error))
            return not isinstance(error, (MusedaskError, OSError) if client is None else MusedaskError)

        if client is None:
            _run_threads(function, items, n_workers or default_workers(), finished, failed, on_abort)
        else:
            _run_client(client, function, items, finished, failed, retries, resources)
    for _, error in failures:
        if isinstance(error, MusedaskError):
            raise error
        if isinstance(error, OSError) and error.errno == 28:
            raise PlanError("no space left on the disk; finished work is kept, run again to go on") from error
    if failures:
        item, error = failures[0]
        raise ComputeError(
            f"{label}: {len(failures)} of {len(items)} tasks failed, all others are finished and kept; "
            f"the first was {item!r}: {type(error).__name__}: {error}"
        ) from error


def _run_threads(
    function: Callable[[T], Any],
    items: Iterable[T],
    workers: int,
    finished: Callable[[T, Any], None],
    failed: Callable[[T, BaseException], bool],
    on_abort: Callable[[], None] | None,
) -> None:
    iterator = iter(items)
    running: dict[Future[Any], T] = {}
    stop = False
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while len(running) < workers and not stop:
                    try:
                        item = next(iterator)
                    except StopIteration:
                        break
                    running[pool.submit(function, item)] = item
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    item = running.pop(future)
                    error = future.exception()
                    if error is None:
                        finished(item, future.result())
                    elif not failed(item, error):
                        stop = True
        except BaseException:
            if on_abort is not None:
                on_abort()
            for future in running:
                future.cancel()
            raise


def _run_client(
    client: Client,
    function: Callable[[T], Any],
    items: Sequence[T],
    finished: Callable[[T, Any], None],
    failed: Callable[[T, BaseException], bool],
    retries: int,
    resources: dict[str, float] | None,
) -> None:
    from distributed import as_completed

    futures = client.map(function, items, pure=False, retries=retries, resources=resources)
    by_key = {future.key: item for future, item in zip(futures, items, strict=True)}
    try:
        for future in as_completed(futures):
            item = by_key[future.key]
            try:
                # a result that was lost with its worker is computed again meanwhile
                result = future.result()
            except Exception as error:
                if not failed(item, error):
                    break
            else:
                # what has arrived must not be computed again if a worker that holds it is lost
                future.release()
                finished(item, result)
    finally:
        client.cancel(futures)


def release_memory() -> None:
    """Give memory that was freed back to the system; the C library keeps much of it otherwise."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        # glibc only
        ctypes.CDLL(None).malloc_trim(0)


@lru_cache(maxsize=1)
def give_back_arrays() -> None:
    """Make the C library give every freed array back to the system at once, in this process.

    Its default is to keep arrays of up to 32 MB, several to a thread, once one was freed.
    """
    import ctypes

    m_mmap_threshold = -3
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 4 << 20)


#: smaller processes are helpers of the interpreter that hold no data (its resource tracker)
_HELPER = 30_000_000


class MemoryMonitor:
    """Peak of the resident memory of a process and its children, sampled in a thread.

    It is summed over all of them, so pages that they share count more than once.

    Parameters
    ----------
    interval : float
        Seconds between samples.
    pid : int, optional
        The process, by default this one.
    children : bool
        Whether it may have children; to look for them takes longer than all else.

    Attributes
    ----------
    peak : int
        [bytes]
    processes : int
        Most processes at a time, without small helpers.
    counts : Counter
        How often there were so many processes.
    """

    def __init__(self, interval: float = 0.05, pid: int | None = None, *, children: bool = True) -> None:
        import psutil

        self.peak = 0
        self.processes = 1
        self.counts: Counter[int] = Counter()
        self._process = psutil.Process(pid)
        self._children = children
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _sample(self) -> None:
        import psutil

        sizes = []
        # it may have ended
        with contextlib.suppress(psutil.Error):
            for member in [self._process, *(self._process.children(recursive=True) if self._children else ())]:
                with contextlib.suppress(psutil.Error):
                    sizes.append(member.memory_info().rss)
        members = sum(size > _HELPER for size in sizes)
        self.counts[members] += 1
        self.processes = max(self.processes, members)
        self.peak = max(self.peak, sum(sizes))

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def __enter__(self) -> MemoryMonitor:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
