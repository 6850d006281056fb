"""CPU time of the steps of a native recipe, in one process: ``recipe_steps.py OUTPUT RECIPE SOF OPTIONS...``.

The functions of the steps are wrapped by clocks of the thread that they run in; a step does not count what the steps
that it calls take.  What `recipes.py --profile` prints comes from the JSON file OUTPUT.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: steps and the functions that do them, ``module:name``
STEPS = {
    "compiled functions loaded": ["numba.core.dispatcher:Dispatcher.compile"],
    "raw images read": ["musedask.io.raw_read:read_image"],
    "masters and tables read": ["musedask.calib.basic:load_masters", "musedask.calib.basic:known_pixels"],
    "overscan": ["musedask.calib.detector:overscan_statistics", "musedask.calib.detector:fit_overscan"],
    "rows processed": ["musedask.calib.detector:correct"],
    "rows combined": ["musedask.calib.combination:combine_rows"],
    "statistics": [
        "musedask.calib.statistics:image_statistics", "musedask.calib.statistics:image_median_deviation",
        "musedask.calib.flat:Tally.__init__", "musedask.calib.flat:Tally.add", "musedask.calib.flat:Tally.statistics",
        "musedask.calib.bias:read_noise", "musedask.calib.bias:profiles", "musedask.calib.dark:level_in_windows",
        "musedask.calib.detector:quadrant_median",
    ],
    "bad pixels": [
        "musedask.calib.flat:flag_pixels", "musedask.calib.dark:flag_hot", "musedask.calib.bias:flag_columns"
    ],
    "traces": ["musedask.calib.tracing:trace"],
    "arc lines": [
        "musedask.calib.wavecal:solve_slice", "musedask.calib.wavecal:solve_slice_on_sum",
        "musedask.calib.wavecal:fit_solution",
    ],
    "headers": [
        "musedask.calib.native:product_header_of", "musedask.calib.basic:RawFrame.header",
        "musedask.io.product_files:layout", "musedask.io.cards:header_bytes", "musedask.calib.flat:put_trace_quality",
    ],
    "DATAMD5": ["musedask.io.checksum:datamd5"],
    "products written": ["musedask.io.product_files:write_product"],
    "records": ["musedask.calib.provenance:FileRecord.of", "musedask.calib.provenance:write_record"],
}  # fmt: skip
IMPORTS, REST = "Python, modules", "rest"


class Clock:
    """Seconds of CPU by step."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._local = threading.local()
        self._lock = threading.Lock()

    def wrap(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Function with a clock."""

        def timed(*args: Any, **options: Any) -> Any:
            inner = self._local.__dict__.setdefault("inner", [])
            inner.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                taken = time.thread_time() - start
                own = taken - inner.pop()
                if inner:
                    inner[-1] += taken
                with self._lock:
                    self.seconds[step] += own

        return timed

    def wrap_imports(self) -> None:
        """Count what is imported, wherever."""
        plain = builtins.__import__
        timed = self.wrap(IMPORTS, plain)

        def load(name: str, *args: Any, **options: Any) -> Any:
            if getattr(self._local, "loading", False):
                return plain(name, *args, **options)
            self._local.loading = True
            try:
                return timed(name, *args, **options)
            finally:
                self._local.loading = False

        builtins.__import__ = load

    def wrap_step(self, step: str, place: str) -> None:
        """Count the calls of a function, under all names that it was imported by."""
        module, _, name = place.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        before = vars(owner)[name]
        if isinstance(before, classmethod):
            setattr(owner, name, classmethod(self.wrap(step, before.__func__)))
            return
        after = self.wrap(step, before)
        setattr(owner, name, after)
        for other in [m for n, m in sys.modules.items() if n.startswith("musedask")]:
            for key, value in list(vars(other).items()):
                if value is before:
                    setattr(other, key, after)


def main() -> None:
    """Run the recipe and write the seconds."""
    output, recipe, *arguments = sys.argv[1:]
    clock = Clock()
    start = time.process_time()
    clock.wrap_imports()
    from musedask.cli import main as cli

    for step, places in STEPS.items():
        own = recipe.removeprefix("muse_")
        others = {"bias", "dark", "flat", "wavecal"} - {own}
        for place in places:
            if not any(place.startswith(f"musedask.calib.{other}:") for other in others):
                clock.wrap_step(step, place)
    before = time.process_time()
    cli(["recipe", "run", recipe, *arguments], standalone_mode=False)
    seconds = dict(clock.seconds)
    total = time.process_time()
    # what came before the clocks: the interpreter, and the modules that were loaded for them
    seconds[IMPORTS] = seconds.get(IMPORTS, 0.0) + start
    seconds[REST] = max(total - sum(seconds.values()), 0.0)
    Path(output).write_text(json.dumps({"total": total, "before": before, "seconds": seconds}))


if __name__ == "__main__":
    main()
