"""Speed and memory of the native recipes against esorex, on the same cores and files, in turn.

    python benchmarks/recipes.py [--ifu 12] [--repeat 3] [--cores 1] [--work FOLDER]
    python benchmarks/recipes.py --all-ifus [--recipes muse_bias,muse_flat,muse_wavecal]
    python benchmarks/recipes.py --profile [--ifu 12] [--repeat 3]

Simulates the calibrations of a night, then runs each recipe for one IFU with both engines: whole processes from
start to exit, bound to the same cores, on files that were read before (page cache), with Numba's cache warm, products
with checksums and DATAMD5.  Both take the same masters, those of esorex.  With ``--all-ifus`` the native recipes for
24 IFUs on two cores are compared with one IFU on one core, with ``--profile`` the CPU time of the native recipes on
one core is told by steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musedask.io.files import atomic_path

ROOT = Path(__file__).resolve().parent.parent
#: raw frames, and the recipes with the tags that they take
COUNTS = {"BIAS": 5, "DARK": 5, "FLAT": 5, "ARC": 3}
RECIPES = {
    "muse_bias": "BIAS BADPIX_TABLE",
    "muse_dark": "DARK MASTER_BIAS BADPIX_TABLE",
    "muse_flat": "FLAT MASTER_BIAS BADPIX_TABLE",
    "muse_wavecal": "ARC MASTER_BIAS TRACE_TABLE LINE_CATALOG BADPIX_TABLE",
}


def simulate(folder: Path, ifus: Sequence[int], counts: dict[str, int]) -> list[tuple[str, str]]:
    """Frames of the calibrations of a night (path and tag), made once."""
    from musedask.sim import simulate_night

    marker = folder / "made.json"
    wanted = json.dumps([list(ifus), counts])
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        none = dict.fromkeys(("SKYFLAT", "ILLUM", "STD", "ASTROMETRY", "SKY"), 0)
        simulate_night(folder, ifus=ifus, dithers=1, seed=7, calibrations={**none, **counts}, associations=False,
                       exptimes=(300,), truth=False)  # fmt: skip
        with atomic_path(marker, overwrite=True) as temporary:
            temporary.write_text(wanted)
    lines = [line.split() for line in (folder / "frames.sof").read_text().splitlines()]
    return [(str((Path.cwd() / line[0]).resolve()), line[1]) for line in lines if line]


def run(command: list[str], folder: Path, cores: Sequence[int]) -> dict[str, Any]:
    """Wall time, CPU time and peak memory of a process, in a fresh folder; products that were there are removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = str(len(cores))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    # byte code is kept, as it is in any installation
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder.parent / "bytecode")
    with open(folder / "stdout", "wb") as out:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command], cwd=folder, env=environment, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        text = (folder / "stdout").read_text(errors="replace")
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}\n{text[-4000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}


def esorex(recipe: str, sof: Path, folder: Path, ifu: int, cores: Sequence[int]) -> dict[str, Any]:
    """One call of the reference."""
    return run(["esorex", "--suppress-prefix=TRUE", recipe, f"--nifu={ifu}", str(sof)], folder, cores)


def native(recipe: str, sof: Path, folder: Path, nifu: int, cores: Sequence[int]) -> dict[str, Any]:
    """One call of musedask."""
    command = [
        sys.executable, "-m", "musedask", "recipe", "run", recipe, str(sof), "--engine", "native", "--nifu", str(nifu),
        "--output-dir", str(folder),
        # for several IFUs tasks of Dask, on a process for each core
        *(["--n-workers", "1"] if nifu > 0 else ["--cluster", f"local:{len(cores)}"]),
    ]  # fmt: skip
    return run(command, folder, cores)


def write_sof(path: Path, recipe: str, frames: Sequence[tuple[str, str]]) -> Path:
    """Set of frames of a recipe."""
    tags = RECIPES[recipe].split()
    path.write_text("".join(f"{name} {tag}\n" for name, tag in frames if tag in tags))
    return path


def read_once(frames: Sequence[tuple[str, str]]) -> None:
    """Bring files into the page cache."""
    for name, _ in frames:
        with open(name, "rb", buffering=0) as file:
            while file.read(8 << 20):
                pass


def compare_engines(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each recipe for one IFU with both engines."""
    frames = simulate(args.work / "one", [args.ifu], COUNTS)
    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    report = []
    print(f"IFU {args.ifu}, {args.cores} core(s), median of {args.repeat}; wall [s], CPU [s], peak [GB]")
    for recipe in RECIPES:
        sof = write_sof(args.work / f"{recipe}.sof", recipe, frames)
        read_once([f for f in frames if f[1] in RECIPES[recipe].split()])
        masters = args.work / "masters" / recipe
        # its products are the masters of the next recipes
        first = esorex(recipe, sof, masters, args.ifu, cores)
        frames += [(str(p), p.name.rpartition("-")[0]) for p in sorted(masters.glob("*.fits"))]
        if recipe not in args.recipes:
            continue
        # the functions are compiled here
        native(recipe, sof, args.work / "native", args.ifu, cores)
        runs: dict[str, list[dict[str, Any]]] = {"esorex": [first], "native": []}
        for number in range(args.repeat):
            if number:
                runs["esorex"].append(esorex(recipe, sof, args.work / "esorex", args.ifu, cores))
            runs["native"].append(native(recipe, sof, args.work / "native", args.ifu, cores))
        ratios = [a["wall"] / b["wall"] for a, b in zip(runs["esorex"], runs["native"], strict=True)]
        middle = {
            engine: {key: statistics.median(r[key] for r in values) for key in ("wall", "cpu", "peak")}
            for engine, values in runs.items()
        }
        text = "   ".join(f"{e} {m['wall']:6.2f} {m['cpu']:6.2f} {m['peak'] / 1e9:5.2f}" for e, m in middle.items())
        print(f"{recipe:13} {text}   ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
              flush=True)  # fmt: skip
        report.append({"recipe": recipe, "runs": runs, "ratio": statistics.median(ratios)})
    return report


def show_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU time of the steps of each native recipe for one IFU on one core."""
    frames = simulate(args.work / "one", [args.ifu], COUNTS)
    cores = sorted(os.sched_getaffinity(0))[:1]
    report: list[dict[str, Any]] = []
    for recipe in RECIPES:
        sof = write_sof(args.work / f"{recipe}.sof", recipe, frames)
        read_once([f for f in frames if f[1] in RECIPES[recipe].split()])
        masters = args.work / "masters" / recipe
        native(recipe, sof, masters, args.ifu, cores)
        frames += [(str(p), p.name.rpartition("-")[0]) for p in sorted(masters.glob("*.fits"))]
        if recipe not in args.recipes:
            continue
        output, folder = args.work / "steps.json", args.work / "native"
        command = [
            sys.executable, str(ROOT / "benchmarks" / "recipe_steps.py"), str(output), recipe, str(sof), "--engine",
            "native", "--nifu", str(args.ifu), "--output-dir", str(folder), "--n-workers", "1",
        ]  # fmt: skip
        found = []
        for _ in range(args.repeat):
            run(command, folder, cores)
            found.append(json.loads(output.read_text()))
        # shares of the run that was disturbed least
        best = min(found, key=lambda r: r["total"])
        report.append({"recipe": recipe, **best})
    steps = list(dict.fromkeys(s for r in report for s in r["seconds"]))
    steps.sort(key=lambda step: -sum(r["seconds"].get(step, 0) for r in report))
    print(f"IFU {args.ifu}, one core: share of the CPU time [%], least of {args.repeat}")
    print(f"{'':26}" + "".join(f"{r['recipe']:>14}" for r in report))
    for step in steps:
        print(f"{step:26}" + "".join(f"{100 * r['seconds'].get(step, 0) / r['total']:14.0f}" for r in report))
    print(f"{'all [s]':26}" + "".join(f"{r['total']:14.2f}" for r in report))
    return report


def compare_fan_out(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The native recipes for 24 IFUs on two cores against one IFU on one core."""
    ifus = range(1, 25)
    cores = sorted(os.sched_getaffinity(0))[:2]
    frames = simulate(args.work / "all", ifus, {"BIAS": 3, "DARK": 0, "FLAT": 3, "ARC": 1})
    report = []
    for recipe in RECIPES:
        if recipe == "muse_dark":
            continue
        sof = write_sof(args.work / f"all-{recipe}.sof", recipe, frames)
        one = [native(recipe, sof, args.work / "native", 12, cores[:1]) for _ in range(args.repeat)]
        folder = args.work / "all-masters" / recipe
        every = native(recipe, sof, folder, -1, cores)
        frames += [(str(p), p.name.rpartition("-")[0]) for p in sorted(folder.glob("*.fits"))]
        single = statistics.median(r["wall"] for r in one)
        print(f"{recipe:13} one IFU on one core {single:6.2f} s, 24 IFUs on two cores {every['wall']:7.2f} s: "
              f"{every['wall'] / single:.2f} times", flush=True)  # fmt: skip
        report.append({"recipe": recipe, "one": one, "all": every, "ratio": every["wall"] / single})
    return report


def main() -> None:
    """Measure, print and keep the figures in recipes.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ifu", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--recipes", default=",".join(RECIPES), type=lambda text: text.split(","))
    parser.add_argument("--all-ifus", action="store_true", help="24 IFUs on two cores; needs 20 GB of disk")
    parser.add_argument("--profile", action="store_true", help="CPU time of the native recipes by steps")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/musedask-recipes"))
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    report = (show_steps if args.profile else compare_fan_out if args.all_ifus else compare_engines)(args)
    (args.work / "recipes.json").write_text(json.dumps(report, indent=1))
    with contextlib.suppress(OSError):
        shutil.rmtree(args.work / "native")
        shutil.rmtree(args.work / "esorex")


if __name__ == "__main__":
    main()
