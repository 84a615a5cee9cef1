"""How many requests are sent before a row of failures is noticed: so many as the limit says, however many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from airflow_provider_amplemarket.run.breaker import CircuitBreaker, Request


def now_or_never(breaker: CircuitBreaker) -> Request | None:
    """Enter without waiting."""
    answers = iter([True, False])
    return breaker.enter(lambda: next(answers))


def entered(breaker: CircuitBreaker, most: int = 100) -> list[Request]:
    """Enter as often as that is possible without waiting."""
    found: list[Request] = []
    while len(found) < most and (request := now_or_never(breaker)):
        found.append(request)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_amplemarket.run.breaker._LOOK", 0.001)


def test_no_more_are_unanswered_than_may_fail() -> None:
    breaker = CircuitBreaker({"outage": 10})
    assert len(entered(breaker)) == 10


def test_each_failure_takes_one_place_until_there_is_none() -> None:
    breaker = CircuitBreaker({"outage": 3})
    first, second, third = entered(breaker)
    assert not first.failed("outage")
    assert entered(breaker) == []
    assert not second.failed("outage")
    assert not breaker.is_open
    assert third.failed("outage")
    assert breaker.is_open
    assert entered(breaker) == []


def test_a_good_answer_frees_all_places() -> None:
    breaker = CircuitBreaker({"outage": 3})
    first, second, third = entered(breaker)
    first.failed("outage")
    second.failed("outage")
    third.succeeded("outage")
    assert len(entered(breaker)) == 3


def test_a_body_that_streams_is_answered() -> None:
    breaker = CircuitBreaker({"outage": 2})
    for _ in range(32):
        (request, *_) = entered(breaker, most=1)
        request.succeeded("outage")


def test_each_kind_of_a_request_is_decided_once() -> None:
    breaker = CircuitBreaker({"outage": 2})
    request, _ = entered(breaker)
    request.succeeded("outage")
    request.succeeded("outage")
    assert not request.failed("outage")
    request.decided()
    assert len(entered(breaker)) == 1


def test_a_request_holds_its_place_until_its_last_step_is_decided() -> None:
    breaker = CircuitBreaker({"outage": 10, "archive": 3})
    requests = entered(breaker)
    assert len(requests) == 3
    for request in requests:
        request.succeeded("outage")
    assert entered(breaker) == []
    requests[0].failed("archive")
    assert entered(breaker) == []
    requests[1].succeeded("archive")
    assert len(entered(breaker)) == 2


def test_what_is_not_decided_any_more_holds_no_place() -> None:
    breaker = CircuitBreaker({"outage": 3, "archive": 2})
    request, _ = entered(breaker)
    request.cleared("outage")
    assert len(entered(breaker)) == 0
    request.decided()
    assert len(entered(breaker)) == 1


def test_what_was_decided_long_ago_ends_no_row() -> None:
    """A body that streams on while others are refused."""
    breaker = CircuitBreaker({"outage": 3, "key": 3}, trusting=["key"])
    stream = entered(breaker, most=1)[0]
    stream.succeeded("outage", "key")
    first, second = entered(breaker, most=2)
    assert not first.failed("outage")
    assert not second.failed("key")
    stream.cleared("outage")
    stream.succeeded("outage", "key")
    second.decided()
    assert len(entered(breaker)) == 1


def test_kinds_are_counted_apart_and_any_of_them_opens() -> None:
    breaker = CircuitBreaker({"outage": 5, "key": 2})
    first, second = entered(breaker)
    first.failed("outage")
    first.decided()
    assert not second.failed("key")
    second.cleared("outage")  # it was an answer
    (third,) = entered(breaker)
    assert third.failed("key")
    assert breaker.is_open


def test_trusting_kinds_leave_the_others_alone_after_a_good_answer_until_one_fails() -> None:
    breaker = CircuitBreaker({"outage": 10, "key": 3}, trusting=["key"])
    first, *others = entered(breaker)
    assert len(others) == 2
    first.succeeded("outage", "key")
    more = entered(breaker)
    assert len(more) == 8
    assert not more[0].failed("key")
    assert entered(breaker) == []
    assert not more[1].failed("key")
    assert more[2].failed("key")


def test_opened_by_hand_it_lets_nothing_through_and_wakes_those_that_wait() -> None:
    breaker = CircuitBreaker({"outage": 1})
    assert now_or_never(breaker)
    found: list[Request | None] = []
    waiting = threading.Thread(target=lambda: found.append(breaker.enter(lambda: True)))
    waiting.start()
    breaker.open()
    waiting.join(10)
    assert found == [None]


def test_one_that_waits_gives_up_when_it_is_not_wanted_any_more() -> None:
    breaker = CircuitBreaker({"outage": 1})
    assert now_or_never(breaker)
    deadline = time.monotonic() + 0.05
    assert breaker.enter(lambda: time.monotonic() < deadline) is None


def ask(threads: int, answer: Callable[[int], bool], requests: int = 500, served: list[int] | None = None) -> int:
    """Let threads send requests until the circuit is open; return how many were sent, and note which were served."""
    breaker = CircuitBreaker({"outage": 10})
    sent: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        while len(sent) < requests and (request := breaker.enter(lambda: True)):
            with lock:
                sent.append(0)
                number = len(sent)
            time.sleep(Random(number).uniform(0, 0.002))
            if answer(number):
                request.succeeded("outage")
                if served is not None:
                    served.append(number)
            else:
                request.failed("outage")

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(30)
    assert not any(thread.is_alive() for thread in crew)
    return len(sent)


@pytest.mark.parametrize("threads", [1, 4, 16, 32, 64])
def test_ten_failures_are_ten_requests_whatever_the_number_of_threads(threads: int) -> None:
    assert ask(threads, lambda number: False) == 10


@pytest.mark.parametrize("threads", [1, 16, 64])
def test_ten_failures_after_the_last_good_answer_are_ten(threads: int) -> None:
    served: list[int] = []

    def answer(number: int) -> bool:
        is_good = number <= 50
        deadline = time.monotonic() + 60
        while not is_good and len(served) < 50 and time.monotonic() < deadline:
            time.sleep(0.001)
        return is_good

    assert ask(threads, answer, served=served) == 60


@pytest.mark.parametrize("threads", [4, 64])
def test_single_failures_open_nothing(threads: int) -> None:
    assert ask(threads, lambda number: number % 3 > 0) >= 500
