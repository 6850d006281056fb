"""Clusters without a batch system: what --cluster may say, and what `musedask cluster check` finds.

Schedulers and workers are processes of this machine that listen on the loopback; the commands of Slurm are scripts that
start them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dask
import pytest
from click.testing import CliRunner

import musedask
from musedask import cluster_check, compute
from musedask.batch import job_script, site, templates
from musedask.cli import main
from musedask.cluster_check import Report, WorkerState, check_cluster
from musedask.clusters import parse_spec, wait_for_workers
from musedask.compute import open_cluster
from musedask.errors import InputError
from musedask.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("dask_jobqueue")

#: in a worker: other folders under the name of one, other versions, no musedask, another time
PRELOAD = """
import builtins, os, sys, time
import dask
dask.__version__ = "1.0.0"
sys.modules["musedask"] = None
hidden, instead = os.environ["HIDDEN"], os.environ["INSTEAD"]
def elsewhere(function):
    def call(path, *args, **kwargs):
        if isinstance(path, str) and path.startswith(hidden):
            path = instead + path[len(hidden):]
        return function(path, *args, **kwargs)
    return call
# Dask imports this twice
if not hasattr(os, "elsewhere"):
    os.elsewhere = True
    builtins.open = elsewhere(builtins.open)
    os.path.exists = elsewhere(os.path.exists)
    now = time.time
    time.time = lambda: now() + 100
