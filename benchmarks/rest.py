"""
What the provider costs where it does nothing. Imports are timed in fresh interpreters, from nothing and after
``airflow.sdk``, the two modules by turns. The DAG with 50 operators is read by Airflow's own DagBag in a fresh process:
the first time with the import of the operator, the second time without. Wheels are built, or taken from what is
installed: the size of all files that the package's record names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from statistics import median

from benchmarks import children
from benchmarks.table import Row
from dev.checkout import CHECKOUT

OURS = "airflow_provider_amplemarket.operators.recording"
PEER = "airflow.providers.http.operators.http"
PEER_NAME = "HttpOperator"
TIMES = 5
OPERATORS = 50

_IMPORT = """
import sys, time
for name in sys.argv[2:]:
    __import__(name)
began = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - began)
"""

_PARSE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
figures = []
for _ in range(2):
    began = time.perf_counter()
    bag = DagBag(dag_folder=sys.argv[1])
    figures.append(time.perf_counter() - began)
    (dag,) = bag.dags.values()
    assert len(dag.tasks) == int(sys.argv[2]), bag.import_errors
print(json.dumps(figures))
"""

_DAG = """
from datetime import datetime

from airflow.sdk import DAG
from {module} import {operator}

with DAG("many", schedule=None, start_date=datetime(2026, 1, 1)):
    for number in range({count}):
        {operator}(task_id=f"task_{{number}}", {argument})
"""


def run() -> list[Row]:
    """Measure imports, parsing and sizes."""
    return [*_imports(), *_parsing(), _size()]


def _imports() -> list[Row]:
    rows = []
    for before, words in (([], "from nothing"), (["airflow.sdk"], "after airflow.sdk")):
        figures: dict[str, list[float]] = {OURS: [], PEER: []}
        with children.airflow_home() as variables:
            for _ in range(TIMES):
                for module, seconds in figures.items():
                    command = [sys.executable, "-c", _IMPORT, module, *before]
                    seconds.append(float(children.run(command, variables).splitlines()[-1]))
        ours, peer = median(figures[OURS]), median(figures[PEER])
        rows.append(_row(f"Import of the operator's module, {words}", ours, peer))
    return rows


def _parsing() -> list[Row]:
    dags = {
        OURS: _DAG.format(
            module=OURS,
            operator="AmplemarketRecordingOperator",
            count=OPERATORS,
            argument='path="s3://aws_default@bucket/recordings"',
        ),
        PEER: _DAG.format(module=PEER, operator="HttpOperator", count=OPERATORS, argument='endpoint="calls"'),
    }
    figures: dict[str, list[list[float]]] = {OURS: [], PEER: []}
    with children.airflow_home() as variables, tempfile.TemporaryDirectory(prefix="amplemarket-rest-") as name:
        for _ in range(TIMES):
            for module, text in dags.items():
                file = Path(name) / f"{module}.py"
                file.write_text(text)
                command = [sys.executable, "-c", _PARSE, str(file), str(OPERATORS)]
                figures[module].append(json.loads(children.run(command, variables).splitlines()[-1]))
    rows = []
    for place, words in enumerate(("with the import", "without the import")):
        ours, peer = (median(each[place] for each in figures[module]) for module in (OURS, PEER))
        rows.append(_row(f"Reading a DAG of {OPERATORS} operators, {words}", ours, peer))
    return rows


def _row(measured: str, ours: float, peer: float) -> Row:
    return Row(measured, f"{1000 * ours:.0f} ms", {PEER_NAME: f"{1000 * peer:.0f} ms"}, f"{ours / peer:.2f}", "", None)


def _size() -> Row:
    """Compare our wheel, unpacked, with the installed provider for HTTP."""
    with tempfile.TemporaryDirectory(prefix="amplemarket-rest-") as name:
        children.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", name], folder=CHECKOUT)
        (wheel,) = Path(name).glob("*.whl")
        packed = wheel.stat().st_size
        target = Path(name) / "unpacked"
        children.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(target)])
        ours = sum(path.stat().st_size for path in target.rglob("*.py"))
    peer = sum(
        file.size or 0
        for file in distribution("apache-airflow-providers-http").files or ()
        if file.suffix == ".py" and ".." not in file.parts
    )
    return Row(
        "Size of the Python files",
        f"{ours / 1024:.0f} KiB",
        {"provider for HTTP": f"{peer / 1024:.0f} KiB"},
        f"{ours / peer:.2f}",
        "",
        None,
        f"our wheel has {packed / 1024:.0f} KiB",
    )
