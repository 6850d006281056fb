"""The engine esorex: a recipe of the reference pipeline as a child process.

esorex writes into its working directory, names files by itself and heeds the settings of its user.  Each call gets
a folder of its own, every setting and every parameter of the recipe as an option, and nothing of what it made leaves
that folder before its exit status and its products have been checked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError, RecipeError
from ..io.fingerprint import check_complete
from ..io.sof import Frame
from ..recipe import Recipe
from ..recipes import DRS_VERSION
from .child import Ended, run_child
from .names import tag_of

#: how to get what is missing
INSTALL = "on Debian and Ubuntu: apt-get install esorex cpl-plugin-muse"

#: settings that decide where files go and what they are called, whatever esorex.rc and the environment say
_SETTINGS = {
    "output-dir": ".",
    "log-dir": ".",
    "log-file": "esorex.log",
    "log-level": "info",
    "msg-level": "info",
    "suppress-prefix": "TRUE",
    "suppress-link": "TRUE",
    "output-readonly": "FALSE",
    "no-checksum": "FALSE",
    "no-datamd5": "FALSE",
    "check-sof-exist": "TRUE",
    "mem-check": "FALSE",
    "products-sof": "products.json",
}
#: variables of esorex that stay: where its recipes are
_KEPT = ("ESOREX_PLUGIN_DIR", "ESOREX_CONFIG")
_LINE = re.compile(r"^(?:\d\d:\d\d:\d\d )?\[\s*(\w+)\s*\] ([\w.-]*): (?:\[tid=\d+\] )?(.*)$")
#: messages that say nothing about the call
_HARMLESS = re.compile(r"^(Unable to open directory|Writing of output sof omitted due to previous errors)")
_EMPTY_ERROR = re.compile(
    r"^(Dumping the \d+ most recent|\s*\[\d+/\d+\] |Found \d+ error\(s\)|Execution of recipe .* failed)"
)
#: most messages of a kind that are kept
_MANY = 200


@dataclass(frozen=True)
class Installation:
    """esorex and the pipeline that it finds.

    Attributes
    ----------
    executable : str
        Absolute.
    versions : dict of str to str
        Of ``esorex``, ``cpl`` and ``drs``, as far as they could be found out.
    warning : str
        What is to be said about them, may be empty.
    """

    executable: str
    versions: Mapping[str, str]
    warning: str = ""


@lru_cache(maxsize=64)
def find_installation(executable: str, recipe: str) -> Installation:
    """Find esorex and ask it for a recipe.

    Parameters
    ----------
    executable : str
        Name or path of esorex.
    recipe : str

    Raises
    ------
    RecipeError
        If there is no esorex, it does not run, or has no such recipe.
    """
    path = shutil.which(executable)
    if path is None:
        raise RecipeError(f"{executable}: no such program; the engine esorex needs it, {INSTALL}")
    path = os.path.abspath(path)
    about = _ask(path, "--version")
    esorex = re.search(r"EsoRex\D*?(\d+(?:\.\d+)+)|Execution Tool, version (\d+(?:\.\d+)+)", about.stdout)
    cpl = re.search(r"\bCPL = (\S+?)[,\s]", about.stdout + " ")
    if about.returncode or esorex is None:
        raise RecipeError(f"{path} --version: exit status {about.returncode}, is that esorex? {INSTALL}")
    page = _ask(path, "--man-page", recipe)
    if page.returncode:
        raise RecipeError(
            f"{path} has no recipe {recipe}; the MUSE pipeline is not installed, or not where esorex looks for it "
            f"(--recipe-dir, ESOREX_PLUGIN_DIR); {INSTALL}"
        )
    drs = re.search(rf"^\s*{recipe} -- version (\S+)", page.stdout, re.MULTILINE)
    versions = {
        "esorex": esorex[1] or esorex[2],
        **({"cpl": cpl[1]} if cpl else {}),
        **({"drs": drs[1]} if drs else {}),
    }
    found = versions.get("drs", "unknown")
    warning = ""
    if found != DRS_VERSION:
        warning = f"MUSE pipeline {found} found at {path}; its recipes are declared here as of {DRS_VERSION}"
    return Installation(path, versions, warning)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, stdin=subprocess.DEVNULL,
            env=child_environment(1), cwd="/",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecipeError(f"{command[0]}: cannot be run: {error}; {INSTALL}") from error


def child_environment(threads: int) -> dict[str, str]:
    """Environment of esorex: that of this process, without what would change its products' names and places."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("ESOREX_") or k in _KEPT}
    # numbers have a point in any country
    env["LC_ALL"] = "C"
    env["OMP_NUM_THREADS"] = str(threads)
    return env


