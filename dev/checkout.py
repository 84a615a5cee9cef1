"""The checkout, and the environment of an Airflow that belongs to it and not to the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def shown(path: Path) -> str:
    """Shorten a path below the checkout."""
    return str(path.relative_to(CHECKOUT)) if path.is_relative_to(CHECKOUT) else str(path)


def airflow_environment(
    home: Path, database: str | None = None, settings: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of a process with Airflow; it has nothing of another Airflow's.

    :param home: the folder for everything that Airflow writes.
    :param database: the URL of the metadata database, as SQLAlchemy takes it; None for a file of SQLite in the home.
    :param settings: further settings of Airflow, by section and name: ``CORE__PARALLELISM``.
    """
    others = ("AIRFLOW_", "AMPLEMARKET_")
    every = {
        "CORE__DAGS_FOLDER": str(home / "dags"),
        "CORE__LOAD_EXAMPLES": "False",
        "DATABASE__SQL_ALCHEMY_CONN": database or f"sqlite:///{home / 'airflow.db'}",
        **(settings or {}),
    }
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(others)},
        "AIRFLOW_HOME": str(home),
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **{f"AIRFLOW__{name}": value for name, value in every.items()},
    }
