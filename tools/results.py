"""Print, as JSON, what the newest run of the example DAG has pushed and what its ledger says."""

from __future__ import annotations

import json
import sys
import time

from airflow.models.dagrun import DagRun
from airflow.models.variable import Variable
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_amplemarket.quota import VARIABLE_PREFIX, LedgerState, RateLimit


def main(dag_id: str, conn_id: str, requests: int, period: float) -> None:
    """Print the result, the summary, and how many permits the last period has seen."""
    with create_session() as session:
        newest = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.id.desc()).limit(1)
        run_id = session.scalar(newest)
        rows = session.scalars(select(XComModel).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id))
        values = {row.key: XComModel.deserialize_value(row) for row in rows}
    text = Variable.get(VARIABLE_PREFIX + conn_id, default_var=None)
    limit = RateLimit(requests, period)
    state = LedgerState.load(text).at(time.time(), limit=limit, horizon=period) if text else LedgerState()
    print(json.dumps({"result": values["return_value"], "summary": values["summary"], "spent": len(state.spent)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