def deciding_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that matter to a recipe of the reference."""
    return {k: env[k] for k in sorted(env) if k.startswith(("MUSE_", "OMP_", "ESOREX_", "CPL_"))}


def command_line(executable: str, recipe: Recipe, values: Mapping[str, Any], sof: str) -> list[str]:
    """Command of a call: every setting and every parameter is given, so that no default of the user's counts.

    Parameters
    ----------
    executable : str
    recipe : Recipe
    values : mapping of str to object
        All parameters.
    sof : str
        Set of frames.
    """
    settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
    options = [p.to_option(values[p.name]) for p in recipe.parameters]
    return [executable, *settings, recipe.name, *options, sof]


def write_frames(folder: Path, frames: Sequence[Frame]) -> Path:
    """Write the set of frames of a call; paths that such a file cannot hold get a link in the folder."""
    lines = []
    for number, frame in enumerate(frames, 1):
        path = frame.path.absolute()
        if re.search(r"[\s$#]", os.fspath(path)):
            place = folder / "inputs" / str(number)
            place.mkdir(parents=True)
            link = place / re.sub(r"[\s$#]", "_", path.name)
            link.symlink_to(path)
            path = link.relative_to(folder)
        lines.append(f"{path} {frame.tag}\n")
    sof = folder / "frames.sof"
    sof.write_text("".join(lines))
    return sof


class Messages:
    """Collects what esorex says.

    Attributes
    ----------
    warnings, errors : dict of str to int
        Messages and how often each came.
    lines : list of str
        The last ones of all.
    """

    def __init__(self) -> None:
        self.warnings: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Take a line of output."""
        self.lines.append(line)
        if len(self.lines) > 20 * _MANY:
            del self.lines[: 10 * _MANY]
        match = _LINE.match(line)
        if not match or _HARMLESS.match(match[3]):
            return
        kind = {"WARNING": self.warnings, "ERROR": self.errors}.get(match[1])
        if kind is not None and (match[3] in kind or len(kind) < _MANY):
            kind[match[3]] = kind.get(match[3], 0) + 1

    def reasons(self, most: int = 3) -> list[str]:
        """The last errors that say something."""
        telling = [e for e in self.errors if not _EMPTY_ERROR.match(e)]
        return [e.strip() for e in (telling or [e for e in self.errors if "[" in e] or list(self.errors))[-most:]]

    def all_warnings(self) -> list[str]:
        """Warnings, each once, with their number."""
        return [w if n == 1 else f"{w} ({n} times)" for w, n in self.warnings.items()]


