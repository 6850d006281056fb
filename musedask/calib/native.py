"""The engine native: recipes as functions of this package."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.io import fits

from ..io.headers import read_datamd5
from ..io.product_files import write_product
from ..io.product_headers import read_primary, recipe_header
from ..io.sof import Frame
from .registry import load_function
from .task import Made, Task

log = logging.getLogger("musedask")


class Stopped(Exception):
    """The call was given up or took too long; the argument is the status."""


@dataclass
class NativeOutcome:
    """What a native call left, also if it did not come to its end.

    Attributes
    ----------
    products : list of Frame
        Whole files in the folder of the call.
    warnings, lines : list of str
        What it said.
    """

    products: list[Frame] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def run_native(
    task: Task,
    place: str,
    folder: Path,
    outcome: NativeOutcome,
    *,
    timeout: float | None = None,
    cancelled: Callable[[], bool] = bool,
) -> None:
    """Run a recipe and write its products into a folder as they come.

    Parameters
    ----------
    task : Task
    place : str
        Its function, see `musedask.calib.registry`.
    folder : Path
    outcome : NativeOutcome
        Is filled meanwhile, so that it tells what was finished if an error comes out of here.
    timeout : float, optional
        [s]; it is looked at whenever a product is finished.
    cancelled : callable
        Asked likewise; true ends the call.

    Raises
    ------
    Stopped
        If it was given up or took too long.
    """
    function = load_function(place)
    deadline = None if timeout is None else time.monotonic() + timeout
    numbers: Counter[str] = Counter()
    with captured(outcome):
        for made in function(task):
            if cancelled():
                raise Stopped("cancelled")
            numbers[made.tag] += 1
            name = task.recipe.product(made.tag).file_name(task.ifu, numbers[made.tag])
            header = product_header_of(task, made, name)
            write_product(folder / name, made.content, header, overwrite=True)
            outcome.products.append(Frame(folder / name, made.tag))
            # its arrays are not needed any more while the next ones are made
            del made
            if deadline is not None and time.monotonic() > deadline:
                raise Stopped("timeout")
    if cancelled():
        raise Stopped("cancelled")


def product_header_of(task: Task, made: Made, name: str) -> fits.Header:
    """Primary header of a product: what the recipe says, and how it was made."""
    raws = [f for f in (task.frames if made.raws is None else made.raws) if _group(task, f) == "raw"]
    if made.raws is None and task.recipe.product(made.tag).mode == "dateobs":
        # what is made of one exposure names that one
        date = made.header.get("DATE-OBS")
        raws = [f for f in raws if read_primary(f.path).get("DATE-OBS") == date] or raws
    calibs = [f for f in task.frames if _group(task, f) == "calib"]
    return recipe_header(
        made.header,
        read_primary((raws or task.frames)[0].path),
        recipe=task.recipe,
        values=task.values,
        raws=[(f.path.name, f.tag) for f in raws],
        calibs=[(f.path.name, f.tag, read_datamd5(f.path)) for f in calibs],
        category=made.tag,
        file_name=name,
        pixels=isinstance(made.content, np.ndarray),
    )


def _group(task: Task, frame: Frame) -> str:
    found = task.recipe.input(frame.tag)
    return "" if found is None else found.group


# --- what a call says ------------------------------------------------------------------------------


class _Capture(logging.Filter):
    """Gives what is logged in the threads of calls to the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, NativeOutcome] = {}
        self.lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        outcome = self.calls.get(record.thread or 0)
        if outcome is None and record.thread != threading.main_thread().ident and len(self.calls) == 1:
            # a thread that the only call has started
            outcome = next(iter(self.calls.values()), None)
        if outcome is None:
            return True
        text = record.getMessage()
        stamp = time.strftime("%H:%M:%S", time.gmtime(record.created))
        outcome.lines.append(f"{stamp} [{record.levelname:^7}] {record.funcName}: {text}")
        if record.levelno >= logging.WARNING and text not in outcome.warnings:
            outcome.warnings.append(text)
        return False


_capture = _Capture()


@contextmanager
def captured(outcome: NativeOutcome) -> Iterator[None]:
    """What this thread logs goes to an outcome, not to the terminal."""
    thread = threading.get_ident()
    with _capture.lock:
        _capture.calls[thread] = outcome
        if _capture not in log.filters:
            log.addFilter(_capture)
    try:
        yield
    finally:
        with _capture.lock:
            del _capture.calls[thread]
            if not _capture.calls:
                log.removeFilter(_capture)


def write_log(path: Path, outcome: NativeOutcome, *, more: str = "") -> None:
    """Write what a call said to a file, if there is room for it."""
    try:
        path.write_text("\n".join(outcome.lines) + "\n" + more)
    except OSError:
        path.unlink(missing_ok=True)

