"""Speed of ``musedask combine`` against ``esorex muse_exp_combine``, on the same cores, in turn.

    python benchmarks/speed.py [--rows 21500000] [--repeat 3] [--work FOLDER] [--store-ifus 12]

Both read the same simulated pixel tables (3 exposures of a full field, two rotations, offsets,
flux scales, cosmic rays, bad pixels) and write a FITS cube with checksums and DATAMD5 and the
white-light image: drizzle, median cosmic-ray rejection, the recipe's defaults.  Times are those
of whole processes, on files that were read once before (page cache), with Numba's cache warm.
The cubes are compared bit for bit.  Then a second cube, with another pixfrac and in 100
Angstrom, musedask from its pixel store: of exposures over the whole wavelength range, of which the
reference has to read everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from musedask.compute import MemoryMonitor
from musedask.sim import simulate_pixtables

ROOT = Path(__file__).resolve().parent.parent


def run(command: list[str], cwd: Path, threads: int) -> dict[str, object]:
    """Wall time, CPU time and peak resident memory of a process and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    before = os.times()
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with MemoryMonitor(0.02, process.pid) as monitor:
        text, _ = process.communicate()
        wall = time.perf_counter() - start
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{text}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu, "peak": monitor.peak, "text": text}


def differences(ours: Path, reference: Path) -> int:
    """Voxels of DATA and STAT that differ in any bit (all NaN alike)."""
    count = 0
    with fits.open(ours, memmap=True) as a, fits.open(reference, memmap=True) as b:
        for name in ("DATA", "STAT"):
            if a[name].shape != b[name].shape:
                raise SystemExit(f"{name}: shape {a[name].shape}, reference {b[name].shape}")
            for plane in range(a[name].shape[0]):
                x, y = (h[name].data[plane].astype("<f4") for h in (a, b))
                same = (x.view("i4") == y.view("i4")) | (np.isnan(x) & np.isnan(y))
                count += int((~same).sum())
    return count


def disk(files: list[Path], folder: Path) -> tuple[float, float]:
    """Plain reading of files and plain writing with fsync [bytes / s]."""
    size = sum(f.stat().st_size for f in files)
    start = time.perf_counter()
    buffer = bytearray(8 << 20)
    for file in files:
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    reading = size / (time.perf_counter() - start)
    block = os.urandom(8 << 20)
    start = time.perf_counter()
    with open(folder / "plain", "wb", buffering=0) as handle:
        for _ in range(64):
            handle.write(block)
        os.fsync(handle.fileno())
    writing = 64 * len(block) / (time.perf_counter() - start)
    (folder / "plain").unlink()
    return reading, writing


def tables(folder: Path, rows: int | None, ifus: Sequence[int] = range(1, 25)) -> list[Path]:
    """Simulated tables, made once: of some IFUs, cut to a number of rows by their wavelength."""
    marker = folder / "rows"
    wanted = f"{rows} {list(ifus)}"
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        made = simulate_pixtables(
            folder, n_exposures=3, n_rows_limit=rows, ifus=ifus, rotations=(0, 90), exptimes=(900, 600, 1200),
            flux_scales=(1, 1.1, 0.95), pointing_errors=((0, 0), (1.0, -0.5), (-0.7, 0.3)),
            cosmic_rays=2e-4, bad_pixels=2e-3, seed=3,
        )  # fmt: skip
        made.write_sof(folder / "combine.sof")
        marker.write_text(wanted)
    return sorted(folder.glob("PIXTABLE_REDUCED_*.fits"))


