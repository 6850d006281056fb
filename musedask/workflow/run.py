"""Nodes of a graph are done as soon as what they need is there, in the memory and on the cores that may be used.

The loop runs in the process that was called; calls run in threads of it, or as tasks of a Dask cluster.  What has been
done before with the same content and parameters is not repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import compute
from ..calib.engine import OWNER, RESOURCE, Call, choose_engine, run_call, sweep, wanted_record
from ..calib.frames import check_frames
from ..calib.provenance import CallRecord, FileRecord, write_record
from ..errors import InputError, MusedaskError, PlanError
from ..io.sof import Frame, write_sof
from ..recipes import NATIVE
from .costs import Costs, Size, size_of
from .operations import Operation
from .state import State, is_current, record_at, remember_files
from .steps import Graph, Node, Step

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

#: memory of this process and its libraries [bytes]
BASE_MEMORY = 400_000_000


@dataclass(frozen=True)
class Settings:
    """How a graph is worked off.

    Attributes
    ----------
    n_workers : int
        Cores of this machine, if there is no cluster.
    memory_limit : int
        For all calls together, and this process [bytes].
    threads : int or None
        Threads of a call at most; None for as many as are free.
    timeout : float or None
        Of a call [s].
    esorex : str
        Name or path of the program.
    scratch : Path or None
        Where calls work, if not beside their products.
    force : frozenset of str
        Steps that are repeated in any case.
    on_failed_ifu : str
        ``stop``: what needs a product of all IFUs is not done if one failed; ``drop``: it is done without it.
    """

    n_workers: int = 1
    memory_limit: int = 8_000_000_000
    threads: int | None = None
    timeout: float | None = None
    esorex: str = "esorex"
    scratch: Path | None = None
    force: frozenset[str] = frozenset()
    on_failed_ifu: str = "stop"


@dataclass(frozen=True)
class Job:
    """A node that can be done; it can be sent to another process."""

    node: Node
    call: Call | Operation
    record: Path
    known: tuple[FileRecord, ...] = ()
    forced: bool = False


@dataclass
class Done:
    """A node that was done.

    Attributes
    ----------
    node : Node
    record : CallRecord
    reused : bool
        Whether it had been done before.
    reason : str
        Why it was done again, or what it waited for in vain.
    """

    node: Node
    record: CallRecord
    reused: bool = False
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether its products are there."""
        return self.record.ok


@dataclass
class Outcome:
    """What came of a graph.

    Attributes
    ----------
    done : dict of Node to Done
        Nodes that were tried.
    blocked : dict of Node to list of Node
        Nodes that could not be tried, with the failed ones that they needed.
    seconds : float
        [s]
    busy : float
        Part of the time that the cores worked on calls, while there were nodes for all of them.
    """

    done: dict[Node, Done] = field(default_factory=dict)
    blocked: dict[Node, list[Node]] = field(default_factory=dict)
    seconds: float = 0.0
    busy: float = 0.0

    @property
    def failures(self) -> list[Done]:
        """Nodes that failed."""
        return [done for done in self.done.values() if not done.ok]


# --- one node ---------------------------------------------------------------------------------------


def do_job(job: Job, cancelled: Callable[[], bool] | None = None) -> Done:
    """Do a node unless it has been done, in any process.

    Parameters
    ----------
    job : Job
    cancelled : callable, optional
        See `musedask.calib.engine.run_call`.

    Returns
    -------
    Done
        No error comes out of here; the record tells.
    """
    call = job.call
    remember_files(job.known, call.ifu)
    before = record_at(job.record)
    reason = "never done before"
    if before is not None:
        remember_files(before.inputs, before.ifu)
        reason = "it is to be repeated"
        if not job.forced:
            try:
                wanted = call.wanted_record() if isinstance(call, Operation) else wanted_record(call)
                reason = is_current(before, wanted)
            except MusedaskError as error:
                # the call will say the same
                reason = str(error)
            if not reason:
                if [(f.path, f.mtime_ns) for f in before.inputs] != [(f.path, f.mtime_ns) for f in wanted.inputs]:
                    # so that equal content need not be read again next time
                    before.inputs = wanted.inputs
                    with contextlib.suppress(MusedaskError, OSError):
                        write_record(job.record, before)
                return Done(job.node, before, reused=True)
    record = _run(job, cancelled)
    if record.ok and before is not None:
        made = {file.path for file in record.products}
        for file in before.products:
            # what an earlier call made and this one did not
            if file.path not in made and Path(file.path).parent == call.output_dir and os.path.isfile(file.path):
                os.unlink(file.path)
    return Done(job.node, record, reason=reason)


