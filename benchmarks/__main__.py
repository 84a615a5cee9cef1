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
from dev.checkout import CHECKOUT, airflow_environment

MODULES = ("hour", "waiting", "burst", "memory", "growth", "rest")
PAGE = CHECKOUT / "docs/benchmarks.md"


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
        environment = airflow_environment(Path(home))
        os.environ.clear()
        os.environ.update(environment)
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


if __name__ == "__main__":
    sys.exit(main())