"""


def dask_command(*arguments, env=None):
    """A server of Dask as a process; tests end it."""
    return subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def end(*processes):
    for process in reversed(processes):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """A scheduler and two workers started by hand; the second lacks much of what it should have."""
    folder = tmp_path_factory.mktemp("by_hand")
    for name in ("data", "elsewhere", "scratch"):
        (folder / name).mkdir()
    (folder / "data" / "deep").mkdir()
    for name in ("data", "elsewhere"):
        (folder / name / "raw.fits").write_text(name)
    (folder / "preload.py").write_text(PRELOAD)
    esorex = folder / "esorex"
    listed = "\n".join(f"  {name} : a recipe" for name in RECIPES)
    esorex.write_text(
        f"#!/bin/sh\ncat <<EOF\n***** ESO Recipe Execution Tool, version 3.13.6  *****\n{listed}\n"
        "RELEASE\n  muse_bias -- version 2.8.7\nEOF\n"
    )
    esorex.chmod(0o755)
    file = folder / "scheduler.json"
    on = ("--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    processes = [dask_command("scheduler", *on, "--scheduler-file", file)]
    worker = (
        "worker", "--scheduler-file", file, "--host", "127.0.0.1", "--no-dashboard", "--no-nanny", "--nthreads", "1",
        "--memory-limit", "0", "--local-directory", folder / "scratch",
    )  # fmt: skip
    try:
        processes.append(dask_command(*worker, "--name", "good", "--resources", "esorex=1,MEMORY=1e9",
                                      env={"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}))  # fmt: skip
        bad = {"HIDDEN": str(folder / "data"), "INSTEAD": str(folder / "elsewhere"), "PATH": "/nowhere"}
        processes.append(dask_command(*worker, "--name", "bad", "--preload", folder / "preload.py", env=bad))
        limit = time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert processes[0].poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        yield folder, json.loads(file.read_text())["address"]
    finally:
        end(*processes)


# --- what the option says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("local", ("local", "local", None, 1)),
        ("local:4", ("local", "local", 4, 1)),
        ("local:2:8", ("local", "local", 2, 8)),
        ("slurm", ("batch", "slurm", None, 1)),
        ("htcondor:20", ("batch", "htcondor", 20, 1)),
        ("my/site.yaml", ("batch", "my/site.yaml", None, 1)),
        ("~/site.yml:3", ("batch", "~/site.yml", 3, 1)),
        ("tcp://10.0.0.1:8786", ("address", "tcp://10.0.0.1:8786", None, 1)),
        ("tls://head:8786", ("address", "tls://head:8786", None, 1)),
        ("run/scheduler.json", ("file", "run/scheduler.json", None, 1)),
        ("run/scheduler.json:16", ("file", "run/scheduler.json", 16, 1)),
    ],
)
def test_spec(text, found):
    spec = parse_spec(text)
    assert (spec.kind, spec.name, spec.number, spec.threads) == found


@pytest.mark.parametrize(
    "text",
    ["", "slurm42", "local:0", "local:2:0", "slurm:0", "slurm:many", "tcp://head", "http://h:1/a.json", "a.yaml:-1"],
)
def test_wrong_spec(text):
    with pytest.raises(InputError, match="--cluster"):
        parse_spec(text)


def test_every_command_that_computes_has_it():
    import click

    from musedask.cli_cluster import ClusterOption

    found = []
    for name, command in {**main.commands, "night": main.commands["simulate"].commands["night"]}.items():
        if any(p.name == "cluster" for p in command.params):
            option = next(p for p in command.params if p.name == "cluster")
            assert isinstance(option, ClusterOption), name
            found.append(name)
    assert {"combine", "make-cube", "store", "demo", "night"} <= set(found)
    run = main.commands["recipe"].commands["run"]
    for name in ("muse_bias", "muse_scipost"):
        params = run.get_command(click.Context(run), name).params
        assert any(isinstance(p, ClusterOption) for p in params)


# --- sites -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch):
    """Settings of the user of the tests do not count."""
    with dask.config.set({"jobqueue": {}, "musedask": {}}):
        yield


def write_site(folder, text, name="site.yaml"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


DIRECTIVES = {
    "slurm": ["#SBATCH --cpus-per-task=16", "#SBATCH --mem=60G", "#SBATCH -t 12:00:00", "${TMPDIR:-/tmp}"],
    "pbs": ["#PBS -l select=1:ncpus=16:mem=60GB", "#PBS -l walltime=12:00:00", "cd $PBS_O_WORKDIR"],
    "lsf": ["#BSUB -n 16", '#BSUB -R "span[hosts=1]"', "#BSUB -M 64000", "#BSUB -W 12:00"],
    "htcondor": ["RequestCpus = MY.DaskWorkerCores", "MY.DaskWorkerCores = 8", "$_CONDOR_SCRATCH_DIR", "\nQueue\n"],
}


@pytest.mark.parametrize("system", DIRECTIVES)
def test_templates(system, tmp_path):
    """What comes with musedask is a whole configuration, and asks for what it says."""
    text = CliRunner().invoke(main, ["cluster", "template", system], catch_exceptions=False).output
    assert text == templates()[system].read_text()
    done = CliRunner().invoke(main, ["cluster", "script", str(write_site(tmp_path, text))], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for part in DIRECTIVES[system]:
        assert part in done.output
    threads, memory = (8, 32) if system == "htcondor" else (16, 64)
    assert f"--nthreads {threads} " in done.output and "OMP_NUM_THREADS=1" in done.output
    assert f"--resources esorex={threads},MEMORY={memory * 10**9 - 400_000_000}" in done.output


def test_template_list():
    done = CliRunner().invoke(main, ["cluster", "template"])
    assert done.exit_code == 0 and all(word in done.output for word in (*DIRECTIVES, "slurm-run.sh"))
    done = CliRunner().invoke(main, ["cluster", "template", "cray"])
    assert done.exit_code == 1 and "cray: no such configuration" in done.output


def test_site_of_the_user():
    """--cluster NAME takes the configuration of Dask; without one, the message tells where to get it."""
    with pytest.raises(InputError, match=r"jobqueue.slurm.cores and .memory are not set; .*cluster template slurm"):
        job_script("slurm")
    with dask.config.set({"jobqueue.slurm": {"cores": 6, "memory": "12GB", "queue": "long", "processes": 2}}):
        text = job_script("slurm")
    assert "#SBATCH -p long" in text and "--nworkers 2" in text
    assert "--nthreads 3 " in text and "esorex=3,MEMORY=5600000000" in text
    for system, sign in (("sge", "#$ -N dask-worker"), ("oar", "#OAR -l /nodes=1/core=6"), ("moab", "#PBS -l select")):
        with dask.config.set({f"jobqueue.{system}": {"cores": 6, "memory": "12GB"}}):
            assert sign in job_script(system)


def test_resources_of_the_site():
    """What the site declares itself stays."""
    for extra in (["--resources", "esorex=2 GPU=1"], ["--resources=esorex=2,GPU=1"]):
        config = {"cores": 4, "memory": "1GB", "worker-extra-args": [*extra, "--lifetime", "1h"]}
        with dask.config.set({"jobqueue.slurm": config}):
            text = job_script("slurm")
        assert "--lifetime 1h --resources esorex=2,GPU=1,MEMORY=600000000" in text and text.count("--resources") == 1


def test_site_with_a_name_of_its_own(tmp_path):
    path = write_site(tmp_path, """
        jobqueue:
          big-machine:
            cores: 4
            memory: 8 GiB
            account: abc
        musedask: {system: slurm, jobs: 7}
        """)  # fmt: skip
    assert "#SBATCH -A abc" in job_script(str(path))
    with site(parse_spec(str(path))) as found:
        assert (found.system, found.name, found.jobs, found.threads) == ("slurm", "big-machine", 7, 4)
        assert dask.config.get("jobqueue.big-machine.account") == "abc"
    assert dask.config.get("jobqueue.big-machine", None) is None
    with site(parse_spec(f"{path}:3")) as found:
        assert found.jobs == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cores: [", ["not YAML"]),
        ("cores: 4", ["no section 'jobqueue'"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB}, pbs: {}}", ["slurm, pbs found, expected one"]),
        ("jobqueue: {cray: {cores: 4, memory: 1GB}}", ["jobqueue.cray is no batch system", "system"]),
        ("jobqueue: {slurm: {cores: 4}}", ["cores and .memory are not set"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB, wall-time: '1:00'}}", ["wall-time", "did you mean walltime?"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB, walltime: 12:00:00}}", ["walltime", "43200", "quotes"]),
        ("jobqueue: {slurm: {cores: four, memory: 1GB}}", ["cores", "'four'"]),
        ("jobqueue: {slurm: {cores: 4, memory: much}}", ["memory", "much", "2GB"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB, processes: 8}}", ["8 processes", "4 cores"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB, interface: ib7}}", ["interface: ib7", "lo"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB}}\nmusedask: {job: 3}", ["musedask.job", "did you mean jobs?"]),
        ("jobqueue: {slurm: {cores: 4, memory: 1GB}}\nmusedask: {minimum: 30, maximum: 20}", ["minimum 30", "20"]),
    ],
)
def test_wrong_site(text, words, tmp_path):
    path = write_site(tmp_path, text)
    done = CliRunner().invoke(main, ["cluster", "script", str(path)])
    assert done.exit_code == 1 and "Traceback" not in done.output
    for word in [str(path), *words]:
        assert word in " ".join(done.output.split()), done.output


def test_no_dask_jobqueue(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(InputError, match=r"pip install 'musedask\[jobqueue\]'"), open_cluster("slurm"):
        pass


def test_script_of_no_batch_system():
    with pytest.raises(InputError, match="local:2: has no job script"):
        job_script("local:2")


# --- jobs ------------------------------------------------------------------------------------------

SITE = """
jobqueue:
  slurm:
    cores: 2
    memory: 2GB
    interface: lo
    worker-extra-args: [--no-dashboard, --no-nanny]
    local-directory: {folder}
    scheduler-options: {{dashboard_address: "127.0.0.1:0"}}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of Slurm that start jobs as processes; the folder of these."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    # the script that is submitted is deleted at once
    commands = {
        "sbatch": f'cp "$1" {folder}/job.$$; setsid bash {folder}/job.$$ </dev/null >{folder}/log.$$ 2>&1 &\n'
        f"echo $! >>{folder}/started; echo Submitted batch job $!",
        "scancel": f"echo $1 >>{folder}/cancelled; kill -- -$1",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    if (folder / "started").exists():
        for pid in (folder / "started").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)


