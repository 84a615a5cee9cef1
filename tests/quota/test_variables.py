"""Airflow's Variables, as the ledger is kept in them: what is not there, and what merely does not answer."""

from __future__ import annotations

import airflow
import pytest
from airflow.models import Variable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from packaging.version import Version

from airflow_provider_amplemarket.exceptions import AmplemarketError, LedgerError
from airflow_provider_amplemarket.quota import variables
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import RateLimit
from airflow_provider_amplemarket.quota.variables import Pause, RetryingStore, VariableStore
from dev.memory import MemoryStore
from tests.quota.tools import KEY, acquire


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


class TeamStore:
    """The Variables as the API server gives them to the tasks of one team, and takes them."""

    def __init__(self, team: str) -> None:
        self.team = team

    def get(self, key: str) -> str | None:
        try:
            return str(Variable.get(key, team_name=self.team))
        except KeyError:
            return None

    def set(self, key: str, text: str) -> None:
        Variable.set(key, text, team_name=self.team)


@pytest.mark.usefixtures("airflow_db")
@pytest.mark.skipif(Version(airflow.__version__) < Version("3.3"), reason="before, a team takes over what it writes")
def test_what_belongs_to_another_team_is_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.models.team import Team
    from airflow.utils.session import create_session

    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", "True")
    with create_session() as session:
        session.add_all([Team(name="sales"), Team(name="support")])
    waits: list[float] = []

    def open_ledger(team: str) -> Ledger:
        limit = RateLimit(5, 3600)
        return Ledger(conn_id="teams", limit=limit, response_timeout=1, store=TeamStore(team), sleep=waits.append)

    assert len(acquire(open_ledger("sales"), 3)) == 3
    with pytest.raises(LedgerError, match=r"amplemarket_quota__teams.* belong to the team .* take the team off"):
        acquire(open_ledger("support"), 3)
    assert sum(waits) < 60
    # The first team has lost nothing, and the cure is one.
    assert len(acquire(open_ledger("sales"), 1)) == 1
    with create_session() as session:
        session.query(Variable).filter(Variable.key.startswith("amplemarket_quota__teams")).update({"team_name": None})
    assert len(acquire(open_ledger("support"), 3)) == 1
    assert acquire(open_ledger("sales"), 1) == []


@pytest.mark.parametrize("is_multi_team", [False, True])
def test_a_missing_ledger_is_no_news_but_where_teams_may_take_it_away(
    is_multi_team: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MULTI_TEAM", str(is_multi_team))
    limit = RateLimit(5, 3600)
    ledger = Ledger(conn_id="teams", limit=limit, response_timeout=1, store=MemoryStore(), sleep=lambda seconds: None)
    acquire(ledger, 1)
    assert ("multi-team" in caplog.text) is is_multi_team


def test_a_pause_ends_when_the_task_is_told_to_stop() -> None:
    slept: list[float] = []
    Pause(slept.append)(2.5)
    assert slept == [1.0, 1.0, 0.5]
    Pause(slept.append)(-1)
    with pytest.raises(AmplemarketError, match="told to stop"):
        Pause(slept.append, lambda: len(slept) == 5)(100)
    assert len(slept) == 5


@pytest.mark.parametrize(
    ("seconds", "failures", "is_quick"), [(0.9, 0, True), (1.1, 0, False), (0.1, 1, False)], ids=str
)
def test_a_write_is_quick_that_was_sent_once_and_took_less_than_a_second(
    seconds: float, failures: int, is_quick: bool
) -> None:
    now = 0.0
    memory = MemoryStore(faults=["fails late"] * failures)

    def be_slow() -> None:
        nonlocal now
        now += seconds

    memory.before("set vendor", be_slow)
    store = RetryingStore(store=memory, proof="proof", pause=lambda seconds: None, monotonic=lambda: now)
    assert store.set(KEY, "text") is is_quick
    assert memory.accesses == ["set vendor"] * (failures + 1)
    memory.faults.append("fails")
    assert store.glance(KEY) is None
