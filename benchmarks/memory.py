"""Memory of ``musedask combine`` on data six times its limit, beside ``esorex muse_exp_combine``.

    python benchmarks/memory.py [--limit 1GB] [--rows 22000000] [--work FOLDER] [--no-esorex] [--cluster local:2]

A mosaic of 2 x 2 full fields in 8 exposures, whose rows (32 bytes) and cube (8 bytes a voxel) take
more than six times the limit, and one of the same 4 fields in 16 exposures.  What is measured is the
resident memory summed over the command and all its children, sampled every 20 ms; pages that
processes share count more than once.  The promise: limit + 300 MB per process, and no more for twice
the exposures.  muse_exp_combine runs on the 8 exposures unless it would need more memory than there
is; its need is known from a run on 2 exposures.

Needs about 45 GB of disk in FOLDER (default: a new one in the folder for temporary files).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from musedask.compute import MemoryMonitor, format_bytes, parse_bytes
from musedask.io.cube import open_cube
from musedask.sim import SimulatedSet, simulate_pixtables

ROOT = Path(__file__).resolve().parent.parent
PER_PROCESS = 300_000_000


def measure(command: list[str], cwd: Path) -> tuple[int, int, int, float, str]:
    """Exit status, peak of the summed resident memory, processes, seconds, output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count())}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with MemoryMonitor(0.02, process.pid) as monitor:
        text, _ = process.communicate()
        seconds = time.perf_counter() - start
    return process.returncode, monitor.peak, monitor.processes, seconds, text


def combine(sim: SimulatedSet, n: int, folder: Path, limit: str, cluster: str | None) -> tuple[str, int]:
    """Row of the table, and the peak."""
    paths = [path for e in sim.exposures[:n] for path in e.paths]
    output = folder / "mosaic.zarr"
    command = [
        sys.executable, "-m", "musedask", "combine", *map(str, paths), "-o", str(output), "--memory-limit", limit,
        "--fits", str(folder / "mosaic.fits"), "--offset-list", str(sim.offset_list),
    ]  # fmt: skip
    command += ["--cluster", cluster] if cluster else []
    status, peak, processes, seconds, text = measure(command, folder)
    if status:
        raise SystemExit(text)
    rows = sum(e.n_rows for e in sim.exposures[:n])
    cube = open_cube(output)
    data = 32 * rows + 8 * cube.flux.size
    allowed = parse_bytes(limit) + processes * PER_PROCESS
    nz, ny, nx = cube.flux.shape
    name = f"musedask, {n} exposures" + (f", {cluster}" if cluster else "")
    row = (
        f"| {name} | {rows / 1e6:.0f} | {nx} x {ny} x {nz} | {format_bytes(data)} | {data / parse_bytes(limit):.1f} | "
        f"{format_bytes(peak)} | {processes} | {format_bytes(allowed)} | {'yes' if peak <= allowed else 'NO'} | "
        f"{seconds:.0f} s |"
    )
    print("\n".join(line for line in text.splitlines() if line.startswith(("cube ", "time", "peak"))), flush=True)
    for path in (output, folder / "mosaic.fits", folder / "IMAGE_FOV_0001.fits"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return row, peak


def reference(sim: SimulatedSet, n: int, folder: Path) -> tuple[str, int]:
    """The same for muse_exp_combine."""
    sof = sim.write_sof(folder / "in.sof", exposures=range(n))
    status, peak, processes, seconds, text = measure(["esorex", "muse_exp_combine", str(sof)], folder)
    rows = sum(e.n_rows for e in sim.exposures[:n])
    end = f"{seconds:.0f} s" if not status else f"failed after {seconds:.0f} s: {text.strip().splitlines()[-1][:60]}"
    for name in ("DATACUBE_FINAL.fits", "IMAGE_FOV_0001.fits"):
        (folder / name).unlink(missing_ok=True)
    return (
        f"| muse_exp_combine, {n} exposures | {rows / 1e6:.0f} | | | | {format_bytes(peak)} | {processes} | | | "
        f"{end} |",
        peak,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", default="1GB")
    parser.add_argument("--rows", type=int, default=22_000_000, help="pixels of one exposure")
    parser.add_argument("--exposures", type=int, default=8)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cluster", default=None, help="also with worker processes, e.g. local:2")
    parser.add_argument("--no-esorex", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="memory.", dir=options.work))
    table = [
        "| run | million pixels | cube | data | data/limit | peak | processes | allowed | kept | time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    try:
        n = options.exposures
        sim = simulate_pixtables(
            folder / "in", n_exposures=2 * n, mosaic="2x2", rotations=(0.0,), wave_range=(6000, 7600),
            n_rows_limit=options.rows, cosmic_rays=2e-4, bad_pixels=2e-3,
        )  # fmt: skip
        print(f"{2 * n} exposures of {sim.exposures[0].n_rows / 1e6:.1f} million pixels", flush=True)
        peaks = []
        for number in (n, 2 * n):
            row, peak = combine(sim, number, folder, options.limit, None)
            table.append(row)
            peaks.append(peak)
        print(f"twice the exposures: peak {100 * (peaks[1] / peaks[0] - 1):+.1f} %", flush=True)
        if options.cluster:
            table.append(combine(sim, n, folder, options.limit, options.cluster)[0])
        if not options.no_esorex and shutil.which("esorex"):
            row, two = reference(sim, 2, folder)
            table.append(row)
            memory = psutil.virtual_memory().available
            # the rows dominate, and the cube grows with the field
            if two * n / 2 < 0.9 * memory:
                table.append(reference(sim, n, folder)[0])
            else:
                print(f"muse_exp_combine on {n}: about {format_bytes(two * n / 2)}, {format_bytes(memory)} are free")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + "\n".join(table))


if __name__ == "__main__":
    main()