def test_jobs(slurm, tmp_path):
    """Jobs are submitted, do work, and are cancelled at the end."""
    path = write_site(tmp_path, SITE.format(folder=tmp_path))
    done = []
    with open_cluster(f"{path}:2") as client:
        assert compute.n_threads(client, None) == 4
        assert wait_for_workers(client, 2, timeout=60) == 2
        assert {w["nthreads"] for w in compute.worker_info(client).values()} == {2}
        assert compute.default_memory_limit(client) == 2 * 1_600_000_000
        compute.run_tasks(
            abs, [-1, -2, -3], client=client, label="t", on_result=lambda i, r: done.append(r),
            resources={"esorex": 1, "MEMORY": 1_000_000_000},
        )  # fmt: skip
    assert sorted(done) == [1, 2, 3]
    started, cancelled = ((slurm / name).read_text().split() for name in ("started", "cancelled"))
    assert len(started) == 2 and sorted(started) == sorted(cancelled)


def test_jobs_are_refused(slurm, tmp_path):
    """What sbatch complains of is told, and nothing waits for workers that will never come."""
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition specified: none' >&2; exit 1\n")
    path = write_site(tmp_path, SITE.format(folder=tmp_path))
    with pytest.raises(InputError, match="sbatch: error: invalid partition specified: none"), open_cluster(f"{path}:2"):
        pass


