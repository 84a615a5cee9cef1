"""Print, as JSON, what the newest run of the example DAG has pushed, and how many permits the last period has seen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from airflow.models.dagrun import DagRun
from airflow.models.variable import Variable
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_amplemarket.archive.sidecar import Sidecar
from airflow_provider_amplemarket.quota.ledger import variable_name
from airflow_provider_amplemarket.quota.rate import LedgerState, RateLimit


def main(dag_id: str, conn_id: str, limit: RateLimit, archive: Path) -> None:
    """Print the result, the summary, and how many permits were spent."""
    with create_session() as session:
        newest = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.id.desc()).limit(1)
        run_id = session.scalar(newest)
        rows = session.scalars(select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id))
        values = {row.key: XComModel.deserialize_value(row) for row in rows}
    text = Variable.get(variable_name(conn_id), default_var=None)
    state = LedgerState.load(text) if text else LedgerState()
    spent = count_spent(state, archive, limit, conn_id=conn_id, now=time.time())
    print(json.dumps({"result": values["return_value"], "summary": values["summary"], "spent": spent}))


def count_spent(state: LedgerState, archive: Path, limit: RateLimit, *, conn_id: str, now: float) -> int:
    """Count the permits of the last period, by the ledger and the sidecars.

    The ledger alone does not know: it forgets what is over, and by a period that may have been shorter then.
    """
    by_sidecars = dict(request for sidecar in archive.rglob("*.json") for request in _requests(sidecar, conn_id))
    known = replace(state, spent=by_sidecars | dict(state.spent))
    return len(known.at(now, limit=limit, horizon=limit.period).spent)


def _requests(sidecar: Path, conn_id: str) -> Iterator[tuple[str, float]]:
    """Yield the permits that a sidecar has, and the timestamps that they count from."""
    try:
        record = json.loads(sidecar.read_text())
    except (OSError, ValueError):  # one that is being written
        return
    if isinstance(record, Mapping):
        requests = Sidecar.load(record).known_requests(conn_id)
        yield from ((permit, answered_at.timestamp()) for permit, answered_at in requests if permit)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], RateLimit(int(sys.argv[3]), float(sys.argv[4])), Path(sys.argv[5]))
