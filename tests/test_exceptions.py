"""The tree of errors is what its users may rely on."""

from __future__ import annotations

import inspect
import pickle

import pytest

from airflow_provider_amplemarket import exceptions
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConfigurationError,
    AmplemarketConnectionError,
    AmplemarketError,
    ArchiveError,
    ArchiveIncompleteError,
    AuthenticationError,
    ConnectionNotDefinedError,
    InvalidRecordingError,
    LedgerBusyError,
    LedgerError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
    RequestAbortedError,
)

PARENTS = {
    AmplemarketError: Exception,
    AmplemarketConfigurationError: AmplemarketError,
    ConnectionNotDefinedError: AmplemarketConfigurationError,
    AmplemarketAPIError: AmplemarketError,
    AmplemarketConnectionError: AmplemarketAPIError,
    AuthenticationError: AmplemarketAPIError,
    RecordingForbiddenError: AmplemarketAPIError,
    RecordingNotFoundError: AmplemarketAPIError,
    RecordingTooLargeError: AmplemarketAPIError,
    RateLimitExceededError: AmplemarketAPIError,
    RequestAbortedError: AmplemarketError,
    InvalidRecordingError: AmplemarketError,
    LedgerError: AmplemarketError,
    LedgerBusyError: LedgerError,
    ArchiveError: AmplemarketError,
    ArchiveIncompleteError: AmplemarketError,
}


def test_the_tree_is_what_it_is_said_to_be() -> None:
    found = {
        error: error.__bases__[0]
        for _, error in inspect.getmembers(exceptions, inspect.isclass)
        if error.__module__ == exceptions.__name__
    }
    assert found == PARENTS


@pytest.mark.parametrize("error", PARENTS, ids=lambda error: error.__name__)
def test_the_drawing_has_every_error(error: type[AmplemarketError]) -> None:
    assert f" {error.__name__} " in f"{exceptions.__doc__} ".replace("\n", " ")


def test_a_wrong_setting_is_a_wrong_value_too() -> None:
    assert issubclass(AmplemarketConfigurationError, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        AmplemarketAPIError,
        AmplemarketConnectionError,
        AuthenticationError,
        RecordingForbiddenError,
        RecordingNotFoundError,
        RecordingTooLargeError,
    ],
)
def test_an_error_of_the_api_keeps_what_the_api_said(error: type[AmplemarketAPIError]) -> None:
    told = error("GET /calls returned 418", status=418, code="teapot", title="I'm a teapot", detail="Short and stout")
    assert str(told) == "GET /calls returned 418"
    assert (told.status, told.code, told.title, told.detail) == (418, "teapot", "I'm a teapot", "Short and stout")


def test_an_error_of_the_api_may_know_no_more_than_its_message() -> None:
    told = AmplemarketAPIError("no response")
    assert (told.status, told.code, told.title, told.detail) == (None, None, None, None)


@pytest.mark.parametrize("retry_after", [None, 0.0, 12.5])
def test_an_exceeded_limit_knows_how_long_to_wait(retry_after: float | None) -> None:
    told = RateLimitExceededError("slow down", retry_after=retry_after, code="a", title="b", detail="c")
    assert told.retry_after == retry_after
    assert (told.status, told.code, told.title, told.detail) == (429, "a", "b", "c")


@pytest.mark.parametrize("error", PARENTS, ids=lambda error: error.__name__)
def test_an_error_can_be_sent_to_another_process(error: type[AmplemarketError]) -> None:
    told = error("what happened")
    if isinstance(told, RateLimitExceededError):
        told.retry_after = 7.0
    if isinstance(told, LedgerBusyError):
        told.until = 1_800_000_000.0
    again = pickle.loads(pickle.dumps(told))
    assert type(again) is error
    assert str(again) == "what happened"
    assert vars(again) == vars(told)


def test_no_response_and_an_error_of_the_server_may_be_an_outage() -> None:
    assert AmplemarketConnectionError("cut").is_outage
    assert AmplemarketAPIError("503", status=503).is_outage
    assert not AmplemarketAPIError("404", status=404).is_outage
    assert not AmplemarketAPIError("garbled").is_outage