def _run(job: Job, cancelled: Callable[[], bool] | None) -> CallRecord:
    if isinstance(job.call, Operation):
        record = job.call.run()
        try:
            write_record(job.record, record)
        except (MusedaskError, OSError) as error:
            record.status = "failed"
            record.errors.append(f"its record could not be written: {error}")
        return record
    record = run_call(job.call, cancelled)
    if record.signal is not None and record.status == "failed":
        log.warning("%s: %s; it is tried once more", job.node, record.reason)
        record = run_call(job.call, cancelled)
    return record


# --- all of them ------------------------------------------------------------------------------------


class Run:
    """Works off a graph.

    Parameters
    ----------
    graph : Graph
    state : State
    settings : Settings
    client : distributed.Client, optional
        None runs the calls in threads of this process.
    mosaic : callable, optional
        Does a step with the operation ``mosaic``: called with the job, the step, the client and the settings.
    """

    def __init__(
        self,
        graph: Graph,
        state: State,
        settings: Settings,
        *,
        client: Client | None = None,
        mosaic: Callable[[Job, Step, Client | None, Settings], Done] | None = None,
    ) -> None:
        self.graph = graph
        self.state = state
        self.settings = settings
        self.client = client
        self.outcome = Outcome()
        self.costs = Costs()
        #: folder in which calls have theirs
        self.scratch = state.scratch
        self._mosaic = mosaic
        self._sofs: set[str] = set()
        self._given_up = threading.Event()
        self._waits: dict[Node, int] = {}
        self._users = graph.users()
        self._slots = settings.n_workers if client is None else compute.n_threads(client, None)
        self._events: queue.Queue[tuple[Node, Any]] = queue.Queue()
        self._running: dict[Node, tuple[int, int, float]] = {}
        self._sizes: dict[Node, Size] = {}
        self._engines = {s.id: choose_engine(s.recipe, s.engine) if s.recipe else "native" for s in graph}
        for node in graph.nodes():
            record = state.record(node)
            if record is not None:
                self.costs.learn(record, size_of(record, self._raw_tags(node)))

    # --- before

    def check(self) -> None:
        """Check that every node fits the memory limit, and a worker.

        Raises
        ------
        PlanError
            It names the least limit with which all would.
        """
        needs = {node: self.memory(node) for node in self.graph.nodes()}
        if not needs:
            return
        node = max(needs, key=lambda n: needs[n])
        what = f"{node}: {self.graph[node.step].what} ({self._engines[node.step]}) will need "
        what += compute.format_bytes(needs[node])
        if needs[node] > self.settings.memory_limit - BASE_MEMORY:
            raise PlanError(
                f"{what}, and the memory limit is {compute.format_bytes(self.settings.memory_limit)}; the least that "
                f"will do is {compute.format_bytes(needs[node] + BASE_MEMORY)} (memory_limit)"
            )
        shares = self._shares()
        if shares and needs[node] > max(map(sum, shares.values())) and len(shares) == 1:
            text = compute.format_bytes(max(map(sum, shares.values())))
            raise PlanError(f"{what}, and all workers have {text} together; give the cluster more memory")
        if len(shares) > 1 and needs[node] > max(map(max, shares.values())):
            text = compute.format_bytes(max(map(max, shares.values())))
            raise PlanError(
                f"{what}, and the largest worker has {text}; give the workers more memory, or have fewer in a job"
            )

    def _shares(self) -> dict[str, list[float]]:
        """Memory that workers declare, by machine; empty if they do not all [bytes]."""
        if self.client is None:
            return {}
        found: dict[str, list[float]] = {}
        for worker in compute.worker_info(self.client).values():
            share = (worker.get("resources") or {}).get("MEMORY")
            if share is None:
                return {}
            found.setdefault(str(worker["host"]), []).append(float(share))
        return found

    def size(self, node: Node) -> Size:
        """How much a node takes in; files that are not there yet count by those of their kind."""
        if node not in self._sizes:
            raws = self._raw_tags(node)
            n = size = 0
            for path, tag in self.graph.frames(node):
                if tag in raws:
                    n += 1
                else:
                    try:
                        size += os.stat(path).st_size
                    except OSError:
                        size += _TYPICAL_SIZE if tag.startswith("PIXTABLE_") else 0
            step = self.graph[node.step]
            if step.recipe is not None and not step.ifus and step.recipe.exposures:
                n *= max(1, len({i for s in self.graph for i in s.ifus}))
            found = Size(n, size)
            if node not in self._running:
                return found
            self._sizes[node] = found
        return self._sizes[node]

    def memory(self, node: Node) -> int:
        """Memory that a node will take [bytes]."""
        step = self.graph[node.step]
        if step.operation == "mosaic":
            # it keeps to what it is given
            return 500_000_000
        return self.costs.memory(step.what, self._engines[step.id], self.size(node))

    def seconds(self, node: Node) -> float:
        """Time that it will take [s]."""
        step = self.graph[node.step]
        what = "muse_exp_combine" if step.operation == "mosaic" else step.what
        return self.costs.seconds(what, self._engines[step.id], self.size(node))

    def seconds_left(self) -> float:
        """Estimate of the time until all is done: of the work that is left, and of its longest chain [s]."""
        left = [n for n in self._waits if n not in self.outcome.done and n not in self.outcome.blocked]
        if not left:
            return 0.0
        now, known = time.monotonic(), {}
        for node in left:
            spent = now - self._running[node][2] if node in self._running else 0.0
            known[node] = max(0.0, self.seconds(node) - spent)
        chains: dict[Node, float] = {}
        for node in reversed(left):
            chains[node] = known[node] + max((chains.get(u, 0.0) for u in self._users.get(node, ())), default=0.0)
        return max(max(chains.values()), sum(known.values()) / max(1, self._slots))

    def _raw_tags(self, node: Node) -> tuple[str, ...]:
        recipe = self.graph[node.step].recipe
        return recipe.raw_tags if recipe is not None and recipe.exposures else ()

    # --- the loop

    def execute(self) -> Outcome:
        """Do all nodes.

        Returns
        -------
        Outcome
            Failures are in it; nothing is raised for them.
        """
        nodes = self.graph.nodes()
        urgency = self.graph.urgency(self.seconds)
        self._waits = {node: len(self.graph.needs(node)) for node in nodes}
        ready = [node for node in nodes if self._waits[node] == 0]
        started = time.monotonic()
        busy = full = 0.0
        last = started
        self._sweep()
        self.state.note("begin", nodes=len(nodes), host=platform.node(), process=os.getpid())
        with _scratch(self.state, self.settings) as scratch, self._pool() as submit, compute.Progress(
            "reduce", len(nodes), estimate=self.seconds_left
        ) as progress:
            self.scratch = scratch
            try:
                while ready or self._running:
                    ready.sort(key=lambda node: -urgency[node])
                    self._start(ready, submit)
                    if not self._running:
                        continue
                    event = self._next_event()
                    now = time.monotonic()
                    cores = min(sum(s for s, _, _ in self._running.values()), self._slots)
                    if cores == self._slots or ready:
                        busy += cores * (now - last)
                        full += self._slots * (now - last)
                    last = now
                    if event is not None:
                        before = len(self.outcome.done) + len(self.outcome.blocked)
                        ready += self._finished(*event)
                        progress.advance(len(self.outcome.done) + len(self.outcome.blocked) - before)
            except BaseException:
                self._given_up.set()
                self.state.note("interrupted")
                raise
        self.outcome.seconds = time.monotonic() - started
        self.outcome.busy = busy / full if full else 0.0
        self.state.note("end", failed=len(self.outcome.failures), blocked=len(self.outcome.blocked))
        return self.outcome

    def _sweep(self) -> None:
        """Remove files in the making that a killed run has left; nobody else is at work here."""
        for folder in {step.folder for step in self.graph} | {self.state.folder, self.state.records}:
            for path in folder.glob(".*.part"):
                if path.is_file():
                    path.unlink(missing_ok=True)

    def _next_event(self) -> tuple[Node, Any] | None:
        """The next result, None if there is none for a while, so that Ctrl-C is heard."""
        try:
            return self._events.get(timeout=1.0)
        except queue.Empty:
            return None

    def _start(self, ready: list[Node], submit: Callable[..., None]) -> None:
        """Start what fits, the most urgent first."""
        for node in list(ready):
            used = sum(slots for slots, _, _ in self._running.values())
            if used >= self._slots:
                return
            step = self.graph[node.step]
            others = self._running or any(self.graph[n.step].operation != "mosaic" for n in ready)
            if step.operation == "mosaic" and others:
                # it takes all cores and all memory
                continue
            memory = self.memory(node)
            taken = sum(m for _, m, _ in self._running.values())
            if self._running and taken + memory > self.settings.memory_limit - BASE_MEMORY:
                # those that are less urgent wait as well, or a large one would never come
                return
            ready.remove(node)
            # a recipe for all IFUs has threads of its own, but they are seldom all at work: others may start beside it
            threads = max(1, self._slots - used) if step.recipe is not None and not step.ifus else 1
            slots = self._slots if step.operation == "mosaic" else 1
            self._running[node] = (slots, memory, time.monotonic())
            try:
                job = self.job(node, self.settings.threads or threads)
                step.folder.mkdir(parents=True, exist_ok=True)
                if step.recipe is not None:
                    self._write_sof(step)
            except (MusedaskError, OSError) as error:
                self._events.put((node, error))
                continue
            self.state.note("start", node)
            if step.operation == "mosaic":
                assert self._mosaic is not None
                submit(node, partial(self._mosaic, job, step, self.client, self.settings), local=True)
            else:
                submit(node, partial(do_job, job), job=job, memory=memory)

    def _finished(self, node: Node, result: Any) -> list[Node]:
        """Take a result; the nodes that can be done now."""
        _, _, since = self._running.pop(node)
        if isinstance(result, BaseException):
            record = self._blank(node)
            text = str(result) if isinstance(result, MusedaskError) else f"{type(result).__name__}: {result}"
            record.status, record.errors = "failed", [text]
            result = Done(node, record)
        done: Done = result
        self.outcome.done[node] = done
        if not done.reused:
            self.costs.learn(done.record, self.size(node))
        if done.ok:
            self.state.note("reused" if done.reused else "done", node, seconds=round(time.monotonic() - since, 2))
            how = "as before" if done.reused else f"{time.monotonic() - since:.1f} s"
            log.debug("%s: %s", node, how)
        else:
            self.state.note("failed", node, reason=done.record.reason, log=done.record.log)
            where = f" (log {done.record.log})" if done.record.log else ""
            log.error("%s failed: %s%s", node, done.record.reason, where)
        return self._release(node, ok=done.ok)

    def _release(self, node: Node, *, ok: bool) -> list[Node]:
        found = []
        # what failed first
        causes = [] if ok else self.outcome.blocked.get(node, [node])
        for user in self._users.get(node, ()):
            self._waits[user] -= 1
            if not ok and not self._can_do_without(user, node):
                known = self.outcome.blocked.setdefault(user, [])
                known += [cause for cause in causes if cause not in known]
        for user in self._users.get(node, ()):
            if self._waits[user]:
                continue
            if user in self.outcome.blocked:
                self.state.note("blocked", user, by=[str(n) for n in self.outcome.blocked[user]])
                found += self._release(user, ok=False)
            else:
                found.append(user)
        return found

    def _can_do_without(self, user: Node, node: Node) -> bool:
        """Whether a node is done although one IFU of what it needs is missing."""
        if self.settings.on_failed_ifu != "drop" or node.ifu is None or user.ifu is not None:
            return False
        others = [n for n in self.graph.needs(user) if n.step == node.step and n != node]
        return any(n not in self.outcome.done or self.outcome.done[n].ok for n in others)

    # --- what a node is

    def _blank(self, node: Node) -> CallRecord:
        step = self.graph[node.step]
        return CallRecord(step.what, node.ifu, self._engines[step.id], dict(step.values))

    def frames(self, node: Node) -> tuple[list[Frame], list[FileRecord]]:
        """Frames of a node whose needs are done, and what is known of their contents.

        Raises
        ------
        InputError
            If one is missing.
        """
        step = self.graph[node.step]
        frames: list[Frame] = []
        known: list[FileRecord] = []
        for ref in step.inputs:
            if ref.path is not None:
                if not ref.path.exists():
                    raise InputError(f"{ref.path}: no such file, expected a {ref.tag} for {node}")
                frames.append(Frame(ref.path, ref.tag))
                continue
            assert ref.step is not None
            other = self.graph[ref.step]
            nodes = [Node(other.id, node.ifu)] if node.ifu in other.ifus else other.nodes
            found: list[FileRecord] = []
            for n in nodes:
                if n in self.outcome.done:
                    record: CallRecord | None = self.outcome.done[n].record
                else:
                    record = None if other.active else self.state.record(n)
                if record is not None and record.ok:
                    found += [f for f in record.products if f.tag == ref.category]
            if not other.active:
                # it may have been made elsewhere, or removed
                paths = [Path(f.path) for f in found] or other.product_paths(ref.category, node.ifu)
                gone = [path for path in paths if not path.exists()]
                if gone and (_is_needed(step, ref.tag) or _is_always_made(other, ref.category)):
                    raise InputError(
                        f"{gone[0]}: no such file; {other.name} is not among the steps to be done, and there is no "
                        f"{ref.category} of it for {node}"
                    )
                frames += [Frame(path, ref.tag) for path in paths if path not in gone]
                known += found
                continue
            if not found and _is_needed(step, ref.tag):
                raise InputError(f"{other.id} made no {ref.category}, which {node} needs")
            known += found
            frames += [Frame(Path(f.path), ref.tag) for f in found]
        return frames, known

    def job(self, node: Node, threads: int = 1) -> Job:
        """What is to be done for a node whose needs are done.

        Raises
        ------
        InputError
            If an input is missing, or there are too few or too many.
        """
        step = self.graph[node.step]
        frames, known = self.frames(node)
        record = self.state.record_path(node)
        forced = bool({step.name, step.id} & self.settings.force)
        if step.recipe is None:
            operation = Operation(step.operation, tuple(frames), step.values, step.folder)
            return Job(node, operation, record, tuple(known), forced)
        values = step.recipe.resolve(step.values)
        if node.ifu is not None:
            values["nifu"] = node.ifu
        stem = step.stem if node.ifu is None else f"{step.stem}-{node.ifu:02d}"
        call = Call(
            step.recipe, node.ifu, tuple(check_frames(step.recipe, frames, node.ifu)), values,
            self._engines[step.id], step.folder, step.folder, stem, self.scratch,
            threads=threads if self.client is None else self.settings.threads, alone=self._slots == 1,
            timeout=self.settings.timeout, executable=self.settings.esorex, names=step.names, record_file=record,
            function=NATIVE.get(step.recipe.name, ""),
        )  # fmt: skip
        return Job(node, call, record, tuple(known), forced)

    def _write_sof(self, step: Step) -> None:
        """Write the set of frames of a step, of all its IFUs, once; one of the user's stays."""
        if step.id in self._sofs:
            return
        self._sofs.add(step.id)
        write_step_sof(self.graph, step)

    # --- where it runs

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Callable[..., None]]:
        """Something to give work to; results come as events."""

        def deliver(node: Node, future: Any) -> None:
            try:
                self._events.put((node, future.result()))
            except BaseException as error:
                self._events.put((node, error))

        with ThreadPoolExecutor(max(1, self._slots if self.client is None else 1)) as pool:
            futures: dict[Node, Any] = {}
            resources = self._declared() if self.client is not None else frozenset[str]()
            shares = self._shares()
            alone, largest = len(shares) == 1, max((max(s) for s in shares.values()), default=0.0)

            def submit(node: Node, function: Callable[..., Done], job: Job | None = None, memory: int = 0,
                       local: bool = False) -> None:  # fmt: skip
                if self.client is None or local:
                    if not local:
                        function = partial(function, cancelled=self._given_up.is_set)
                    future: Any = pool.submit(function)
                else:
                    need: dict[str, float] = {}
                    if RESOURCE in resources and job is not None and job.call.engine == "esorex":
                        need[RESOURCE] = 1
                    if "MEMORY" in resources:
                        # on one machine a call may have what other workers do not use, which is looked after here
                        need["MEMORY"] = min(memory, largest) if alone else memory
                    future = self.client.submit(do_job, job, pure=False, retries=2, resources=need or None)
                futures[node] = future
                future.add_done_callback(partial(deliver, node))

            try:
                yield submit
            except BaseException:
                self._given_up.set()
                if self.client is not None:
                    self.client.cancel([f for f in futures.values() if hasattr(f, "key")])
                raise

    def _declared(self) -> frozenset[str]:
        """Resources that all workers declare."""
        assert self.client is not None
        workers = list(compute.worker_info(self.client).values())
        if not workers:
            return frozenset()
        return frozenset.intersection(*(frozenset(w.get("resources") or {}) for w in workers))


