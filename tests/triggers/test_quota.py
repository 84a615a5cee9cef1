"""The trigger waits for a moment, whatever the clock does meanwhile, and says so in one line."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_amplemarket.triggers import quota
from airflow_provider_amplemarket.triggers.quota import LONGEST_SLEEP, QuotaTrigger

REASON = "12 of 20 archived, 8 left. The quota of 50 in 3600 s is used up"


async def fire(trigger: QuotaTrigger) -> list[Any]:
    return [event.payload async for event in trigger.run()]


class Machine:
    """A clock, and sleep that takes as long as it should, or what else is told.

    :param steps: How much the clock goes on in one sleep after the other, whatever was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: dict[int, float] | None = None) -> None:
        self.now = 1_800_000_000.0
        self.sleeps: list[float] = []
        self._steps = steps or {}
        monkeypatch.setattr(quota, "time", SimpleNamespace(time=lambda: self.now))
        monkeypatch.setattr(quota, "asyncio", SimpleNamespace(sleep=self._sleep))

    async def _sleep(self, seconds: float) -> None:
        self.now += self._steps.get(len(self.sleeps), seconds)
        self.sleeps.append(seconds)


def test_it_can_be_made_again_elsewhere() -> None:
    path, arguments = QuotaTrigger(1_800_000_000.5, REASON).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    assert isinstance(again, QuotaTrigger)
    assert (again.until, again.reason) == (1_800_000_000.5, REASON)
    assert again.fires_at == datetime(2027, 1, 15, 8, 0, 0, 500_000, tzinfo=UTC)


def test_it_logs_one_line_and_fires_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quota, "LONGEST_SLEEP", 0.02)
    caplog.set_level(logging.INFO)
    until = time.time() + 1.5
    trigger = QuotaTrigger(until, REASON)
    (payload,) = asyncio.run(fire(trigger))
    assert time.time() >= until
    assert datetime.fromisoformat(payload) == trigger.fires_at.replace(microsecond=0)
    # Airflow before 3.2 logs by the standard library, which may show it, too; newer ones to the standard output.
    told = [record.getMessage() for record in caplog.records] or capsys.readouterr().out.splitlines()
    assert len(told) == 1
    assert f"Waiting until {payload}: {REASON}" in told[0]


def test_what_is_over_fires_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    assert len(asyncio.run(fire(QuotaTrigger(machine.now - 1, REASON)))) == 1
    assert machine.sleeps == []


def test_it_looks_at_the_clock_from_time_to_time_and_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    began = machine.now
    asyncio.run(fire(QuotaTrigger(began + 3601, REASON)))
    assert machine.now == began + 3601
    assert max(machine.sleeps) <= LONGEST_SLEEP


def test_a_machine_that_was_suspended_is_not_late_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {2: 7200.0})
    asyncio.run(fire(QuotaTrigger(machine.now + 3600, REASON)))
    assert len(machine.sleeps) == 3


def test_a_clock_that_is_set_back_makes_it_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {2: -600.0})
    until = machine.now + 3600
    asyncio.run(fire(QuotaTrigger(until, REASON)))
    assert machine.now == until
    assert sum(machine.sleeps) == pytest.approx(4200 + LONGEST_SLEEP)
