"""A simulated night from raw frames to cubes by ``musedask reduce``, on either engine, and step by step with esorex.

    python benchmarks/reduce.py [--work FOLDER] [--runs esorex,auto,steps] [--n-workers 2] [--small]

Two observing blocks of two exposures, one of them over two nights, with sky, standard stars and all calibrations.
With ``--runs esorex,killed`` it is also killed at five random moments, and compared with the run that was not.
Told are: wall time of each, how busy the cores were, the ratio to the same recipes called one after the other with
``--nifu=-1`` (as MUSEreduce does), differences of the cubes in units of sigma, and how the measured calls would go for
the whole instrument (24 IFUs) on more workers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

COUNTS = {"ASTROMETRY": 0, "BIAS": 3, "FLAT": 3, "ARC": 1, "SKYFLAT": 3, "SKY": 1, "STD": 1, "ILLUM": 1, "DARK": 0}


def simulate(folder: Path, ifus: list[int]) -> None:
    """Raw frames and static calibrations, made once."""
    from musedask.sim import Target, plan_night, simulate_plans

    if (folder / "frames.sof").exists():
        return
    place: dict[str, Any] = {"ra": 30.0, "dec": -33.0, "dithers": 2, "exptimes": (300.0,), "rotate": 90.0}
    split: dict[str, Any] = {**place, "id": 200002, "field": (4.0, 1.0)}
    targets = [Target("Field A", id=200001, **place), Target("Field B", part=(0, 1), **split)]
    plans = plan_night("2018-11-08", targets=targets, counts=COUNTS)
    plans += plan_night(
        "2018-11-09", targets=[Target("Field B", part=(1, 2), sky=0, **split)], counts=COUNTS, first_index=len(plans)
    )
    simulate_plans(folder, plans, ifus=ifus, seed=5)


def configure(work: Path, data: Path, name: str, small: bool) -> Path:
    """Configuration of a run."""
    # a strip of few IFUs has few stars
    parameters: dict[str, Any] = {"exp_align": {"srcmin": 2, "threshold": 5.0}, "sci_post": {"rvcorr": "none"}}
    if small:
        parameters["sci_post"] |= {"lambdamin": 6100.0, "lambdamax": 6900.0}
    config = {
        "global": {"rootpath": str(work), "static_calib_path": str(data / "static"), "using_ESO_calibration": False,
                   "n_CPU": -1},
        "sky": {"fraction": 0.3},
        "musedask": {"raw": [str(data / "raw")], "reduced": str(work / name)},
        "parameters": parameters,
    }  # fmt: skip
    path = work / f"{name}.json"
    path.write_text(json.dumps(config, indent=1))
    return path


def timed(command: list[str], log: Path, *, made: list[Path] | None = None, **options: Any) -> dict[str, float]:
    """Wall time and processor time of a command with all its descendants [s], and their peak of memory [GB].

    Parameters
    ----------
    command : list of str
    log : Path
        For its output.
    made : list of Path, optional
        Files that must be there then; by default its exit status must be 0.
    **options
        Of `subprocess.Popen`.
    """
    from musedask.compute import MemoryMonitor

    start = time.perf_counter()
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
        with MemoryMonitor(0.2, process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # with --nifu=-1 esorex fails for the IFUs that were not simulated; what counts then is what it made
    if process.returncode if made is None else not all(path.exists() for path in made):
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}, see {log}\n{log.read_text()[-3000:]}")
    used = {"wall": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    return {**used, "peak": memory.peak / 1e9}


def reduce(config: Path, name: str, engine: str, n_workers: int, limit: str, work: Path) -> dict[str, float]:
    """Run ``musedask reduce``."""
    shutil.rmtree(work / name, ignore_errors=True)
    command = [sys.executable, "-m", "musedask", "reduce", str(config), "--engine", engine]
    return timed([*command, "--n-workers", str(n_workers), "--memory-limit", limit], work / f"{name}.log")


def killed(config: Path, n_workers: int, limit: str, work: Path, expected: float) -> dict[str, float]:
    """Run ``musedask reduce`` with esorex, kill it at five random moments, and let it end then."""
    folder = work / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "musedask", "reduce", str(config), "--engine", "esorex"]
    command += ["--n-workers", str(n_workers), "--memory-limit", limit]
    rng, wall = random.Random(7), 0.0
    for i in range(5):
        wait = rng.uniform(0.1, 0.3) * expected
        wall += wait
        with open(work / f"killed-{i}.log", "wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            time.sleep(wait)
            if process.poll() is not None:
                raise SystemExit(f"it ended before it was killed, see {work}/killed-{i}.log")
            process.kill()
            process.wait()
    used = timed(command, work / "killed.log")
    used["wall"] += wall
    events = [json.loads(line) for line in (folder / ".musedask/journal.jsonl").read_text().splitlines()]
    ends = Counter((e["step"], e["ifu"]) for e in events if e["event"] == "done")
    again = sum(n - 1 for n in ends.values())
    print(f"killed: five times; of {len(ends)} calls {again} were done more than once")
    return used


def differing(one: Path, other: Path) -> tuple[int, list[str]]:
    """How many products there are, and those of which the data are not the same bit by bit."""
    found, names = [], sorted(str(p.relative_to(one)) for p in one.rglob("*.fits") if ".musedask" not in p.parts)
    for name in names:
        with fits.open(one / name) as a, fits.open(other / name) as b:
            same = len(a) == len(b)
            for x, y in zip(a, b, strict=same):
                if x.data is None or y.data is None:
                    same &= x.data is y.data
                else:
                    same &= x.data.dtype == y.data.dtype and x.data.tobytes() == y.data.tobytes()
        if not same:
            found.append(name)
    return len(names), found


def step_by_step(config: Path, source: Path, folder: Path, work: Path) -> dict[str, float]:
    """The same sets of frames, one recipe after the other with esorex alone."""
    from musedask.workflow.reduce import plan_reduction

    shutil.rmtree(folder, ignore_errors=True)
    plan = plan_reduction(config, engine="esorex")
    total = {"wall": 0.0, "cpu": 0.0, "peak": 0.0}
    for step in plan.graph:
        place = folder / step.folder.relative_to(plan.reduced)
        place.mkdir(parents=True, exist_ok=True)
        frames: dict[tuple[Path, str], None] = {}
        for node in step.nodes:
            frames |= dict.fromkeys(plan.graph.frames(node))
        moved = [(folder / p.relative_to(plan.reduced) if p.is_relative_to(plan.reduced) else p, t) for p, t in frames]
        if step.recipe is None:
            start = time.perf_counter()
            names = step.values.get("names") or [p.name for p, _ in moved]
            if step.operation not in ("link",):
                raise SystemExit(f"{step.id}: {step.operation} is not part of this benchmark")
            for (path, _), name in zip(moved, names, strict=True):
                os.link(path, place / name)
            total["wall"] += time.perf_counter() - start
            continue
        sof = place / f"{step.stem}.sof"
        sof.write_text("".join(f"{p} {t}\n" for p, t in moved))
        values = {**step.values, **({"nifu": -1} if step.ifus else {})}
        options = [step.recipe.parameter(k).to_option(v) for k, v in values.items()]
        command = ["esorex", f"--output-dir={place}", "--suppress-prefix=TRUE", f"--log-dir={place}",
                   f"--log-file={step.stem}.log", step.recipe.name, *options, str(sof)]  # fmt: skip
        tags = [p.tag for p in step.recipe.products if p.expected(step.recipe.resolve(step.values))]
        made = [place / path.name for tag in tags for path in step.product_paths(tag)] if step.ifus else None
        used = timed(command, place / f"{step.stem}.out", made=made, cwd=place)
        print(f"  {step.id}: {used['wall']:.1f} s", flush=True)
        for key in ("wall", "cpu"):
            total[key] += used[key]
        total["peak"] = max(total["peak"], used["peak"])
        for old, new in step.names.items():
            if (place / old).exists():
                os.rename(place / old, place / new)
    return total


def compare(one: Path, other: Path) -> dict[str, float]:
    """Differences of two cubes in units of sigma, where both have data."""
    with fits.open(one) as a, fits.open(other) as b:
        x, y, stat = a["DATA"].data, b["DATA"].data, a["STAT"].data
        if x.shape != y.shape:
            raise SystemExit(f"{one} and {other}: shapes {x.shape} and {y.shape}")
        good = np.isfinite(x) & np.isfinite(y) & (stat > 0)
        d = (x[good].astype(float) - y[good]) / np.sqrt(stat[good].astype(float))
        return {
            "rms": float(np.sqrt(np.mean(d**2))), "median": float(np.median(np.abs(d))),
            "largest": float(np.abs(d).max()),
            "nan differ": float(np.mean(np.isfinite(x) != np.isfinite(y))), "voxels": float(good.sum()),
        }  # fmt: skip


def busy_in_recipes(folder: Path, cores: int) -> float:
    """Processor time of the calls of recipes over what the cores had, from the first start to the last end of one."""
    from datetime import datetime

    calls = [c for c in json.loads((folder / "report/calls.json").read_text()) if c["recipe"].startswith("muse_")]
    # the mosaic is no recipe
    calls = [c for c in calls if c["started"] and not (c["recipe"] == "muse_exp_combine" and c["engine"] == "native")]
    start = min(datetime.fromisoformat(c["started"]) for c in calls)
    end = max(datetime.fromisoformat(c["ended"]) for c in calls)
    return sum(c["cpu_seconds"] for c in calls) / ((end - start).total_seconds() * cores)


def replay_instrument(config: Path, folder: Path, engine: str) -> None:
    """Replay the graph for 24 IFUs with the measured times of those that there are."""
    from dataclasses import replace as changed

    from musedask.workflow.reduce import plan_reduction
    from musedask.workflow.steps import Graph, Node, replay

    measured = json.loads((folder / "report/calls.json").read_text())
    by_step: dict[str, list[float]] = {}
    for call in measured:
        by_step.setdefault(call["step"], []).append(call["seconds"])
    plan = plan_reduction(config, engine=engine)
    steps = [changed(s, ifus=tuple(range(1, 25))) if s.ifus else s for s in plan.graph]
    graph = Graph(steps)
    n = len(plan.graph.steps[next(s.id for s in plan.graph if s.ifus)].ifus)
    seconds: dict[Node, float] = {}
    for step in graph:
        mean = float(np.mean(by_step.get(step.id, [0.0])))
        for node in step.nodes:
            # what takes the tables of all IFUs takes longer with more of them
            seconds[node] = mean if step.ifus or step.recipe is None else mean * 24 / n
    print(f"replay of {len(seconds)} calls for 24 IFUs, engine {engine}:")
    print(f"{'workers':>8} {'time':>10} {'critical path':>14} {'efficiency':>11}")
    for workers in (1, 2, 8, 24, 96, 384):
        r = replay(graph, seconds, workers, overhead=0.05)
        print(f"{workers:>8} {r.elapsed / 60:>8.1f} m {r.critical_path / 60:>12.1f} m {r.efficiency:>11.2f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/musedask-reduce"))
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--runs", default="esorex,auto,steps")
    parser.add_argument("--n-workers", type=int, default=2)
    parser.add_argument("--memory-limit", default="8GB")
    parser.add_argument("--reuse", action="store_true", help="take the runs of musedask that are there")
    parser.add_argument("--small", action="store_true", help="a part of the wavelengths in the last steps")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data or args.work / "data"
    simulate(data, [1, 2])
    runs, found = args.runs.split(","), {}
    for name in runs:
        config = configure(args.work, data, name, args.small)
        if name == "steps":
            base = configure(args.work, data, "esorex", args.small)
            found[name] = step_by_step(base, args.work / "esorex", args.work / name, args.work)
        elif name == "killed":
            found[name] = killed(config, args.n_workers, args.memory_limit, args.work, found["esorex"]["wall"])
            n, others = differing(args.work / "esorex", args.work / name)
            print(f"killed: {n} products, {len(others)} of them not those of the other run{': ' * bool(others)}"
                  + ", ".join(others))
        elif args.reuse and (args.work / f"{name}-used.json").exists():
            found[name] = json.loads((args.work / f"{name}-used.json").read_text())
        else:
            found[name] = reduce(config, name, name, args.n_workers, args.memory_limit, args.work)
            (args.work / f"{name}-used.json").write_text(json.dumps(found[name]))
        used = found[name]
        print(f"{name}: {used['wall']:.1f} s, processors {used['cpu']:.1f} s: {used['cpu'] / used['wall']:.2f} cores, "
              f"peak memory {used['peak']:.2f} GB" + (f" of {args.memory_limit}" if name != "steps" else ""))
        if name not in ("steps", "killed"):
            busy = busy_in_recipes(args.work / name, args.n_workers)
            print(f"{name}: cores busy in the recipe phases {100 * busy:.1f} %")
            replay_instrument(config, args.work / name, name)
    for name in runs:
        if name not in ("steps", "killed") and "steps" in found:
            print(f"step by step / {name}: {found['steps']['wall'] / found[name]['wall']:.2f}")
    cubes = {name: sorted((args.work / name).glob("*/*/*/DATACUBE_FINAL.fits")) for name in runs}
    for name in runs[1:]:
        for one, other in zip(cubes[runs[0]], cubes[name], strict=True):
            figures = ", ".join(f"{k} {v:.3g}" for k, v in compare(one, other).items())
            print(f"{one.relative_to(args.work)} against {name} [sigma]: {figures}")


if __name__ == "__main__":
    main()