def compare(
    title: str, reference: list[str], ours: list[str], folder: Path, cube: Path, args: argparse.Namespace
) -> dict[str, object]:
    """Run both in turn, some times; report the median of the ratios of each pair."""
    pairs = []
    for number in range(args.repeat):
        drs = run(reference, folder, args.threads)
        mine = run(ours, folder, args.threads)
        pairs.append((drs, mine))
        print(
            f"{title}, pair {number + 1}: esorex {drs['wall']:.1f} s, musedask {mine['wall']:.2f} s, "
            f"ratio {drs['wall'] / mine['wall']:.1f}; CPU {drs['cpu']:.1f} s, {mine['cpu']:.1f} s",
            flush=True,
        )
    lines = [line for line in str(pairs[-1][1]["text"]).splitlines() if line.startswith(("musedask", "time", "cube"))]
    print("\n".join(f"    {line}" for line in lines))
    result = {
        "title": title,
        "esorex_s": statistics.median(p[0]["wall"] for p in pairs),
        "musedask_s": statistics.median(p[1]["wall"] for p in pairs),
        "ratio": statistics.median(p[0]["wall"] / p[1]["wall"] for p in pairs),
        "cpu_ratio": statistics.median(p[0]["cpu"] / p[1]["cpu"] for p in pairs),
        "esorex_peak_GB": max(p[0]["peak"] for p in pairs) / 1e9,
        "musedask_peak_GB": max(p[1]["peak"] for p in pairs) / 1e9,
        "voxels_that_differ": differences(cube, folder / "DATACUBE_FINAL.fits"),
        "stages": lines,
    }
    return result


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=21_500_000, help="rows per exposure")
    parser.add_argument("--store-ifus", type=int, default=12, help="IFUs of the exposures in the store, or 0")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/musedask-speed"))
    parser.add_argument("--keep", action="store_true", help="keep the simulated tables")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    musedask = [sys.executable, "-m", "musedask"]
    esorex = ["esorex", "--suppress-prefix=TRUE", "muse_exp_combine"]
    results = []

    warm = args.work / "warm"
    run([*musedask, "combine", *map(str, tables(warm, 20_000)), "-o", "w.fits", "--overwrite"], warm, args.threads)

    folder = args.work / "field"
    paths = tables(folder, args.rows)
    reading, writing = disk(paths, folder)
    reading, writing = disk(paths, folder)
    size = sum(p.stat().st_size for p in paths)
    print(f"3 tables, {size / 1e9:.2f} GB; plain reading {reading / 1e9:.2f} GB/s, writing {writing / 1e9:.2f} GB/s")
    common = ["--offset-list", "OFFSET_LIST.fits", "-o", "ours.fits", "--overwrite", "--n-workers", str(args.threads)]
    results.append(
        compare(
            "tables to FITS cube",
            [*esorex, "combine.sof"],
            [*musedask, "combine", *map(str, paths), *common],
            folder, folder / "ours.fits", args,
        )
    )  # fmt: skip
    if not args.keep and args.store_ifus:
        shutil.rmtree(folder)

    if args.store_ifus:
        folder = args.work / "store"
        paths = tables(folder, None, range(13 - args.store_ifus // 2, 13 + (args.store_ifus + 1) // 2))
        header = fits.getheader(paths[0])
        low = 10 * round(header["ESO DRS MUSE PIXTABLE LIMITS LAMBDA LOW"] / 10) + 1800.0
        made = run([*musedask, "store", *map(str, paths), "-o", "pixels.zarr", "--overwrite"], folder, args.threads)
        size = sum(p.stat().st_size for p in paths)
        print(f"store of {size / 1e9:.1f} GB of tables: {made['wall']:.1f} s, {size / 1e9 / made['wall']:.2f} GB/s")
        # both read what is in the page cache, as far as it fits
        disk(paths, folder)
        cut = {"pixfrac": "0.8", "lambdamin": f"{low:g}", "lambdamax": f"{low + 100:g}"}
        results.append(
            compare(
                "second cube, 100 Angstrom",
                [*esorex, *(f"--{k}={v}" for k, v in cut.items()), "combine.sof"],
                [*musedask, "combine", "pixels.zarr", *common, *(w for k, v in cut.items() for w in (f"--{k}", v))],
                folder, folder / "ours.fits", args,
            )
        )  # fmt: skip
        if not args.keep:
            shutil.rmtree(folder)

    print("\n| | esorex | musedask | ratio | CPU ratio | peak memory | voxels that differ |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['title']} | {r['esorex_s']:.1f} s | {r['musedask_s']:.1f} s | {r['ratio']:.1f} | "
            f"{r['cpu_ratio']:.1f} | {r['esorex_peak_GB']:.1f} GB, {r['musedask_peak_GB']:.1f} GB | "
            f"{r['voxels_that_differ']} |"
        )
    (args.work / "speed.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
