"""Whether the workers of a cluster see the data and have what they need: ``musedask cluster check``."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cluster_probe
from .clusters import ESOREX, MEMORY
from .compute import format_bytes, n_threads, worker_info
from .errors import InputError

if TYPE_CHECKING:
    from distributed import Client

#: packages that must be of the same version everywhere: what talks to each other, and what computes
PACKAGES = ("musedask", "dask", "distributed", "cloudpickle", "msgpack", "numpy", "numba")
#: likewise, but they are not imported to find out
INSTALLED = ("scipy", "astropy", "xarray", "zarr")
#: clocks may differ by so much [s]
CLOCK = 5.0
#: how long a network file system may take to show what was written elsewhere [s]
PATIENCE = 10.0


@dataclass
class WorkerState:
    """A worker as it was found.

    Attributes
    ----------
    name : str
        Address, or ``this process``.
    host : str
    threads : int
    resources : dict of str to float
        That it declares.
    found : dict
        See `musedask.cluster_probe.probe`.
    clock : float
        Its time minus that of this machine [s].
    """

    name: str
    host: str
    threads: int
    resources: dict[str, float]
    found: dict[str, Any]
    clock: float = 0.0


@dataclass
class Report:
    """Result of `check_cluster`.

    Attributes
    ----------
    workers : list of WorkerState
    paths : dict of str to str
        What was found of each path.
    problems : list of str
        What has to be mended.
    notes : list of str
        What is worth knowing.
    """

    workers: list[WorkerState] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> dict[str, list[WorkerState]]:
        """Workers of each machine."""
        hosts: dict[str, list[WorkerState]] = {}
        for worker in self.workers:
            hosts.setdefault(worker.host, []).append(worker)
        return hosts

    def describe(self) -> str:
        """The report as text: a table of machines, the paths, what is wrong."""
        rows: list[tuple[str, ...]] = [
            ("host", "workers", "threads", "memory", "python", "musedask", "esorex", "scratch", "clock")
        ]
        rows += [_row(host, workers) for host, workers in self.hosts.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"{path}: {text}" for path, text in self.paths.items()]
        lines += [f"note: {text}" for text in self.notes]
        lines += [f"problem: {text}" for text in self.problems]
        number = len(self.problems)
        lines.append(f"{number} problem{'s' * (number != 1)} found" if number else "all is well")
        return "\n".join(lines)


def _row(host: str, workers: Sequence[WorkerState]) -> tuple[str, ...]:
    asked = [w for w in workers if w.found]

    def all_of(texts: Iterable[str]) -> str:
        return " or ".join(dict.fromkeys(texts))

    declared = sum(w.resources.get(MEMORY, 0) for w in workers)
    memory = max((w.found["memory"]["total"] for w in asked), default=0)
    return (
        host, str(len(workers)), str(sum(w.threads for w in workers)),
        (f"{format_bytes(declared)} of " if declared else "") + (format_bytes(memory) if memory else "?"),
        all_of(w.found["python"] for w in asked), all_of(w.found["versions"]["musedask"] for w in asked),
        all_of(_esorex_text(w.found.get(ESOREX)) for w in asked),
        all_of(_scratch_text(w.found["scratch"]) for w in asked),
        all_of(f"{w.clock:+.1f} s".replace("-0.0", "+0.0") for w in asked),
    )  # fmt: skip


def _esorex_text(told: dict[str, Any] | None) -> str:
    if told is None:
        return "not asked"
    if "error" in told:
        return "none"
    return f"{told['version']}, {len(told['recipes'])} recipes {told['pipeline']}".rstrip()


def _scratch_text(scratch: dict[str, Any]) -> str:
    if not scratch["writable"]:
        return "not writable"
    return f"{format_bytes(scratch['free'])} {'shared' if scratch['shared'] else 'local'}"


def check_cluster(
    client: Client | None,
    paths: Iterable[str | os.PathLike[str]] = (),
    *,
    scratch: str | os.PathLike[str] | None = None,
    free: int = 0,
    esorex: str | None = "esorex",
    wait: float | None = None,
    patience: float = PATIENCE,
) -> Report:
    """Compare the workers of a cluster with this process.

    Parameters
    ----------
    client : distributed.Client or None
        None checks this process alone.
    paths : iterable of path-like
        Folders and files of the data. In each folder a file is written here and read by every worker, and the
        other way round; of files, and of folders that cannot be written to here, the content is compared.
    scratch : path-like, optional
        Where calls will work; by default the folder of each worker.
    free : int
        Space wanted there [bytes].
    esorex : str or None
        Name or path of the program; None if it is not needed.
    wait : float, optional
        How long the workers that were asked for may take to be there [s]; None asks those that are there.
    patience : float
        How long a network file system may take to show what was written elsewhere [s].

    Returns
    -------
    Report

    Raises
    ------
    InputError
        If a path is not there on this machine.
    """
    items = [os.path.abspath(path) for path in paths]
    for path in items:
        if not os.path.exists(path):
            raise InputError(f"{path}: not there on this machine")
    folder = None if scratch is None else os.path.abspath(scratch)
    here = cluster_probe.probe(PACKAGES, INSTALLED, esorex if client is None else None, folder)
    report = Report()
    if client is None:
        report.workers = [WorkerState("this process", here["host"], here["cpus"], {}, here)]
    else:
        if wait is not None:
            _wait(client, report, wait)
        _ask(client, report, esorex, folder)
        _check_scheduler(client, report)
    if not report.workers:
        report.problems.append("the scheduler has no workers")
        return report
    for host, workers in report.hosts.items():
        _check_host(report, host, workers, here, free)
    if esorex is not None:
        _check_esorex(report)
    if client is not None:
        _check_resources(report)
    _check_paths(client, report, items, patience)
    return report


def _wait(client: Client, report: Report, timeout: float) -> None:
    """Wait until all workers that were asked for are there."""
    end = time.monotonic() + timeout
    while (found := sum(client.nthreads().values())) < (wanted := n_threads(client, None)):
        if time.monotonic() > end:
            report.problems.append(f"workers with {found} threads are there after {timeout:.0f} s, expected {wanted}")
            break
        time.sleep(0.1)


@contextlib.contextmanager
def _sent_as_it_stands() -> Any:
    """The probe is sent as code, not as a name that workers would have to import."""
    import cloudpickle

    cloudpickle.register_pickle_by_value(cluster_probe)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(cluster_probe)


def _ask(client: Client, report: Report, esorex: str | None, scratch: str | None) -> None:
    """Probe every worker."""
    known = worker_info(client)
    workers = list(known)
    if not workers:
        return
    with _sent_as_it_stands():
        found = client.run(
            cluster_probe.probe, PACKAGES, INSTALLED, esorex, scratch, workers=workers, on_error="return"
        )
        clocks = _clocks(client, workers)
    for address, info in known.items():
        answer = found.get(address, RuntimeError("it has gone away"))
        if isinstance(answer, BaseException):
            report.problems.append(f"worker {address}: cannot be asked: {type(answer).__name__}: {answer}")
            answer = {}
        report.workers.append(
            WorkerState(
                address, answer.get("host") or str(info.get("host")), int(info["nthreads"]),
                dict(info.get("resources") or {}), answer, clocks.get(address, 0.0),
            )
        )  # fmt: skip


def _clocks(client: Client, workers: list[str]) -> dict[str, float]:
    """Time of each worker minus that of this machine, from the fastest of some answers [s]."""
    best, offsets = float("inf"), {}
    for _ in range(3):
        before = time.time()
        answers = client.run(cluster_probe.clock, workers=workers, on_error="return")
        after = time.time()
        if after - before < best:
            best = after - before
            offsets = {w: t - 0.5 * (before + after) for w, t in answers.items() if isinstance(t, float)}
    return offsets


def _check_scheduler(client: Client, report: Report) -> None:
    """The scheduler has the same versions of what talks to it."""
    versions: Any = client.get_versions(check=False)
    mine, theirs = (versions[who].get("packages", {}) for who in ("client", "scheduler"))
    for name in ("python", "dask", "distributed", "cloudpickle", "msgpack"):
        if mine.get(name) != theirs.get(name):
            report.problems.append(f"scheduler: {name} {theirs.get(name)} found, {mine.get(name)} here")


def _check_host(
    report: Report, host: str, workers: Sequence[WorkerState], here: dict[str, Any], free: int
) -> None:
    problems: Counter[str] = Counter()
    asked = [w.found for w in workers if w.found]
    for found in asked:
        for name, version in here["versions"].items():
            if found["versions"].get(name) != version:
                problems[f"{name} {found['versions'].get(name)} found, {version} here"] += 1
        if found["python"].split(".")[:2] != here["python"].split(".")[:2]:
            problems[f"python {found['python']} found, {here['python']} here"] += 1
        elif found["python"] != here["python"]:
            report.notes.append(f"{host}: python {found['python']} found, {here['python']} here")
        if found["machine"] != here["machine"]:
            report.notes.append(f"{host}: {found['machine']} found, {here['machine']} here: results may differ in bits")
        if found["uid"] != here["uid"]:
            report.notes.append(f"{host}: workers run as user {found['uid']}, this command as {here['uid']}")
        scratch = found["scratch"]
        if not scratch["writable"]:
            problems[f"scratch {scratch['path']}: cannot be written to: {scratch.get('error', '')}"] += 1
        elif scratch["free"] < free:
            space = f"{format_bytes(scratch['free'])} free, {format_bytes(free)} wanted"
            problems[f"scratch {scratch['path']}: {space}"] += 1
        if scratch["shared"]:
            kind = f"on a network file system ({scratch['filesystem']})"
            report.notes.append(f"{host}: scratch {scratch['path']} is {kind}")
    for text, number in problems.items():
        share = f" ({number} of {len(workers)} workers)" if len(workers) > 1 else ""
        report.problems.append(f"{host}: {text}{share}")
    if asked:
        memory, declared = asked[0]["memory"]["total"], sum(w.resources.get(MEMORY, 0) for w in workers)
        if memory and declared > memory:
            report.problems.append(
                f"{host}: workers declare {format_bytes(declared)} of memory, it has {format_bytes(memory)}"
            )
        threads, cpus = sum(w.threads for w in workers), asked[0]["cpus"]
        if threads > cpus:
            report.notes.append(f"{host}: {threads} threads on {cpus} CPUs")
    late = max((w.clock for w in workers), key=abs)
    if abs(late) > CLOCK:
        report.problems.append(f"{host}: its clock differs by {late:+.1f} s from the one here")
    report.notes[:] = list(dict.fromkeys(report.notes))


def _check_esorex(report: Report) -> None:
    """Every machine has esorex, of the same version, with all recipes."""
    from .recipes import RECIPES

    versions: dict[tuple[str, str], list[str]] = {}
    for host, workers in report.hosts.items():
        texts: Counter[str] = Counter()
        for told in (w.found[ESOREX] for w in workers if ESOREX in w.found):
            if "error" in told:
                texts[told["error"]] += 1
                continue
            missing = [name for name in RECIPES if name not in told["recipes"]]
            if missing:
                some = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
                texts[f"{told['path']} lacks {len(missing)} of {len(RECIPES)} recipes: {some}"] += 1
            hosts = versions.setdefault((told["version"], told["pipeline"]), [])
            hosts += [host] * (host not in hosts)
        for text, number in texts.items():
            report.problems.append(f"{host}: esorex: {text} ({number} of {len(workers)} workers)")
    if len(versions) > 1:
        text = "; ".join(f"{v[0]} with {v[1] or 'no recipes'} on {', '.join(hosts)}" for v, hosts in versions.items())
        report.problems.append(f"esorex: versions differ: {text}")


def _check_resources(report: Report) -> None:
    lost = {ESOREX: "calls of esorex are only limited by threads", MEMORY: "tasks are not admitted by memory"}
    for name, what in lost.items():
        lacking = [w.name for w in report.workers if not w.resources.get(name)]
        if lacking:
            report.notes.append(f"{len(lacking)} of {len(report.workers)} workers do not declare {name}: {what}")


def _check_paths(client: Client | None, report: Report, paths: Sequence[str], patience: float) -> None:
    """Files written here are read there, and the other way round."""
    tokens: list[Path] = []
    wanted: list[dict[str, Any]] = []
    try:
        for path in paths:
            item: dict[str, Any] = {"path": path}
            if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
                folder = Path(path) / f".musedask-check-{secrets.token_hex(8)}"
                folder.mkdir()
                tokens.append(folder)
                text = secrets.token_hex(32)
                _write(folder / "token", text)
                item |= {"token": str(folder / "token"), "text": text}
            else:
                item["print"] = cluster_probe.fingerprint(path)
            wanted.append(item)
        answers = _looks(client, report, wanted, patience)
        for number, item in enumerate(wanted):
            _judge(report, item, {w: a[number]["error"] for w, a in answers.items()}, patience)
    finally:
        for folder in tokens:
            shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _looks(
    client: Client | None, report: Report, wanted: list[dict[str, Any]], patience: float
) -> dict[int, list[dict[str, Any]]]:
    """Answers by number of the worker."""
    if client is None:
        return {0: cluster_probe.look(wanted, {"": "0"}, patience)}
    numbers = {w.name: number for number, w in enumerate(report.workers) if w.found}
    if not numbers or not wanted:
        return {}
    with _sent_as_it_stands():
        found = client.run(
            cluster_probe.look, wanted, {name: str(number) for name, number in numbers.items()}, patience,
            workers=list(numbers), on_error="return",
        )  # fmt: skip
    answers = {}
    for name, number in numbers.items():
        answer = found.get(name, RuntimeError("it has gone away"))
        if isinstance(answer, BaseException):
            text = f"could not look: {type(answer).__name__}: {answer}"
            answer = [{"path": item["path"], "error": text} for item in wanted]
        answers[number] = answer
    return answers


def _judge(report: Report, item: dict[str, Any], errors: dict[int, str], patience: float) -> None:
    """Line and problems of a path."""
    path = item["path"]
    if "token" in item:
        end = time.monotonic() + patience
        folder = Path(item["token"]).parent
        for number, error in errors.items():
            if not error and not _answered(folder / str(number), item["text"][::-1], end):
                errors[number] = "what the worker wrote there is not here"
    well = sum(not error for error in errors.values())
    what = "read and written" if "token" in item else "seen, with the same content,"
    report.paths[path] = f"{what} by {well} of {len(report.workers)} workers"
    if "print" in item and os.path.isdir(path):
        report.paths[path] += "; cannot be written to here, so that was not tried"
    failed: dict[tuple[str, str], int] = {}
    for number, error in errors.items():
        if error:
            key = (report.workers[number].host, error)
            failed[key] = failed.get(key, 0) + 1
    for (host, error), number in failed.items():
        report.problems.append(f"{host}: {path}: {error} ({number} of {len(report.hosts[host])} workers)")


def _answered(path: Path, text: str, end: float) -> bool:
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
