"""Runs a command, and ends it when the process that asked for it is gone.

A script of its own that needs nothing but the standard library: ``python -I -S guard.py FD COMMAND...``.  Its standard
input is a pipe whose other end the caller holds open and never writes to; when the caller dies, by whatever cause, the
pipe is closed, and the command is killed with this process, whose process group it belongs to.  At the end the status
and the use of resources of the command are written to the file descriptor FD as JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys


def main(arguments: list[str]) -> None:
    report, command = int(arguments[0]), arguments[1:]
    wake, wake_end = os.pipe()
    os.set_blocking(wake_end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_end)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.close(report)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(127)
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if 0 in ready and not os.read(0, 1):
            os.killpg(0, signal.SIGKILL)
        if wake in ready:
            # a child that is stopped or goes on sends the signal, too
            os.read(wake, 512)
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
    found = {
        "status": os.waitstatus_to_exitcode(status),
        "cpu_time": usage.ru_utime + usage.ru_stime,
        # kilobytes but for macOS
        "peak_memory": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    os.write(report, json.dumps(found).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
