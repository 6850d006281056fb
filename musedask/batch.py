"""Clusters of jobs of a batch system: the configuration of a site, and dask-jobqueue, which submits them."""

from __future__ import annotations

import contextlib
import difflib
import logging
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import compute
from .clusters import ESOREX, MEMORY, SYSTEMS, ClusterSpec, parse_spec, wait_for_workers, warnings_logged
from .errors import InputError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

#: what Python, its packages and compiled code take of the memory of a worker process [bytes]
PROCESS_MEMORY = 400_000_000
#: jobs of a cluster that grows and shrinks with the work, unless the site says otherwise: one for each IFU
MAXIMUM_JOBS = 24
#: keys of dask-jobqueue that have been renamed, which it tells itself
_OLD_KEYS = {"extra", "env-extra", "job-extra", "header-skip", "project"}
_OWN_KEYS = ("system", "jobs", "minimum", "maximum", "wait")


@dataclass(frozen=True)
class Site:
    """What the configuration of a site says, as far as musedask needs it.

    Attributes
    ----------
    system : str
        A key of `SYSTEMS`.
    name : str
        Key below ``jobqueue`` of the configuration.
    cores, memory, processes : int
        Of a job: threads of all its processes together, bytes, worker processes.
    jobs : int or None
        How many are submitted; None lets their number follow the work.
    minimum, maximum : int
        Limits of this number.
    wait : float or None
        Longest time until the first worker is there [s].
    extra : list of str
        Arguments of the workers.
    """

    system: str
    name: str
    cores: int
    memory: int
    processes: int
    jobs: int | None
    minimum: int
    maximum: int
    wait: float | None
    extra: list[str]

    @property
    def threads(self) -> int:
        """Threads of a worker process."""
        return max(1, self.cores // self.processes)

    def keywords(self) -> dict[str, Any]:
        """What dask-jobqueue is told beyond the configuration."""
        # it takes processes from the configuration too, but then forgets that a job is several workers
        return {"config_name": self.name, "processes": self.processes, "worker_extra_args": list(self.extra)}


@contextlib.contextmanager
def site(spec: ClusterSpec) -> Iterator[Site]:
    """Configuration of a batch system, in force inside.

    It is that of Dask (``~/.config/dask/*.yaml``, ``/etc/dask``, ``DASK_...``), and a file, if the option names one.

    Raises
    ------
    InputError
        If dask-jobqueue is missing, or the configuration is missing or wrong.
    """
    what = f"--cluster {spec.text}"
    try:
        import dask_jobqueue  # noqa: F401  its defaults are part of the configuration from here on
    except ImportError as error:
        raise InputError(
            f"{what}: the package dask-jobqueue is needed: pip install 'musedask[jobqueue]' ({error})"
        ) from error
    import dask

    given: Mapping[str, Any] = {}
    name = spec.name
    if name not in SYSTEMS:
        path = Path(spec.name).expanduser()
        given = _read_yaml(path, what)
        name = _only_site(given, path, what)
    merged = dask.config.merge(dask.config.config, given)
    own = merged.get("musedask") or {}
    system = name if name in SYSTEMS else own.get("system")
    if system not in SYSTEMS:
        raise InputError(
            f"{what}: jobqueue.{name} is no batch system; expected one of {', '.join(SYSTEMS)}, or which one it is as "
            "musedask: {system: ...}"
        )
    defaults = _defaults(system)
    # dask-jobqueue wants all keys, also of a configuration with a name of its own
    section = dask.config.merge(defaults, merged["jobqueue"].get(name) or {})
    merged = dask.config.merge(merged, {"jobqueue": {name: section}})
    config = {key.replace("_", "-"): value for key, value in section.items()}
    _known(own, _OWN_KEYS, f"{what}: musedask")
    _known(config, sorted({*defaults, *_OLD_KEYS}), f"{what}: jobqueue.{name}")
    if config["cores"] is None or config["memory"] is None:
        raise InputError(
            f"{what}: jobqueue.{name}.cores and .memory are not set; `musedask cluster template {system}` prints a "
            f"configuration to adapt, as {dask.config.PATH}/musedask.yaml or a file for --cluster"
        )
    with dask.config.set({key: merged[key] for key in {*given, "jobqueue"}}):
        yield _site(name, system, config, own, spec, what)


def _read_yaml(path: Path, what: str) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"{what}: {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{what}: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("jobqueue"), Mapping):
        raise InputError(f"{what}: {path}: no section 'jobqueue' found, expected jobqueue: {{slurm: {{...}}}}")
    if not all(isinstance(content[key], Mapping) for key in content):
        wrong = next(key for key in content if not isinstance(content[key], Mapping))
        raise InputError(f"{what}: {path}: {wrong}: a section with keys expected")
    return content


def _only_site(given: Mapping[str, Any], path: Path, what: str) -> str:
    names = list(given["jobqueue"])
    if len(names) != 1:
        found = ", ".join(map(str, names)) or "none"
        raise InputError(f"{what}: {path}: sections of jobqueue: {found} found, expected one")
    return str(names[0])


def _site(
    name: str, system: str, config: Mapping[str, Any], own: Mapping[str, Any], spec: ClusterSpec, what: str
) -> Site:  # fmt: skip
    cores = _count(config["cores"], f"{what}: jobqueue.{name}.cores")
    processes = _count(config.get("processes") or 1, f"{what}: jobqueue.{name}.processes")
    try:
        memory = compute.parse_bytes(config["memory"])
    except InputError as error:
        raise InputError(f"{what}: jobqueue.{name}.memory: {error}") from error
    if processes > cores:
        raise InputError(f"{what}: jobqueue.{name}: {processes} processes found, more than its {cores} cores")
    walltime = config.get("walltime")
    if walltime is not None and not isinstance(walltime, str):
        raise InputError(
            f"{what}: jobqueue.{name}.walltime: {walltime} found, expected a text: YAML takes 12:00:00 for a number "
            "unless it is in quotes"
        )
    interface = config.get("interface")
    options = config.get("scheduler-options") or {}
    if interface and not {"host", "interface"} & set(options):
        _check_interface(str(interface), f"{what}: jobqueue.{name}.interface")
    numbers = {
        key: None if own.get(key) is None else _count(own[key], f"{what}: musedask.{key}")
        for key in ("jobs", "minimum", "maximum", "wait")
    }
    maximum = numbers["maximum"] or max(MAXIMUM_JOBS, numbers["minimum"] or 0)
    minimum = numbers["minimum"] or 1
    if minimum > maximum:
        raise InputError(f"{what}: musedask: minimum {minimum} found, more than the maximum {maximum}")
    extra = [str(part) for part in config.get("worker-extra-args") or []]
    return Site(
        system, name, cores, memory, processes, spec.number or numbers["jobs"], minimum, maximum, numbers["wait"],
        _with_resources(extra, cores // processes, memory // processes),
    )  # fmt: skip


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what}: {value!r} found, expected a positive number")
    return value


def _known(keys: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f", expected {', '.join(known)}"
            raise InputError(f"{what}.{key}: no such key{hint}")


def _check_interface(name: str, what: str) -> None:
    import psutil

    there = psutil.net_if_addrs()
    if name not in there:
        raise InputError(f"{what}: {name} found, but this machine has {', '.join(sorted(there))}")


def _with_resources(extra: Sequence[str], threads: int, memory: int) -> list[str]:
    """Arguments of the workers with the resources that the site has not set itself."""
    declared: dict[str, str] = {}
    others: list[str] = []
    parts = iter(extra)
    for part in parts:
        flag, equals, value = part.partition("=")
        if flag != "--resources":
            others.append(part)
            continue
        for pair in (value if equals else next(parts, "")).replace(",", " ").split():
            key, _, number = pair.partition("=")
            declared[key] = number
    declared.setdefault(ESOREX, str(max(1, threads)))
    declared.setdefault(MEMORY, str(max(memory - PROCESS_MEMORY, memory // 2)))
    return [*others, "--resources", ",".join(f"{key}={value}" for key, value in declared.items())]


def _job_class(system: str) -> type:
    """Class of dask-jobqueue for the jobs of a batch system."""
    import dask_jobqueue

    return getattr(dask_jobqueue, f"{SYSTEMS[system]}Cluster").job_cls


def job_script(text: str) -> str:
    """The job that would be submitted for each worker, as the batch system gets it; nothing is submitted.

    Raises
    ------
    InputError
        If the option does not name a batch system, or its configuration is wrong.
    """
    spec = parse_spec(text)
    if spec.kind != "batch":
        raise InputError(f"{text}: has no job script, expected {', '.join(SYSTEMS)} or the YAML file of a site")
    with site(spec) as found, warnings_logged():
        job = _job_class(found.system)("tcp://SCHEDULER:PORT", name="musedask-0", **found.keywords())
        return str(job.job_script())


@contextlib.contextmanager
def open_batch(spec: ClusterSpec) -> Iterator[Client]:
    """Submit the jobs of a site, wait for the first worker, and end them afterwards."""
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(site(spec))
        import dask_jobqueue
        from distributed import Client

        errors: list[BaseException] = []
        job = _reporting(_job_class(found.system), errors)
        program = job.submit_command.split()[0]
        if shutil.which(program) is None:
            raise InputError(f"--cluster {spec.text}: {program}: not found; is this a machine that submits jobs?")
        cluster_class = getattr(dask_jobqueue, f"{SYSTEMS[found.system]}Cluster")
        try:
            with warnings_logged():
                cluster = cluster_class(job_cls=job, **found.keywords())
        except (OSError, ValueError, RuntimeError) as error:
            text = f"--cluster {spec.text}: the scheduler cannot be started: {error.__cause__ or error}"
            raise InputError(text) from error
        # jobs of a cluster that was not closed in order end by themselves once the scheduler is gone
        stack.enter_context(_quietly_closed(cluster))
        client = stack.enter_context(Client(cluster))
        log.info("cluster: scheduler %s; dashboard %s", cluster.scheduler_address, client.dashboard_link)
        if found.jobs is not None:
            cluster.scale(jobs=found.jobs)
            jobs, text = found.jobs, f"{found.jobs} job{'s' * (found.jobs > 1)}"
        else:
            cluster.adapt(minimum_jobs=found.minimum, maximum_jobs=found.maximum)
            jobs, text = found.maximum, f"{found.minimum} to {found.maximum} jobs"
        log.info(
            "cluster: %s of %s, each %d x %d threads and %s", text, found.name, found.processes, found.threads,
            compute.format_bytes(found.memory),
        )  # fmt: skip
        compute.expect_threads(client, jobs * found.processes * found.threads)
        hint = "; the jobs wait in the queue, or fail: see the queue and log-directory"
        if not wait_for_workers(client, 1, timeout=found.wait, errors=errors, hint=hint):
            reason = _submit_error(errors[0]) if errors else f"no worker after {found.wait:.0f} s{hint}"
            raise InputError(f"--cluster {spec.text}: {program}: {reason}")
        yield client


def _reporting(job_class: Any, errors: list[BaseException]) -> Any:
    """Jobs that tell if they could not be submitted, which Dask only logs."""

    async def start(self: Any) -> None:
        try:
            await job_class.start(self)
        except Exception as error:
            errors.append(error)
            log.debug("job %s: %s", self.name, error)

    return type(job_class.__name__, (job_class,), {"start": start})


def _submit_error(error: BaseException) -> str:
    """What the command that submits jobs has said."""
    text = str(error)
    _, found, said = text.partition("stderr:\n")
    lines = [line.strip() for line in (said if found and said.strip() else text).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__


@contextlib.contextmanager
def _quietly_closed(cluster: Any) -> Iterator[None]:
    """Close a cluster at the end; that a job is gone already is no error."""
    try:
        yield
    finally:
        try:
            cluster.close()
        except (RuntimeError, AssertionError, TimeoutError) as error:
            log.debug("cluster: %s", error)


def _defaults(system: str) -> dict[str, Any]:
    """Keys of a batch system that dask-jobqueue comes with, and their values."""
    import dask_jobqueue
    import yaml

    path = Path(str(dask_jobqueue.__file__)).with_name("jobqueue.yaml")
    return dict(yaml.safe_load(path.read_text())["jobqueue"][system])



# --- files to start from ---------------------------------------------------------------------------


def template_folder() -> Path:
    """Folder of the configurations that come with musedask.

    Raises
    ------
    InputError
        If they are not installed.
    """
    shipped = Path(sysconfig.get_path("data")) / "share" / "musedask" / "cluster"
    for folder in (Path(__file__).resolve().parents[1] / "cluster", shipped):
        if (folder / "slurm.yaml").is_file():
            return folder
    raise InputError(f"{shipped}: the configurations that come with musedask are not there; install it again")


def templates() -> dict[str, Path]:
    """Files to start from by their names."""
    folder = template_folder()
    files = [p for p in sorted(folder.iterdir()) if p.suffix in (".yaml", ".sh")]
    return {p.name if p.suffix == ".sh" else p.stem: p for p in files}