@dataclass
class Outcome:
    """What a call of esorex left.

    Attributes
    ----------
    products : list of Frame
        Complete files in the folder of the call.
    ended : Ended
    status : str
        As in `musedask.calib.provenance.CallRecord`.
    errors, warnings : list of str
    """

    products: list[Frame]
    ended: Ended
    status: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run_esorex(
    recipe: Recipe,
    values: Mapping[str, Any],
    command: Sequence[str],
    folder: Path,
    *,
    threads: int = 1,
    timeout: float | None = None,
    cancelled: Callable[[], bool] = bool,
    log: Path | None = None,
) -> Outcome:
    """Run a prepared command in its folder and see what it left there.

    Parameters
    ----------
    recipe : Recipe
    values : mapping of str to object
    command : sequence of str
        See `command_line`.
    folder : Path
        Working directory, with the set of frames in it and nothing else.
    threads : int
    timeout : float, optional
        [s]
    cancelled : callable
    log : Path, optional
        Where the log of esorex goes.

    Returns
    -------
    Outcome
    """
    messages = Messages()
    try:
        ended = run_child(
            command, cwd=folder, env=child_environment(threads), on_line=messages.add, timeout=timeout,
            cancelled=cancelled,
        )  # fmt: skip
    finally:
        if log is not None:
            _keep_log(folder, messages, log)
    warnings = messages.all_warnings()
    if ended.stopped == "timeout":
        return Outcome([], ended, "timeout", [f"took longer than {timeout:g} s and was ended"], warnings)
    if ended.stopped:
        return Outcome([], ended, "cancelled", ["was ended before it was done"], warnings)
    if ended.status < 0:
        return Outcome([], ended, "failed", [_signal_text(-ended.status), *messages.reasons()], warnings)
    products, broken = _products(recipe, folder)
    errors = []
    if ended.status:
        errors = messages.reasons() or [line for line in messages.lines if line.strip()][-1:]
        errors.append(f"esorex ended with status {ended.status}")
        if shutil.disk_usage(folder).free < 1 << 20:
            errors.insert(0, f"no space left on the disk of {folder.parent}")
    else:
        errors += broken
        found = {p.tag for p in products}
        missing = [p.tag for p in recipe.products if p.expected(values) and p.tag not in found]
        if missing or not products:
            what = ", ".join(missing) or "product"
            errors = [f"esorex ended with status 0, but there is no {what}", *messages.reasons(), *errors]
    return Outcome(products, ended, "failed" if errors else "done", errors, warnings)


def _keep_log(folder: Path, messages: Messages, log: Path) -> None:
    """Move the log to its place; without one, or without an end, what was printed has to do."""
    for name in ("esorex.log", ".logfile"):
        if (folder / name).is_file() and (folder / name).stat().st_size:
            text = (folder / name).read_text(errors="replace")
            break
    else:
        text = ""
    others = [line for line in messages.lines if line.strip() and not _LINE.match(line) and "*****" not in line]
    if name != "esorex.log" or not text:
        others = messages.lines
    if others:
        text += "\nPrinted by esorex:\n" + "\n".join(others) + "\n"
    try:
        log.write_text(text)
    except OSError:
        # a full disk; the messages are in the record
        log.unlink(missing_ok=True)


def _signal_text(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = {
        signal.SIGKILL: "the system does that when memory runs out",
        signal.SIGSEGV: "a fault of the pipeline",
        signal.SIGABRT: "a fault of the pipeline",
        signal.SIGBUS: "a fault of the pipeline or of the disk",
    }.get(number)  # type: ignore[call-overload]
    return f"esorex was killed by {name}" + (f"; {hint}" if hint else "")


def _products(recipe: Recipe, folder: Path) -> tuple[list[Frame], list[str]]:
    """Complete products in a folder, and what is wrong with others."""
    listed: dict[str, str] = {}
    try:
        for entry in json.loads((folder / "products.json").read_text()):
            listed[os.path.basename(entry["name"])] = entry["category"]
    except (OSError, ValueError, KeyError, TypeError):
        # it is not written after an error, though there may be products
        for path in sorted(folder.glob("*.fits")):
            tag = tag_of(path.name, recipe)
            if tag is not None:
                listed[path.name] = tag
    products, broken = [], []
    for name, tag in listed.items():
        path = folder / name
        try:
            check_complete(path, checksums=True)
            products.append(Frame(path, tag))
        except FileNotFoundError:
            broken.append(f"{name} is listed as a product, but not there")
        except InputError as error:
            broken.append(str(error).replace(os.fspath(path), name))
    return products, broken
