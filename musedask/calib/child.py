"""Child processes that never outlive this one."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GUARD = Path(__file__).with_name("guard.py")
#: how often to look whether the call was given up [s]
_STEP = 0.2


@dataclass(frozen=True)
class Ended:
    """How a child process ended.

    Attributes
    ----------
    status : int
        Exit status, or minus the number of the signal that ended it.
    cpu_time : float
        [s]
    peak_memory : int
        [bytes]
    stopped : str
        Why it was killed: ``timeout`` or ``cancelled``; empty if it ended by itself.
    """

    status: int
    cpu_time: float = 0.0
    peak_memory: int = 0
    stopped: str = ""


def run_child(
    command: Sequence[str],
    *,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout: float | None = None,
    cancelled: Callable[[], bool] = bool,
) -> Ended:
    """Run a command in a process group of its own; it is killed with all its children on any way out of here.

    Parameters
    ----------
    command : sequence of str
    cwd : path-like
    env : mapping
        All of its environment.
    on_line : callable
        Called with each line of its output (standard output and error).
    timeout : float, optional
        [s]
    cancelled : callable
        Asked now and then; true ends the command.

    Returns
    -------
    Ended
    """
    started = time.monotonic()
    report, report_end = os.pipe()
    try:
        # no thread of this process but a process of its own watches over the child: it also does so when this one
        # is killed
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.fspath(_GUARD), str(report_end), *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=(report_end,),
        )
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(report_end)
    stopped = ""
    assert process.stdout is not None and process.stdin is not None
    try:
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                ready = selector.select(_STEP)
                chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    on_line(line.decode("utf-8", "replace"))
                if (ready and not chunk) or (not ready and process.poll() is not None):
                    break
                if cancelled():
                    stopped = "cancelled"
                elif timeout is not None and time.monotonic() - started > timeout:
                    stopped = "timeout"
                if stopped:
                    break
        if rest:
            on_line(rest.decode("utf-8", "replace"))
        if not stopped:
            process.wait()
            found = json.loads(os.read(report, 4096) or b"{}")
            if "status" in found:
                return Ended(int(found["status"]), float(found["cpu_time"]), int(found["peak_memory"]))
        return Ended(-signal.SIGKILL, stopped=stopped)
    finally:
        _kill(process)
        os.close(report)
        process.stdout.close()
        process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process group; its leader is not waited for before, so that its number is its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
