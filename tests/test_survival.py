"""Killed, interrupted, out of a worker: what is finished is kept, and the result is the same to the last bit.

Each job runs as a command of its own in a process group of its own, so that a signal to the group
does what a batch system, a full machine or a user does.  Pauses in each step only widen the time in
which a small job can be hit; how much is done before the blow is random, with seeds.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from astropy.io import fits

from musedask.compute import open_cluster, run_tasks
from musedask.sim import simulate_pixtables

ROOT = Path(__file__).parents[1]
CHUNK = (10, 50, 80)
#: rows go to disk with this limit
OPTIONS = ["--memory-limit", "60MB", "--n-workers", "1", "--chunks", ",".join(map(str, CHUNK))]
#: seconds that each step takes longer
PAUSE = """
import sys, time
from musedask.cube import build, chunks
from musedask.io import cube_write
def slow(owner, name, seconds):
    real = getattr(owner, name)
    def paused(*args, **kwargs):
        time.sleep(seconds)
        return real(*args, **kwargs)
    setattr(owner, name, paused)
slow(build, "write_block", 0.3)
slow(chunks, "resample_chunk", 0.02)
slow(cube_write.HduWriter, "put", 0.15)
from musedask.cli import main
main(sys.argv[1:])
"""
#: cards that tell when a file was written
TIMES = {"DATE", "CHECKSUM", "DATASUM", "DATAMD5", "PIPEFILE"}


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    """Three exposures of 300 000 pixels."""
    return simulate_pixtables(
        tmp_path_factory.mktemp("sim"), n_exposures=3, ifus=(12, 13), slices=24, wave_range=(6500, 6600),
        rotations=(0.0, 90.0), cosmic_rays=1e-3, bad_pixels=0.01, threads=2,
    )  # fmt: skip


def command(sim, folder, *options):
    """Arguments of the job, the same wherever its outputs go."""
    output = ["-o", folder / "cube.zarr", "--fits", folder / "cube.fits"]
    return [str(a) for a in ("combine", *sim.paths, *output, *OPTIONS, *options)]


@pytest.fixture(scope="module")
def whole(sim, tmp_path_factory):
    """Folder with the result of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run = [sys.executable, "-m", "musedask", *command(sim, folder)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sorted on disk" in done.stderr
    return folder


def start(arguments, *, paused=True):
    how = ["-c", PAUSE] if paused else ["-m", "musedask"]
    return subprocess.Popen(
        [sys.executable, *how, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process):
    """What the run says; it must have ended well."""
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def wait_for(process, condition):
    """Wait until something is so, while the process runs."""
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"the run ended too early: {process.communicate()[1]}"
        assert time.monotonic() < end
        time.sleep(0.002)


def strike(process, condition, sign=signal.SIGKILL):
    """Send a signal to the whole group as soon as something is so; what the run said so far."""
    wait_for(process, condition)
    os.killpg(process.pid, sign)
    _, text = process.communicate(timeout=120)
    return text


def times(folder, pattern):
    """Files and when they were written, to the nanosecond."""
    return {str(path): path.stat().st_mtime_ns for path in folder.glob(pattern) if path.is_file()}


def counts(cube):
    """Number of chunks along each axis."""
    import zarr

    shape = zarr.open_array(str(cube / "flux"), mode="r").shape
    return tuple(-(-n // c) for n, c in zip(shape, CHUNK, strict=True))


def shards_of(work, numbers):
    """Shards of the finished chunks, which are numbered with wavelength outermost."""
    _, ny, nx = counts(work / "cube.zarr")
    found = {}
    for number in numbers:
        z, y, x = number // (ny * nx), number // nx % ny, number % nx
        for name in ("flux", "variance"):
            path = work / "cube.zarr" / name / "c" / str(z) / str(y) / str(x)
            # chunks without a value have no file
            if path.exists():
                found[path.relative_to(work / "cube.zarr")] = path.stat().st_mtime_ns
    return found


def assert_same(folder, whole):
    """The cubes are the same file by file, byte by byte; FITS but for the cards that hold the time."""
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    files = sorted(p.relative_to(whole) for p in (whole / "cube.zarr").rglob("*") if p.is_file())
    assert sorted(p.relative_to(folder) for p in (folder / "cube.zarr").rglob("*") if p.is_file()) == files
    for file in files:
        if file.name != "zarr.json":
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    for name in ("cube.fits", "IMAGE_FOV_0001.fits"):
        with fits.open(folder / name, checksum=True) as ours, fits.open(whole / name) as theirs:
            assert len(ours) == len(theirs)
            for a, b in zip(ours, theirs, strict=True):
                assert (a.data is None) == (b.data is None)
                if a.data is not None:
                    assert a.data.tobytes() == b.data.tobytes()
                cards = [[c.image for c in hdu.header.cards if c.keyword not in TIMES] for hdu in (a, b)]
                assert cards[0] == cards[1]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_three_times(seed, sim, whole, tmp_path):
    """While sorting, while resampling and while the FITS cube is written; then to the end."""
    rng = np.random.default_rng(seed)
    work = tmp_path / ".cube.zarr.work"
    arguments = command(sim, tmp_path)

    blocks = int(rng.integers(1, 3))
    strike(start(arguments), lambda: len(times(work, "store/blocks/*[0-9].npz")) >= blocks)
    marks = times(work, "store/blocks/*[0-9].npz")
    # the rows of a finished block; the block that was being written is none
    kept = {f: t for f, t in times(work, "store/exposure_*/block_*/c/0/0").items() if _mark_of(f, work) in marks}
    assert len(kept) == len(marks) >= blocks
    assert not (work / "store" / "zarr.json").exists()
    assert not list(tmp_path.glob("cube*"))

    n = int(rng.integers(3, 20))
    text = strike(start(arguments), lambda: len(times(work, "done/*")) >= n)
    assert "going on with the interrupted run" in text
    after = times(work, "store/exposure_*/block_*/c/0/0")
    assert {f: after[f] for f in kept} == kept
    done = times(work, "done/*")
    shards = shards_of(work, [int(Path(name).name) for name in done])
    assert len(shards) >= n
    assert not list(tmp_path.glob("cube*"))

    pieces = int(rng.integers(0, 3))
    process = start(arguments)
    wait_for(process, lambda: list(tmp_path.glob(".cube.fits.*.part")))
    time.sleep(0.15 * pieces + float(rng.uniform(0, 0.15)))
    text = strike(process, lambda: True)
    total = math.prod(counts(work / "cube.zarr"))
    assert total > 30 and f"{len(done)} of {total} chunks are finished already" in text
    again = times(work, "done/*")
    assert {f: again[f] for f in done} == done
    assert times(work, "store/exposure_*/block_*/c/0/0") == after
    assert list(tmp_path.glob(".cube.fits.*.part")) and not list(tmp_path.glob("cube*"))

    text = finish(start(arguments, paused=False))
    assert f"{total} of {total} chunks are finished already" in text
    written = {file: (tmp_path / "cube.zarr" / file).stat().st_mtime_ns for file in shards}
    assert written == shards
    assert_same(tmp_path, whole)


def _mark_of(block, work):
    parts = Path(block).relative_to(work / "store").parts
    return str(work / "store" / "blocks" / f"{parts[0][-4:]}_{parts[1][-5:]}.npz")


def test_killed_when_the_first_file_has_its_name(sim, whole, tmp_path):
    """The FITS cube is there, the rest is not: the next run knows it for its own and ends the job."""
    process = start(command(sim, tmp_path))
    strike(process, lambda: (tmp_path / "cube.fits").exists() and list(tmp_path.glob(".IMAGE_FOV_0001.fits.*.part")))
    assert not (tmp_path / "cube.zarr").exists()
    finish(start(command(sim, tmp_path), paused=False))
    assert_same(tmp_path, whole)


def test_interrupted_from_the_keyboard(sim, whole, tmp_path):
    """Ctrl-C: exit status 130, one message; the same command goes on."""
    work = tmp_path / ".cube.zarr.work"
    process = start(command(sim, tmp_path))
    text = strike(process, lambda: len(times(work, "done/*")) >= 5, signal.SIGINT)
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in text and "Traceback" not in text
    done = times(work, "done/*")
    assert len(done) >= 5
    text = finish(start(command(sim, tmp_path), paused=False))
    total = math.prod(counts(tmp_path / "cube.zarr"))
    assert f"{len(done)} of {total} chunks are finished already" in text
    assert_same(tmp_path, whole)


def test_interrupted_on_a_cluster(sim, whole, tmp_path):
    """Ctrl-C with worker processes; going on with threads gives the same."""
    work = tmp_path / ".cube.zarr.work"
    process = start(command(sim, tmp_path, "--cluster", "local:2", "--memory-limit", "110MB"), paused=False)
    text = strike(process, lambda: len(times(work, "done/*")) >= 3, signal.SIGINT)
    assert process.returncode == 130, text
    assert "interrupted; finished work is kept" in text and "Traceback" not in text
    end = time.monotonic() + 20
    while time.monotonic() < end and _group(process.pid):
        time.sleep(0.05)
    assert not _group(process.pid), "worker processes are left over"
    text = finish(start(command(sim, tmp_path), paused=False))
    assert "chunks are finished already" in text
    assert_same(tmp_path, whole)


def _group(number):
    """Processes of a group that are alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_worker_dies(sim, whole, tmp_path):
    """One of two worker processes is killed in the middle: the run ends well, the cube is the same."""
    work = tmp_path / ".cube.zarr.work"
    process = start(command(sim, tmp_path, "--cluster", "local:2", "--memory-limit", "110MB"), paused=False)
    wait_for(process, lambda: len(times(work, "done/*")) >= 5)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if p.memory_info().rss > 80e6]
    assert len(workers) == 2
    workers[0].kill()
    text = finish(process)
    assert "2 worker processes" in text
    assert_same(tmp_path, whole)


def test_going_on_with_another_memory_limit(sim, whole, tmp_path):
    """Killed while sorting: with more memory the finished blocks stay, with less they are made anew; no mixture."""
    for name, limit in (("more", "64MB"), ("less", "52MB")):
        folder = tmp_path / name
        folder.mkdir()
        work = folder / ".cube.zarr.work"
        strike(start(command(sim, folder)), lambda w=work: len(times(w, "store/blocks/*[0-9].npz")) >= 2)
        text = finish(start([*command(sim, folder), "--memory-limit", limit], paused=False))
        assert "going on with the interrupted run" in text
        assert_same(folder, whole)


def test_arrived_results_are_not_made_again(tmp_path):
    """A worker that is lost takes its results with it; those that have arrived nobody needs any more."""

    def work(item):
        with open(tmp_path / str(item), "a") as file:
            file.write("x")
        time.sleep(0.02)
        return item

    arrived = []
    before = []

    def on_result(_, result):
        arrived.append(result)
        if len(arrived) == 20:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
            before.extend(arrived)

    with open_cluster("local:2") as client:
        run_tasks(work, list(range(60)), client=client, on_result=on_result)
    assert sorted(arrived) == list(range(60))
    assert all((tmp_path / str(item)).read_text() == "x" for item in before[:-4])
