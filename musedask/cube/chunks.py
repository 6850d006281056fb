"""The tasks of a cube: one chunk each, computed, written as a shard, marked as done."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..compute import give_back_arrays, run_tasks
from .build import open_store, store_task, unpickle
from .plan import Plan
from .resample import STEPS, Job, Window, resample_chunk
from .store import AnyStore
from .work import Settings

if TYPE_CHECKING:
    from .finish import Products

log = logging.getLogger("musedask")


@dataclass(frozen=True)
class _ChunkSpec:
    """What a task needs besides its number; small enough to travel with every task."""

    store: Any
    stamp: int
    job_path: str
    cube: str
    marks: str
    keep_cosmics: bool
    is_tight: bool


@lru_cache(maxsize=2)
def _cube_arrays(path: str, stamp: int) -> dict[str, Any]:
    import zarr

    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    return {name: group[name] for name in ("flux", "variance", "weight", "n_pixels") if name in group}


def _run_chunk(spec: _ChunkSpec, item: tuple[int, Window]) -> NDArray[np.float64]:
    """Compute a chunk, write its shard, leave a mark; returns counts and the seconds of the steps."""
    from ..io.cube import write_region

    number, window = item
    if spec.is_tight:
        give_back_arrays()
    job: Job = unpickle(spec.job_path, spec.stamp)
    store = open_store(spec.store, spec.stamp) if isinstance(spec.store, str) else spec.store
    chunk = resample_chunk(job, store, window, keep_cosmics=spec.keep_cosmics)
    started = time.perf_counter()
    arrays = _cube_arrays(spec.cube, spec.stamp)
    start = (window[0], window[2], window[4])
    write_region(arrays["flux"], start, chunk.data)
    write_region(arrays["variance"], start, chunk.stat)
    if job.params.weight_map:
        write_region(arrays["weight"], start, chunk.weight)
        write_region(arrays["n_pixels"], start, chunk.n_pixels)
    mark = Path(spec.marks) / f"{number:06d}"
    if spec.keep_cosmics:
        part = mark.with_suffix(".part.npz")
        np.savez(part, **_joined(chunk.cosmics))  # type: ignore[arg-type]
        os.replace(part, mark)
    else:
        mark.touch()
    written = time.perf_counter() - started
    return np.array([*chunk.statistics, np.isfinite(chunk.data).any(), *chunk.seconds, written])


def _joined(cosmics: Sequence[tuple[int, NDArray[np.int32]]]) -> dict[str, NDArray[np.int32]]:
    joined: dict[str, list[NDArray[np.int32]]] = {}
    for exposure, rows in cosmics:
        joined.setdefault(str(exposure), []).append(rows)
    return {key: np.concatenate(parts) for key, parts in joined.items()}


def run_chunks(
    job: Job, store: AnyStore, plan: Plan, products: Products, settings: Settings, resumed: bool
) -> None:
    folder = settings.scratch
    cube = folder / "cube.zarr"
    marks = folder / "done"
    state = folder / "plan.json"
    layout = {"shape": list(plan.shape), "chunk": list(plan.chunk), "keep_cosmics": products.keep_cosmics}
    if resumed and state.exists():
        old = json.loads(state.read_text())
        if old["shape"] == layout["shape"] and old["keep_cosmics"] == layout["keep_cosmics"]:
            # the shards that are there fix the chunks; one that is too big now splits itself
            plan = replace(plan, chunk=tuple(old["chunk"]))
        else:
            state.unlink()
    if not state.exists():
        shutil.rmtree(cube, ignore_errors=True)
        shutil.rmtree(marks, ignore_errors=True)
        products.create_cube(cube, plan, maps=job.params.weight_map)
        marks.mkdir()
        part = state.with_suffix(".part")
        part.write_text(json.dumps(layout))
        os.replace(part, state)
    job_path = folder / "job.pickle"
    job_path.write_bytes(pickle.dumps(job))
    done = {int(name) for name in os.listdir(marks) if name.isdigit()}
    items = [(k, window) for k, window in enumerate(plan.windows()) if k not in done]
    if done:
        log.info("%d of %d chunks are finished already", len(done), plan.n_tasks)
    # arrays that are given back at once have to be asked for again, which takes time
    is_tight = settings.client is not None or plan.peak_bytes > 0.5 * settings.memory_limit
    spec = _ChunkSpec(
        store_task(store), time.time_ns(), str(job_path), str(cube), str(marks), products.keep_cosmics, is_tight
    )
    statistics = np.zeros(7 + len(STEPS) + 1)

    def add(_: Any, values: NDArray[np.float64]) -> None:
        nonlocal statistics
        statistics = statistics + values

    run_tasks(
        partial(_run_chunk, spec),
        items,
        client=settings.client,
        n_workers=settings.threads,
        label="resampling",
        on_result=add,
        done_before=len(done),
    )
    if not done and not statistics[6]:
        log.warning("no voxel of the cube has a value: are all pixels bad, or outside OUTPUT_WCS?")
    tested = max(int(statistics[2]), 1)
    log.debug(
        "rows with halos %d, projected term by term %d; voxels tested for cosmic rays %d: "
        "settled by the bracket %.1f %%, by the median %.1f %%, in full %.1f %%",
        *statistics[:3], *(100 * statistics[3:6] / tested),
    )  # fmt: skip
    seconds = zip((*STEPS, "write"), statistics[7:], strict=True)
    log.info("time of the chunks, all threads together: %s", ", ".join(f"{name} {s:.1f} s" for name, s in seconds))
