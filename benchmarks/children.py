"""Processes whose work is measured, each with an Airflow of its own that has no scheduler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dev.checkout import airflow_environment

Figures = dict[str, float]


class ChildError(Exception):
    """A process failed; the message has the end of its output."""


def tasks(kind: str, options: Mapping[str, Any], connections: Mapping[str, str]) -> list[Figures]:
    """
    Run tasks in a process of their own; see ``benchmarks.task``.

    :param connections: Airflow connections by id.
    :return: what was measured of each.
    """
    with airflow_home() as variables:
        variables |= {f"AIRFLOW_CONN_{conn_id.upper()}": text for conn_id, text in connections.items()}
        output = run([sys.executable, "-m", "benchmarks.task", kind, json.dumps(options)], variables)
    figures: list[Figures] = json.loads(output.splitlines()[-1])
    return figures


def run(
    command: Sequence[str],
    variables: Mapping[str, str] | None = None,
    *,
    text: str | None = None,
    folder: Path | None = None,
) -> str:
    """
    Run a command.

    :param variables: what it has beside this process's environment, or instead.
    :param text: its input.
    :param folder: where it is run.
    :return: its output.
    """
    environment = os.environ | (variables or {})
    done = subprocess.run(command, env=environment, input=text, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ChildError(f"{command[:4]} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@contextmanager
def airflow_home() -> Iterator[dict[str, str]]:
    """Give the environment of an Airflow of one's own, with an empty database."""
    with tempfile.TemporaryDirectory(prefix="amplemarket-benchmark-") as name:
        home = Path(name)
        (home / "dags").mkdir()
        shutil.copy(_template(), home / "airflow.db")
        yield airflow_environment(home)


@cache
def _template() -> Path:
    """Make a database once, beside the home of the whole run, which is removed at its end."""
    home = Path(os.environ["AIRFLOW_HOME"]) / "template"
    home.mkdir(parents=True)
    run([sys.executable, "-m", "airflow", "db", "migrate"], airflow_environment(home))
    return home / "airflow.db"
