"""Airflow's Variables, as the ledger is kept in them: what is not there, and what merely does not answer."""

from __future__ import annotations

import pytest
from airflow.models import Variable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_provider_amplemarket import variables
from airflow_provider_amplemarket.variables import VariableStore

KEY = "amplemarket_quota__vendor"


class FailingVariable:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def get(self, key: str) -> str:
        raise self.error


NOT_FOUND = {
    "Airflow 2": KeyError("Variable does not exist"),
    "Airflow 3": AirflowRuntimeError(ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND)),
}


@pytest.mark.parametrize("error", NOT_FOUND.values(), ids=NOT_FOUND.keys())
def test_not_found_is_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "Variable", FailingVariable(error))
    assert VariableStore().get(KEY) is None


@pytest.mark.parametrize(
    "error",
    [
        *(AirflowRuntimeError(ErrorResponse(error=kind)) for kind in ErrorType if kind.name != "VARIABLE_NOT_FOUND"),
        OSError("no API server"),
    ],
    ids=str,
)
def test_any_other_error_is_not_taken_for_not_found(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "Variable", FailingVariable(error))
    with pytest.raises(type(error)) as caught:
        VariableStore().get(KEY)
    assert caught.value is error


@pytest.mark.usefixtures("airflow_db")
def test_a_variable_keeps_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "Variable", Variable)  # the one that works outside of a task
    store = VariableStore()
    assert store.get("kept") is None
    for text in ("one", "two"):
        store.set("kept", text)
        assert store.get("kept") == Variable.get("kept") == text
