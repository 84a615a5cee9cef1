"""Processes of this machine: commands that come to an end, servers that run for a while, and their ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import NoReturn

from airflow_provider_amplemarket.sandbox.settings import SettingError
from dev.checkout import CHECKOUT

#: Where the Makefile puts the programs that do not come from PyPI.
TOOLS = CHECKOUT / ".stores"
#: Seconds that a command has to end after Ctrl-C.
GRACE = 20.0
#: Seconds that a server has to begin to listen.
PATIENCE = 120.0
#: So many lines of a log are shown when something failed.
TAIL = 40

Watch = Callable[[str], None]


class StepError(Exception):
    """A step did not work; the message is what the user needs to read."""


def exit_after(main: Callable[[], int]) -> NoReturn:
    """Run a program; a wrong setting (exit code 2) or a step that did not work (1) is told without a traceback."""
    try:
        sys.exit(main())
    except SettingError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except StepError as problem:
        print(problem)
        sys.exit(1)


def tail(text: str, lines: int = TAIL) -> str:
    """Return the end of a text."""
    return "\n".join(text.splitlines()[-lines:])


def run_command(
    command: Sequence[str], log: Path, *, env: Mapping[str, str], cwd: Path, watch: Watch | None = None
) -> str:
    """Run a command, add its output to a log, and return the output.

    :param watch: is called with every line of the output.
    :raises StepError: when the command fails; with the end of its output.
    """
    lines: list[str] = []
    with (
        log.open("a") as file,
        # A process group of its own: Ctrl-C reaches it once, and from here.
        subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process,
    ):

        def follow() -> None:
            for line in process.stdout or ():
                file.write(line)
                lines.append(line)
                if watch:
                    watch(line)

        try:
            follow()
        except BaseException:
            _interrupt(process, follow)
            raise
    output = "".join(lines)
    if process.returncode:
        raise StepError(f"{' '.join(command)} failed; the end of {log}:\n\n{tail(output)}")
    return output


def _interrupt(process: subprocess.Popen[str], follow: Callable[[], None]) -> None:
    """Let a command end by itself, but not for long; a second Ctrl-C ends it at once."""

    def kill() -> None:
        signal_group(process, signal.SIGKILL)

    signal_group(process, signal.SIGINT)
    timer = Timer(GRACE, kill)
    timer.start()
    with suppress(KeyboardInterrupt):
        follow()
        process.wait()
    timer.cancel()
    kill()
    process.wait()


def signal_group(process: subprocess.Popen[str] | subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process that leads a group, and to all in the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def run_server(
    command: Sequence[str], log: Path, port: int, *, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, which begins when something listens on its port.

    :param environment: variables that it has beside those of this process.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not is_listening(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not run: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def is_listening(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port(wished: int = 0) -> int:
    """Return the wished port of this machine, or another one where that is taken; 0 for any that is free."""
    for port in (wished, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("there is no free port")


def find_program(name: str) -> str | None:
    """Find a program beside this Python, in the folder of the stores, or on the path."""
    folders = [Path(sys.executable).parent, TOOLS / "node_modules" / ".bin"]
    return shutil.which(name, path=os.pathsep.join(map(str, folders))) or shutil.which(name)
