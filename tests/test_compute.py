"""What is seen of the work."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty")

CODE = """
import fcntl, logging, os, signal, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
wait, go = os.pipe()
child = os.fork()
if child:
    # the session's leader, in the foreground, as a shell would be
    if BACKGROUND:
        os.setpgid(child, child)
        settings = termios.tcgetattr(2)
        settings[3] |= termios.TOSTOP
        termios.tcsetattr(2, termios.TCSANOW, settings)
    os.write(go, b"x")
    status = os.waitpid(child, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        os.killpg(child, signal.SIGKILL)
        os._exit(os.WSTOPSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))
os.read(wait, 1)
from musedask.compute import Progress
log = logging.getLogger("musedask")
log.setLevel(logging.INFO)
with Progress("counting", 3) as progress:
    for _ in range(3):
        progress.advance()
os._exit(0)
"""


@pytest.mark.parametrize("background", [False, True])
def test_a_bar_is_drawn_in_the_foreground_only(background):
    """In the background it would spoil what is typed, or stop the work where the terminal is set so."""
    terminal, other_end = pty.openpty()
    leader = subprocess.Popen(
        [sys.executable, "-c", f"BACKGROUND = {background}\n{CODE}"],
        stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True,
    )  # fmt: skip
    os.close(other_end)
    shown = b""
    # the error tells that the other end was closed
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    assert leader.wait(10) == 0, shown
    assert (b"counting" in shown) is not background