def test_no_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_site(tmp_path, SITE.format(folder=tmp_path))
    with pytest.raises(InputError, match="sbatch: not found"), open_cluster(str(path)):
        pass


def test_run_in_one_allocation(tmp_path):
    """The job script of a whole run: scheduler, workers by srun, the command, and nothing left."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        # srun starts as many as it is told
        "srun": 'n=${1#--ntasks=}; shift 2; pids=\nfor i in $(seq $n); do "$@" --no-nanny & pids="$pids $!"; done\n'
        "trap 'kill $pids; wait $pids; exit 143' TERM; wait",
        "dask": f'exec {sys.executable} -m dask "$@"',
        "musedask": f'[ "$1" = cluster ] && exec {sys.executable} -m musedask "$@" --no-esorex\necho "$@" >&2; exit 3',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "INTERFACE": "lo",
        "LOCAL": str(tmp_path), "SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_NODE": "1024", "DASHBOARD": "127.0.0.1:0",
    }  # fmt: skip
    output = tmp_path / "log"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", str(ROOT / "cluster" / "slurm-run.sh"), "combine", "a.fits", "-o", "b.zarr"], cwd=tmp_path,
            env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        process.wait(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    text = output.read_text()
    assert process.returncode == 3, text
    assert "read and written by 2 of 2 workers" in text and "1.35 GB of" in text and "all is well" in text, text
    assert f"combine a.fits -o b.zarr --cluster {tmp_path}/.musedask-job-17/scheduler.json:2" in text
    assert not list(tmp_path.glob(".musedask*"))


# --- schedulers that run ---------------------------------------------------------------------------


def test_joined(by_hand):
    """The same scheduler by its address and by its file; it goes on afterwards."""
    folder, address = by_hand
    for spec in (address, f"{folder / 'scheduler.json'}:2"):
        with open_cluster(spec) as client:
            wait_for_workers(client, 2, timeout=30)
            assert compute.n_threads(client, None) == 2
            assert client.submit(os.getpid).result() != os.getpid()


def test_joined_in_vain(tmp_path):
    for content, words in ((None, "No such file"), ("{}", "no address"), ("[", "no address")):
        path = tmp_path / "scheduler.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match=words), open_cluster(str(path)):
            pass


def test_errors_of_the_work_are_its_own(by_hand):
    """A full disk is not taken for a scheduler that does not answer."""
    with pytest.raises(OSError, match="full"), open_cluster(by_hand[1]):
        raise OSError(28, "disk full")


def test_local_processes():
    with open_cluster("local:2:3", "1GB") as client:
        workers = compute.worker_info(client).values()
        assert [w["nthreads"] for w in workers] == [3, 3]
        assert [w["resources"] for w in workers] == [{"esorex": 3, "MEMORY": 500_000_000}] * 2
        assert compute.default_memory_limit(client) == 10**9
        pids = set(client.run(os.getpid).values())
        assert len(pids) == 2 and os.getpid() not in pids
        # what one worker has room for runs there, and what none has does not start
        future = client.submit(abs, -1, resources={"MEMORY": 6e8}, pure=False)
        assert client.submit(abs, -2, resources={"MEMORY": 5e8}, pure=False).result(timeout=30) == 2
        assert not future.done()


# --- check -----------------------------------------------------------------------------------------


def test_check(by_hand, monkeypatch):
    """Everything that the second worker lacks is found, and nothing wrong with the first."""
    folder, address = by_hand
    # to import the others on three processes takes long; test_run_in_one_allocation asks for all
    monkeypatch.setattr(cluster_check, "PACKAGES", ("musedask", "dask", "numpy", "msgpack"))
    paths = [folder / "data", folder, folder / "data" / "raw.fits", folder / "data" / "deep"]
    with open_cluster(address) as client:
        wait_for_workers(client, 2, timeout=30)
        report = check_cluster(client, paths, free=1, wait=30, patience=0.3)
    text = report.describe()
    assert len(report.workers) == 2
    problems = {problem.split(": ", 1)[1] for problem in report.problems}
    assert problems == {
        f"{folder / 'data'}: another folder of this name: what was written there is not here (1 of 2 workers)",
        f"{folder / 'data' / 'raw.fits'}: other content (1 of 2 workers)",
        f"{folder / 'data' / 'deep'}: not there (1 of 2 workers)",
        f"musedask missing found, {musedask.__version__} here (1 of 2 workers)",
        f"dask 1.0.0 found, {dask.__version__} here (1 of 2 workers)",
        "esorex: esorex: not found (1 of 2 workers)",
        "its clock differs by +100.0 s from the one here",
    }, text
    assert report.paths[str(folder)] == "read and written by 2 of 2 workers"
    assert report.paths[str(folder / "data")] == "read and written by 1 of 2 workers"
    assert report.paths[str(folder / "data" / "raw.fits")] == "seen, with the same content, by 1 of 2 workers"
    table = text.splitlines()[1]
    assert f"3.13.6, {len(RECIPES)} recipes 2.8.7" in table and "none" in table and "+100.0 s" in table
    assert "1 of 2 workers do not declare MEMORY" in text and text.endswith("7 problems found")
    assert not list(folder.rglob(".musedask-check*"))


def test_check_command(by_hand, monkeypatch):
    """The exit status tells; too little space is a problem, too."""
    folder, address = by_hand
    monkeypatch.setattr(cluster_check, "PACKAGES", ("musedask",))
    options = ["--path", str(folder), "--free", "1000000TB", "--no-esorex"]
    done = CliRunner().invoke(main, ["cluster", "check", "--cluster", address, *options])
    assert done.exit_code == 1 and f"scratch {folder / 'scratch'}" in done.output, done.output
    assert "1e+06 TB wanted (" in done.output and "problem: " in done.output
    done = CliRunner().invoke(main, ["cluster", "check", "--cluster", address, "--path", str(folder / "not")])
    assert done.exit_code == 1 and "not: not there on this machine" in done.output


def test_check_of_this_process(tmp_path):
    """Without a cluster; a folder that cannot be written to is compared."""
    done = CliRunner().invoke(main, ["cluster", "check", "--path", str(tmp_path), "--no-esorex", "--free", "1"])
    assert done.exit_code == 0 and done.output.endswith("all is well\n"), done.output
    assert f"{tmp_path}: read and written by 1 of 1 workers" in done.output


def _state(name, host, *, esorex=None, threads=1, resources=None, **found):
    scratch = {"path": "/s", "writable": True, "free": 10, "filesystem": "nfs4", "shared": True}
    found = {
        "host": host, "uid": 0, "machine": "x86_64", "python": "3.11.2", "cpus": 2, "versions": {"musedask": "1"},
        "scratch": scratch, "memory": {"total": 10**9, "free": 10**9}, "esorex": esorex, **found,
    }  # fmt: skip
    return WorkerState(name, host, threads, resources or {}, found)


def test_judgement_of_hosts():
    """What cannot be had on one machine: other users, architectures, versions of esorex, file systems."""
    recipes = list(RECIPES)
    old = {"path": "/bin/esorex", "version": "3.13.5", "recipes": recipes[2:], "pipeline": "2.8.5"}
    new = {"path": "/bin/esorex", "version": "3.13.6", "recipes": recipes, "pipeline": "2.8.7"}
    report = Report([
        _state("a", "n1", esorex=new), _state("b", "n2", esorex=new),
        _state("c", "n3", esorex=old, uid=7, machine="aarch64", python="3.12.1", threads=8, resources={"MEMORY": 2e9}),
    ])  # fmt: skip
    here = _state("", "head").found
    for host, workers in report.hosts.items():
        cluster_check._check_host(report, host, workers, here, 5)
    cluster_check._check_esorex(report)
    assert report.problems == [
        "n3: python 3.12.1 found, 3.11.2 here",
        "n3: workers declare 2 GB of memory, it has 1 GB",
        f"n3: esorex: /bin/esorex lacks 2 of {len(recipes)} recipes: {recipes[0]}, {recipes[1]} (1 of 1 workers)",
        "esorex: versions differ: 3.13.6 with 2.8.7 on n1, n2; 3.13.5 with 2.8.5 on n3",
    ]
    notes = "\n".join(report.notes)
    for words in ("n3: aarch64 found", "as user 7", "n3: 8 threads on 2 CPUs", "n1: scratch /s is on a network file"):
        assert words in notes
    assert not any("n1" in text for text in report.problems[:3])