#: a pixel table of one IFU [bytes]
_TYPICAL_SIZE = 400_000_000


def _is_needed(step: Step, tag: str) -> bool:
    found = None if step.recipe is None else step.recipe.input(tag)
    return found is None or found.minimum > 0


def _is_always_made(step: Step, category: str) -> bool:
    return step.recipe is None or step.recipe.product(category).expected(step.recipe.resolve(step.values)) is True


def write_step_sof(graph: Graph, step: Step) -> Path:
    """Write the set of frames of a step with the names that its inputs have or will have.

    Parameters
    ----------
    graph : Graph
    step : Step

    Returns
    -------
    Path
        One that is there stays if the step says so.
    """
    path = step.folder / f"{step.stem}.sof"
    if step.keep_sof and path.exists():
        return path
    frames: dict[tuple[Path, str], None] = {}
    for node in step.nodes:
        frames |= dict.fromkeys(graph.frames(node))
    step.folder.mkdir(parents=True, exist_ok=True)
    return write_sof(path, sort_frames(step, [Frame(p, tag) for p, tag in frames]))


def sort_frames(step: Step, frames: Sequence[Frame]) -> list[Frame]:
    """Frames by tag in the order in which the step names them."""
    order = {tag: i for i, tag in enumerate(dict.fromkeys(ref.tag for ref in step.inputs))}
    return sorted(frames, key=lambda f: order.get(f.tag, len(order)))


@contextlib.contextmanager
def _scratch(state: State, settings: Settings) -> Iterator[Path]:
    """Folder in which calls have theirs; it goes away again, also those of runs that were killed."""
    import shutil
    import tempfile

    parent = settings.scratch or state.scratch
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    root = Path(tempfile.mkdtemp(prefix=".musedask-reduce_", dir=parent)).absolute()
    try:
        (root / OWNER).write_text(f"{platform.node()} {os.getpid()}\n")
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)

