"""The operator that archives the recordings of a run's window."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_amplemarket.archive.layout import DEFAULT_KEY, Layout
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.calls import Call, is_plain_id, start_of
from airflow_provider_amplemarket.exceptions import (
    AmplemarketConfigurationError,
    AmplemarketError,
    ArchiveIncompleteError,
    AuthenticationError,
    ConnectionNotDefinedError,
    LedgerBusyError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.interrupt import failing_when_interrupted
from airflow_provider_amplemarket.pool import POOL_NAME
from airflow_provider_amplemarket.quota.ledger import Ledger
from airflow_provider_amplemarket.quota.rate import RateLimit
from airflow_provider_amplemarket.run.downloads import Downloads
from airflow_provider_amplemarket.run.plan import (
    ALREADY_STORED,
    EXTERNAL,
    GIVEN_UP,
    MISSING,
    NOT_SELECTED,
    STORED,
    Attempt,
    Item,
    Plan,
    decide,
)
from airflow_provider_amplemarket.run.records import MOST_SKEW, known_requests
from airflow_provider_amplemarket.run.selection import NamedCalls, is_nothing, read_call_ids
from airflow_provider_amplemarket.run.window import resolve
from airflow_provider_amplemarket.triggers.quota import QuotaTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_amplemarket.api.settings import Settings

#: Waits shorter than this many seconds, or than a quarter of the period, are slept in the worker: a trigger that
#: fires at once can race the scheduler, which then fails a healthy task.
SLEEP_BELOW = 60.0
#: How much of the pace of the last burst is relied on: where the next one is faster, the permits should be there.
RELIED_ON = 0.9
#: Seconds by which this machine's clock may differ from the API's before that is worth a warning.
CLOCK_TOLERANCE = 1.0

#: What a parameter is that the DAG does not give, where None may be what a template or an XCom came to.
_NOT_GIVEN: Any = object()


def has_duration(call: Call) -> bool:
    """Select the calls whose ``duration`` is not 0: nobody spoke in the others."""
    return bool(call.get("duration") != 0)


class AmplemarketRecordingOperator(BaseOperator):
    """
    Archive the recordings of a window of calls in object storage, within the hourly quota of the API key.

    Each run is a reconciliation: it lists the window's calls, subtracts what is in the archive, and asks for the
    rest, oldest first, with one request for each recording. Where the quota is used up, it defers until there are
    permits again. One bad recording does not stop the others; the task fails at the end, and a retry asks for
    those alone.

    :param path: root of the archive, as Airflow writes object-storage paths: ``s3://conn_id@bucket/recordings``,
        ``gs://…``, ``abfs://…``, ``file:///data/recordings``. (templated)
    :param storage_conn_id: connection of the storage, an alternative to the user part of ``path``. (templated)
    :param start: first moment of the window (datetime or ISO 8601); the data interval's by default, or the end of
        the last successful run where the interval is empty. (templated)
    :param end: moment after the window's last; the data interval's end by default, or the moment from which the
        run was due. (templated)
    :param lookback: how much earlier than ``start`` the window begins: calls appear in the API days late.
    :param call_ids: archive exactly these calls, whatever the window has: ids, or rows with a ``call_id``. An empty
        list asks for nothing; a template or an XCom of nothing is an error. Ids that the API's list no longer knows
        go under ``undated/``. ``select`` and ``user_id`` do not apply. (templated)
    :param user_id: archive only this user's calls. (templated)
    :param select: called with each call as the API gave it; only those it answers true for are archived.
    :param key: format string for the objects' names, over the call's fields; see :class:`.layout.Layout`.
    :param sidecar: ``"full"`` keeps the call as the API gave it beside the recording, ``"minimal"`` only ids,
        times and hash.
    :param overwrite: ask for recordings that are archived, too.
    :param not_found_for: how long after its start a call that the API has no recording of (404) is asked for again.
    :param give_up_after: how long after its first request a call that fails, in more than one run or after a clear,
        is given up; that is final and no failure, unless the task is cleared, or ``call_ids`` or ``overwrite`` ask
        for it again. 0 gives up in the run after the first that failed. Where more than three fail and nothing is
        archived beside them, none is given up. What cannot be asked for at all fails until so long after the call.
    :param max_concurrency: downloads at once, 1 to 32.
    :param max_wait: how long after its start a try may still wait for quota; when more is needed it fails with
        what is left. None waits as long as it takes.
    :param deferrable: wait in the triggerer; False sleeps in the worker.
    :param amplemarket_conn_id: connection of type ``amplemarket``. (templated)
    :param pool: the pool that gives one task at a time its turn.
    :raises AmplemarketConfigurationError: when a parameter is wrong; the message names it.
    :raises AirflowFailException: when no retry can help: the API key is refused, or a templated parameter or a
        connection is wrong; the message says which.
    :raises ArchiveIncompleteError: when recordings of the window are missing at the end.
    """

    template_fields: Sequence[str] = (
        "path",
        "storage_conn_id",
        "start",
        "end",
        "call_ids",
        "user_id",
        "amplemarket_conn_id",
    )
    ui_color = "#d9e8fb"

    #: Set by ``on_kill``; exists only while the task runs.
    _cancel: threading.Event | None = None
    #: Exists only while the task runs.
    _archive: Archive | None = None

    def __init__(
        self,
        *,
        path: str,
        storage_conn_id: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        lookback: timedelta = timedelta(days=3),
        call_ids: Iterable[Any] | str | None = _NOT_GIVEN,
        user_id: str | int | None = None,
        select: Callable[[Call], Any] = has_duration,
        key: str = DEFAULT_KEY,
        sidecar: str = "full",
        overwrite: bool = False,
        not_found_for: timedelta = timedelta(days=2),
        give_up_after: timedelta = timedelta(days=3),
        max_concurrency: int = 4,
        max_wait: timedelta | None = None,
        deferrable: bool = True,
        amplemarket_conn_id: str = AmplemarketHook.default_conn_name,
        pool: str = POOL_NAME,
        **kwargs: Any,
    ) -> None:
        super().__init__(pool=pool, **kwargs)
        self.path = path
        self.storage_conn_id = storage_conn_id
        self.start = start
        self.end = end
        self.lookback = lookback
        self.call_ids = None if call_ids is _NOT_GIVEN else call_ids
        self._names_calls = self.call_ids is not None
        # In a DAG file None is the same as the default; in an expanded task it is what an upstream task has answered.
        is_expanded = getattr(self, "_BaseOperator__from_mapped", False)  # Airflow's own mark
        self._names_none = call_ids is None and is_expanded
        self.user_id = user_id
        self.select = select
        self.key = key
        self.sidecar = sidecar
        self.overwrite = overwrite
        self.not_found_for = not_found_for
        self.give_up_after = give_up_after
        self.max_concurrency = max_concurrency
        self.max_wait = max_wait
        self.deferrable = deferrable
        self.amplemarket_conn_id = amplemarket_conn_id
        self._check()

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Map the operator; Airflow would not see the default of ``pool`` then, but run the tasks in its own."""
        if kwargs.get("call_ids", _NOT_GIVEN) is None:  # so a None that a task is made with comes from ``expand``
            del kwargs["call_ids"]
        partial = super().partial(**kwargs)
        partial.kwargs.setdefault("pool", POOL_NAME)
        return partial

    def _check(self) -> None:
        """Refuse what cannot work while the DAG is parsed."""

        def wrong(what: str) -> AmplemarketConfigurationError:
            return AmplemarketConfigurationError(f"{type(self).__name__} {self.task_id!r}: {what}")

        for name in ("lookback", "not_found_for", "give_up_after", "max_wait"):
            value = getattr(self, name)
            if not (isinstance(value, timedelta) and value >= timedelta(0)) and (name, value) != ("max_wait", None):
                raise wrong(f"{name} must be a timedelta of 0 or more, not {value!r}")
        if not isinstance(self.max_concurrency, int) or not 1 <= self.max_concurrency <= 32:
            raise wrong(f"max_concurrency must be a whole number from 1 to 32, not {self.max_concurrency!r}")
        if self.sidecar not in ("full", "minimal"):
            raise wrong(f"sidecar must be 'full' or 'minimal', not {self.sidecar!r}")
        if not callable(self.select):
            raise wrong("select must be callable with a call")
        Layout(self.key)

    @cached_property
    def hook(self) -> AmplemarketHook:
        """The hook for ``amplemarket_conn_id``."""
        return AmplemarketHook(self.amplemarket_conn_id)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Archive what is missing."""
        with failing_when_interrupted():
            return self._run(context, {}, None)

    def execute_complete(self, context: Context, event: Any = None, named: str | None = None) -> list[dict[str, Any]]:
        """
        Archive what is still missing. Over the wait, only the figures of the summary are carried.

        :param named: what was found of the calls of ``call_ids``.
        """
        ti = context["ti"]
        earlier = ti.xcom_pull(task_ids=ti.task_id, key="summary", map_indexes=ti.map_index)
        with failing_when_interrupted(event):
            return self._run(context, earlier if isinstance(earlier, Mapping) else {}, named)

    def on_kill(self) -> None:
        """End what is under way, of the API and of the store; it runs in a signal's handler."""
        if self._cancel is not None:
            self._cancel.set()
            self.hook.abort()
        if self._archive is not None:
            self._archive.abort()

    def _run(self, context: Context, earlier: Mapping[str, Any], memory: str | None) -> list[dict[str, Any]]:
        try:
            return self._reconcile(context, earlier, memory)
        except ConnectionNotDefinedError:  # where Airflow's API server fails, it looks the same
            raise
        except (AuthenticationError, AmplemarketConfigurationError) as error:
            raise AirflowFailException(str(error)) from error

    def _reconcile(self, context: Context, earlier: Mapping[str, Any], memory: str | None) -> list[dict[str, Any]]:
        self._cancel = cancel = threading.Event()
        named = self._named_calls(memory)
        settings = self.hook.settings
        limit = RateLimit(settings.limit, settings.period)
        self._archive = archive = Archive(self.path, conn_id=_text(self.storage_conn_id), layout=Layout(self.key))
        attempt = Attempt.of(context)
        decider = self._decider(context, attempt, insists=named is not None)
        started_at = earlier.get("started_at") or pendulum.instance(context["ti"].start_date).isoformat()
        permits = int(earlier.get("permits_spent", 0))
        is_first = not earlier
        while True:
            plan = self._plan(context, archive, decider, named)
            if is_first:
                self._check_clock()
                is_first = False
            ledger = self._ledger(settings, limit, plan, cancel)
            downloads = Downloads(
                hook=self.hook,
                archive=archive,
                ledger=ledger,
                attempt=attempt,
                decide=decider,
                concurrency=self.max_concurrency,
                is_full=self.sidecar == "full",
                give_up_after=self.give_up_after,
                cancel=cancel,
            )
            busy: LedgerBusyError | None = None
            try:
                self._download(plan, archive, downloads)
            except LedgerBusyError as error:
                busy = error
            finally:
                permits += downloads.requests
                summary = {"started_at": started_at, **_summary(plan), "permits_spent": permits}
                context["ti"].xcom_push(key="summary", value=summary)
            if not plan.having(MISSING):
                break
            pause = _Pause.of_ledger(busy) if busy else _Pause.of_quota(plan, ledger, RELIED_ON * downloads.pace)
            self._wait(context, plan, pause, ledger, summary, named)
        self.log.info("Done: %s", json.dumps(summary))
        if failures := plan.failures():
            raise ArchiveIncompleteError(f"{len(failures)} recordings failed: {_list(failures)}")
        return [_row(item, plan.statuses[item.call_id], archive) for item in plan.having(STORED, ALREADY_STORED)]

    def _ledger(self, settings: Settings, limit: RateLimit, plan: Plan, cancel: threading.Event) -> Ledger:
        """Open the ledger, with the requests of the last period that the sidecars tell of."""
        now = time.time()
        by_permit, others = known_requests(
            plan.items.values(), self.amplemarket_conn_id, since=now - limit.hold, until=now + MOST_SKEW.total_seconds()
        )
        return Ledger(
            conn_id=self.amplemarket_conn_id,
            limit=limit,
            answer_timeout=settings.deadline,
            known_requests=by_permit,
            anonymous_requests=others,
            patience=SLEEP_BELOW if self.deferrable else math.inf,
            cancelled=cancel.is_set,
        )

    def _download(self, plan: Plan, archive: Archive, downloads: Downloads) -> None:
        """Ask for what is missing, as far as there are permits."""
        if not self.overwrite:
            downloads.adopt(plan)
        if plan.having(MISSING):
            archive.check_writable()
            downloads.run(plan)

    def _named_calls(self, memory: str | None) -> NamedCalls | None:
        """Read ``call_ids``; None where the window's calls are wanted."""
        if not (self._names_calls or self._names_none):
            return None
        named = NamedCalls(read_call_ids(self.call_ids))
        if memory is not None:
            named.remember(memory)
        return named

    def _plan(
        self, context: Context, archive: Archive, decider: Callable[[Item], str], named: NamedCalls | None
    ) -> Plan:
        """List the calls, choose the wanted ones, and see what the archive has of them."""
        plan = Plan()
        if named is None:
            items = _items(self._of_window(context, plan), archive)
        else:
            self.log.info("Calls: the %d of call_ids", len(named.starts))
            listing = self._go_on(self.hook.iter_calls())
            items = named.find(archive, listing, lambda item: decider(item) == MISSING)
            plan.others[EXTERNAL] += len(named.external)
        for item in self._of_own_name(plan, items):
            plan.set(item, decider(item))
        self.log.info(
            "Found %d wanted calls (%d external, %d not selected); %d recordings to ask for",
            len(items),
            plan.others[EXTERNAL],
            plan.others[NOT_SELECTED],
            len(plan.having(MISSING)),
        )
        return plan

    def _of_window(self, context: Context, plan: Plan) -> dict[str, Call]:
        """List the calls of the run's window, and choose the wanted ones."""
        plan.window = resolve(context, start=self.start, end=self.end, lookback=self.lookback)
        self.log.info("Window of calls: %s", plan.window)
        if self.not_found_for > self.lookback:
            self.log.warning(
                "lookback=%s is shorter than not_found_for=%s: calls without recording may leave the window "
                "before they are asked for again",
                self.lookback,
                self.not_found_for,
            )
        start, end, user_id = plan.window.start, plan.window.end, _text(self.user_id)
        listing = self.hook.iter_calls(start=start, end=end, user_id=user_id)
        wanted = self._select(plan, self._go_on(listing))
        if user_id is not None and not (wanted or plan.hopeless or plan.others.total()):
            others = sum(1 for _ in self._go_on(self.hook.iter_calls(start=start, end=end)))
            if others:
                self.log.warning(
                    "Of the %d calls of the window that the API lists, none is of user_id=%r. Is that the user's id "
                    "in Amplemarket?",
                    others,
                    user_id,
                )
        return wanted

    def _go_on(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Read a list until the task is told to stop."""
        for call in calls:
            self._check_told_to_stop()
            yield call

    def _check_told_to_stop(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise AmplemarketError("The task was told to stop")

    def _select(self, plan: Plan, calls: Iterable[Call]) -> dict[str, Call]:
        wanted = {}
        for call in calls:
            name = f"#{len(plan.hopeless) + plan.others[GIVEN_UP] + 1}: {call.get('id')!r:.100}"
            if call.get("external") is True:
                plan.others[EXTERNAL] += 1
                continue
            try:
                is_selected = self.select(call)
            except Exception as error:
                self._leave_out(plan, name, call, f"select failed with {type(error).__name__}: {error}")
                continue
            if not is_selected:
                plan.others[NOT_SELECTED] += 1
            elif is_plain_id(call.get("id")):
                wanted[call["id"]] = call
            else:
                self._leave_out(plan, name, call, "its id is not a plain token")
        return wanted

    def _of_own_name(self, plan: Plan, items: list[Item]) -> Iterator[Item]:
        """Leave out calls whose recording would lie where another's does: one would replace the other."""
        names = Counter(item.entry.place.audio for item in items)
        for item in items:
            audio = item.entry.place.audio
            if names[audio] > 1 or (item.entry.record or {}).get("call_id") not in (None, item.call_id):
                reason = f"key={self.key!r} gives it the name of another call, {audio}"
                self._leave_out(plan, item.call_id, item.call, reason)
            else:
                yield item

    def _leave_out(self, plan: Plan, name: str, call: Call, reason: str) -> None:
        """Let a call that cannot be asked for fail the run, unless it is as old as calls that are given up."""
        start = start_of(call)
        is_young = start is not None and pendulum.now("UTC") - start < self.give_up_after
        if is_young or self._names_calls:
            plan.hopeless[name] = reason
        else:
            plan.others[GIVEN_UP] += 1
            self.log.warning("Call %s cannot be archived, and is given up: %s", name, reason)

    def _decider(self, context: Context, attempt: Attempt, *, insists: bool) -> Callable[[Item], str]:
        """
        Return what says of a call whether it is to be asked for.

        :param insists: whether to ask again for what is final.
        """
        # Clearing a task gives it the tries that it has had, on top of its own; nothing else does.
        is_cleared = context["ti"].max_tries > (self.retries or 0)
        return lambda item: decide(
            item,
            attempt,
            overwrite=self.overwrite,
            not_found_for=self.not_found_for,
            now=pendulum.now("UTC"),
            insists=insists or is_cleared,
        )

    def _check_clock(self) -> None:
        """Warn of a clock that is wrong: the ledger's times are those of the workers' clocks."""
        skew = self.hook.clock_skew
        if abs(skew) <= CLOCK_TOLERANCE:
            return
        if skew > 0:
            effect = "it takes permits that much too early, so that the API may refuse requests (429)"
        else:
            effect = "it waits that much too long, and workers with a right clock take its permits too early"
        self.log.warning(
            "The clock of this machine is %.0f s %s the API's, and the quota is kept by the workers' clocks: %s. "
            "Set it by NTP.",
            abs(skew),
            "ahead of" if skew > 0 else "behind",
            effect,
        )

    def _wait(
        self,
        context: Context,
        plan: Plan,
        pause: _Pause,
        ledger: Ledger,
        summary: dict[str, Any],
        named: NamedCalls | None,
    ) -> None:
        """Wait until there can be permits: in the triggerer, or in the worker where the wait is short."""
        self._check_told_to_stop()
        until = self._within_max_wait(plan, pause, summary["started_at"])
        is_short = until - ledger.clock() < min(SLEEP_BELOW, ledger.limit.period / 4)
        is_deferred = self.deferrable and not is_short
        waiting = {"left": len(plan.having(MISSING)), "waiting_until": _iso(until), "waiting_for": pause.reason}
        if pause.end is not None:
            waiting["estimated_end"] = _iso(pause.end)
        context["ti"].xcom_push(key="summary", value={**summary, **waiting})
        where = "waiting in the triggerer" if is_deferred else "sleeping in the worker"
        end = f", done at about {_time(pause.end)}" if pause.end is not None else ""
        progress = f"{plan.progress()}, {pause.scarce} free again at {_time(until)}"
        self.log.info("%s. %s: %s until then%s", progress, pause.reason, where, end)
        if is_deferred:
            self.defer(
                trigger=QuotaTrigger(until, f"{plan.progress()}. {pause.reason}"),
                method_name="execute_complete",
                kwargs={"named": named.memory} if named else None,
            )
        # In slices, for on_kill; it runs in a signal's handler, where waiting for the Event could lock itself out.
        while (seconds := until - ledger.clock()) > 0:
            self._check_told_to_stop()
            time.sleep(min(seconds, 1.0))

    def _within_max_wait(self, plan: Plan, pause: _Pause, started_at: str) -> float:
        """Return when to come back; raise where there can be no permit within ``max_wait``."""
        if self.max_wait is None:
            return pause.until
        deadline = datetime.fromisoformat(started_at).timestamp() + self.max_wait.total_seconds()
        if pause.earliest > deadline:
            reasons = {item.call_id: "no permit" for item in plan.having(MISSING)} | plan.failures()
            raise ArchiveIncompleteError(
                f"{pause.reason} for longer than max_wait={self.max_wait} allows; {len(reasons)} recordings "
                f"are left for a retry or the next run: {_list(reasons)}"
            )
        return min(pause.until, deadline)


@dataclass(frozen=True)
class _Pause:
    """
    A wait.

    :param scarce: what will be free again.
    :param reason: why there are no permits.
    :param earliest: when there can be permits again.
    :param until: when it is worth to come back.
    :param end: when all may be done; None where nobody knows.
    """

    scarce: str
    reason: str
    earliest: float
    until: float
    end: float | None = None

    @classmethod
    def of_quota(cls, plan: Plan, ledger: Ledger, pace: float) -> _Pause:
        left, limit, free_times = len(plan.having(MISSING)), ledger.limit, ledger.free_times()
        return cls(
            scarce="quota",
            reason=f"The quota of {limit.requests} in {limit.period:g} s is used up",
            earliest=free_times[0],
            until=limit.next_wakeup(free_times, left, pace),
            end=limit.estimate_end(free_times, left),
        )

    @classmethod
    def of_ledger(cls, busy: LedgerBusyError) -> _Pause:
        until = max(busy.until, time.time() + 1.0)  # never a loop without a rest
        return cls(scarce="ledger", reason=str(busy).rstrip("."), earliest=until, until=until)


def _items(calls: Mapping[str, Call], archive: Archive) -> list[Item]:
    """Read the archive for the calls: at their places, and where they lie if their date was not known then."""
    entries = archive.find(calls.values())
    return [Item(call, entries[call_id]) for call_id, call in calls.items()]


def _row(item: Item, status: str, archive: Archive) -> dict[str, Any]:
    record = item.entry.record or {}
    return {
        "call_id": item.call_id,
        "uri": archive.uri(item.entry.place.audio),
        "status": status,
        "size": item.entry.size,
        "sha256": record.get("sha256"),
        "start_date": item.start.isoformat() if item.start else None,
    }


def _summary(plan: Plan) -> dict[str, Any]:
    stored = plan.having(STORED)
    return {
        **plan.counts(),
        "left": len(plan.having(MISSING)),
        "window": [plan.window.start.isoformat(), plan.window.end.isoformat()] if plan.window else None,
        "bytes": sum(item.entry.size or 0 for item in stored),
    }


def _text(value: object) -> str | None:
    return None if is_nothing(value) else str(value).strip()


def _list(failures: Mapping[str, str], most: int = 20) -> str:
    lines = [f"{call_id} ({reason})" for call_id, reason in list(failures.items())[:most]]
    return "; ".join(lines) + (f"; and {len(failures) - most} more" if len(failures) > most else "")


def _time(moment: float) -> str:
    """Write a moment for the log: its time, and its date unless that is today."""
    when, today = pendulum.from_timestamp(round(moment)), pendulum.now("UTC").date()
    return when.format("HH:mm:ss [UTC]" if when.date() == today else "YYYY-MM-DD HH:mm:ss [UTC]")


def _iso(moment: float) -> str:
    return pendulum.from_timestamp(round(moment)).isoformat()
