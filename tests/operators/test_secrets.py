"""The API key is in no log, XCom, Variable, object, template or exception."""

from __future__ import annotations

import logging

import pytest

from tests.operators.conftest import API_KEY, Bench, RealAirflow, call, calls


class TestInAirflow:
    def test_the_key_is_nowhere_to_be_seen(
        self,
        bench: Bench,
        airflow: RealAirflow,
        logs: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        bench.start(*calls(2), call("x--echo-key"), call("y--redirect-away"), limit=3, period=4.0)
        bench.sandbox.list_faults.append("echo-key")
        run = airflow.test(f"Archive(task_id='archive', path={bench.path!r})")
        assert run.state == "failed"
        with create_session() as session:
            xcoms = [str(row.value) for row in session.query(XComModel).filter_by(dag_id=run.dag_id)]
            fields = [
                str(row.rendered_fields)
                for row in session.query(RenderedTaskInstanceFields).filter_by(dag_id=run.dag_id)
            ]
        assert xcoms
        assert fields
        seen = {
            "log": logs.text + "".join(str(record.__dict__) for record in logs.records),
            # Airflow 3.0 itself writes, at the debug level, what it is told to mask.
            "output": "\n".join(line for line in "".join(capfd.readouterr()).splitlines() if "MaskSecret(" not in line),
            "XComs": "".join(xcoms),
            "templates": "".join(fields),
            "Variables": str(airflow.variables()),
            "archive": "".join((bench.root / name).read_text("latin-1") for name in bench.files()),
        }
        assert "Done: " in seen["output"]
        assert [name for name, text in seen.items() if API_KEY in text] == []
        assert [entry.has_authorization for entry in bench.sandbox.away_requests()] == [False]


def test_the_key_is_in_no_exception(bench: Bench, logs: pytest.LogCaptureFixture) -> None:
    """Without Airflow, which would mask it."""
    bench.start(*calls(2), call("x--echo-key"), call("y--refuse", 1), timeout=1.0)
    error = bench.run().error
    chain: list[BaseException] = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert chain
    logging.getLogger(__name__).error("raised", exc_info=chain[0])
    texts = [repr(problem) + str(vars(problem)) for problem in chain]
    assert API_KEY not in "".join(texts) + logs.text
    assert API_KEY not in "".join(bench.sidecar(row).read_text() for row in [call("x--echo-key")])
    assert API_KEY not in repr(bench.operator().hook.settings)
