"""What a run leaves to be read: a summary, and the quality control of all products as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calib.provenance import CallRecord
from ..compute import format_bytes, format_seconds
from ..io.files import atomic_path
from ..io.quality import read_quality
from .steps import Graph, Node

if TYPE_CHECKING:
    import pandas as pd

    from .run import Outcome


def summary(graph: Graph, outcome: Outcome, *, most: int = 20) -> str:
    """Text about a run: what was made, what failed and why, warnings by recipe, times and memory."""
    done = outcome.done.values()
    made = [d for d in done if d.ok and not d.reused]
    reused = [d for d in done if d.reused]
    lines = [
        f"{len(made)} calls done, {len(reused)} as before, {len(outcome.failures)} failed, {len(outcome.blocked)} not "
        f"possible without these, in {format_seconds(outcome.seconds)}"
    ]
    for failed in outcome.failures:
        where = f" (log {failed.record.log})" if failed.record.log else ""
        lines.append(f"  failed: {failed.node}: {failed.record.reason}{where}")
    lines += [f"  not possible: {label}: {reason}" for label, reason in graph.refused.items()]
    # exposures tell more than single calls
    blocked: dict[str, dict[str, None]] = {}
    for node, causes in outcome.blocked.items():
        where = node.step.rpartition("/")[0]
        blocked.setdefault(where, {}).update(dict.fromkeys(str(c) for c in causes))
    for number, (where, names) in enumerate(blocked.items()):
        if number == most:
            lines.append(f"  ... and in {len(blocked) - most} more folders")
            break
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  not done for that: in {where}, for want of {'; '.join(list(names)[:3])}{more}")
    records = [d.record for d in made]
    lines += [f"  {line}" for line in _recipe_table(records)]
    warnings = Counter(r.recipe for r in records for _ in r.warnings)
    for recipe, n in warnings.most_common():
        lines.append(f"  {n} warnings of {recipe}")
    for path in final_products(graph, outcome):
        lines.append(f"  {path}")
    return "\n".join(lines)


def _recipe_table(records: Iterable[CallRecord]) -> list[str]:
    by_recipe: dict[tuple[str, str], list[CallRecord]] = {}
    for record in records:
        if record.recipe.startswith("muse_"):
            by_recipe.setdefault((record.recipe, record.engine), []).append(record)
    if not by_recipe:
        return []
    lines = [f"{'recipe':<18} {'engine':<7} {'calls':>5} {'time':>9} {'mean':>8} {'peak memory':>12}"]
    for (recipe, engine), group in by_recipe.items():
        seconds = sum(r.wall_time for r in group)
        peak = max((r.peak_memory for r in group), default=0)
        lines.append(
            f"{recipe:<18} {engine:<7} {len(group):>5} {format_seconds(seconds):>9} "
            f"{seconds / len(group):>6.1f} s {format_bytes(peak) if peak else '':>12}"
        )
    return lines


def final_products(graph: Graph, outcome: Outcome) -> list[Path]:
    """The cubes at the end: of the pointings, else of the exposures."""
    for name in ("exp_combine", "sci_post"):
        found = [
            Path(f.path)
            for step in graph
            if step.name == name
            for d in (outcome.done[node] for node in step.nodes if node in outcome.done)
            if d.ok
            for f in d.record.products
            if f.tag == "DATACUBE_FINAL"
        ]
        if found:
            return found
    return []


def quality_table(graph: Graph, outcome: Outcome) -> pd.DataFrame:
    """Quality control of all products: a row for each keyword ``ESO QC`` of each file.

    Returns
    -------
    pandas.DataFrame
        Columns ``ob``, ``exposure``, ``step``, ``recipe``, ``ifu`` (0 for all), ``tag``, ``file``, ``extension``,
        ``keyword`` (without ``ESO QC``), ``value`` (NaN if it is a text), ``text``.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for node, d in outcome.done.items():
        step = graph[node.step]
        if not d.ok or (step.recipe is None and step.operation != "mosaic"):
            continue
        for file in d.record.products:
            if file.merged_into is not None or not file.path.endswith(".fits") or (file.path, node.key) in seen:
                continue
            seen.add((file.path, node.key))
            common = {
                "ob": step.ob, "exposure": step.exposure, "step": step.name, "recipe": d.record.recipe,
                "ifu": node.ifu or 0, "tag": file.tag, "file": file.path,
            }  # fmt: skip
            for extension, keyword, value in read_quality(file.path):
                number = float(value) if isinstance(value, int | float) else float("nan")
                rows.append({**common, "extension": extension, "keyword": keyword, "value": number, "text": str(value)})
    columns = ["ob", "exposure", "step", "recipe", "ifu", "tag", "file", "extension", "keyword", "value", "text"]
    return pd.DataFrame(rows, columns=columns)


def write_report(folder: Path, graph: Graph, outcome: Outcome) -> list[Path]:
    """Write summary, quality control and calls into a folder.

    Parameters
    ----------
    folder : Path
    graph : Graph
    outcome : Outcome

    Returns
    -------
    list of Path
        ``summary.txt``, ``quality.parquet`` (``quality.csv`` if there is no package for Parquet), ``calls.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "summary.txt"
    with atomic_path(text, overwrite=True) as temporary:
        temporary.write_text(summary(graph, outcome) + "\n")
    table = quality_table(graph, outcome)
    csv, parquet = folder / "quality.csv", folder / "quality.parquet"
    with atomic_path(csv, overwrite=True) as temporary:
        table.to_csv(temporary, index=False)
    with atomic_path(parquet, overwrite=True) as temporary:
        table.to_parquet(temporary, index=False)
    calls = folder / "calls.json"
    with atomic_path(calls, overwrite=True) as temporary:
        temporary.write_text(json.dumps([_call(graph, node, outcome) for node in outcome.done], indent=1) + "\n")
    return [text, csv, parquet, calls]


def _call(graph: Graph, node: Node, outcome: Outcome) -> dict[str, Any]:
    done = outcome.done[node]
    record, step = done.record, graph[node.step]
    return {
        "step": node.step, "name": step.name, "ifu": node.ifu, "recipe": record.recipe, "engine": record.engine,
        "status": record.status, "reused": done.reused, "reason": done.reason, "seconds": record.wall_time,
        "cpu_seconds": record.cpu_time, "peak_memory": record.peak_memory, "threads": record.threads,
        "started": record.started, "ended": record.ended, "host": record.host, "warnings": record.warnings,
        "errors": record.errors, "log": record.log, "products": [f.path for f in record.products],
        "needs": [n.key for n in graph.needs(node)], "key": node.key,
    }  # fmt: skip
