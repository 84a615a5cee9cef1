"""Run the benchmarks: ``python -m benchmarks [names …]``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.table import Row, markdown, terminal

MODULES = ("hour", "waiting", "burst", "memory", "growth", "rest")
PAGE = Path(__file__).parent.parent / "docs/benchmarks.md"


def main() -> int:
    """Run what is named, or all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODULES)}; all of them by default")
    parser.add_argument("--output", type=Path, help=f"where to write the table; {PAGE.name} when all are run")
    options = parser.parse_args()
    # So that servers end and folders are removed, as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if unknown := set(options.names) - set(MODULES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    names = [name for name in MODULES if name in options.names or not options.names]
    output = options.output or (PAGE if len(names) == len(MODULES) else None)
    rows: list[Row] = []
    methods: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="amplemarket-benchmarks-") as home:
        # Airflow makes itself at home as soon as it is imported; not in the user's.
        os.environ.update(_settings(Path(home)))
        for name in names:
            module = importlib.import_module(f"benchmarks.{name}")
            began = time.monotonic()
            measured = module.run()
            print(f"==== {name}, {time.monotonic() - began:.0f} s\n\n{terminal(measured)}", flush=True)
            rows += measured
            methods[name] = inspect.cleandoc(module.__doc__ or "")
    if output:
        command = "make bench" if output == PAGE else f"python -m benchmarks {' '.join(names)}"
        output.write_text(markdown(rows, methods, command))
        print(f"Written to {output.name}")
    return 0


def _settings(home: Path) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith(("AIRFLOW_", "AMPLEMARKET_"))]:
        del os.environ[name]
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


if __name__ == "__main__":
    sys.exit(main())
