"""The operator that archives the recordings of a run's window."""

from __future__ import annotations

import ast
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_amplemarket.archive import Archive
from airflow_provider_amplemarket.calls import Call, is_plain_id
from airflow_provider_amplemarket.downloads import Downloads
from airflow_provider_amplemarket.exceptions import (
    AmplemarketConfigurationError,
    AmplemarketError,
    ArchiveIncompleteError,
    AuthenticationError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.interrupt import MomentTrigger, failing_when_interrupted
from airflow_provider_amplemarket.layout import DEFAULT_KEY, Layout
from airflow_provider_amplemarket.plan import (
    ALREADY_STORED,
    EXTERNAL,
    MISSING,
    NOT_SELECTED,
    STORED,
    Attempt,
    Item,
    Plan,
    decide,
)
from airflow_provider_amplemarket.plugin import POOL_NAME
from airflow_provider_amplemarket.quota import Ledger, RateLimit
from airflow_provider_amplemarket.records import evidence
from airflow_provider_amplemarket.window import resolve

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Waits shorter than this many seconds, or than a quarter of the period, are slept in the worker: a trigger that
#: fires at once can race the scheduler, which then fails a healthy task.
SLEEP_BELOW = 60.0
#: How much of the pace of the last burst is relied on: where the next one is faster, the permits should be there.
RELIED_ON = 0.9


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
    :param call_ids: archive exactly these calls, whatever the window has: ids, or rows with a ``call_id``. Ids
        that the API's list no longer knows go under ``undated/``. ``select`` and ``user_id`` do not apply. (templated)
    :param user_id: archive only this user's calls. (templated)
    :param select: called with each call as the API gave it; only those it answers true for are archived.
    :param key: format string for the objects' names, over the call's fields; see :class:`.layout.Layout`.
    :param sidecar: ``"full"`` keeps the call as the API gave it beside the recording, ``"minimal"`` only ids,
        times and hash.
    :param overwrite: ask for recordings that are archived, too.
    :param not_found_for: how long after its start a call that the API has no recording of (404) is asked for again.
    :param give_up_after: how long after its first request a call that fails, in more than one run, is given up;
        that is final and no failure, unless the task is cleared, or ``call_ids`` or ``overwrite`` ask for it again.
        0 gives up in the run after the first that failed.
    :param max_concurrency: downloads at once, 1 to 32.
    :param max_wait: how long after its start a try may still wait for quota; when more is needed it fails with
        what is left. None waits as long as it takes.
    :param deferrable: wait in the triggerer; False sleeps in the worker.
    :param amplemarket_conn_id: connection of type ``amplemarket``. (templated)
    :param pool: the pool that gives one task at a time its turn.
    :raises AmplemarketConfigurationError: when a parameter or a connection is wrong; the message names it.
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

    def __init__(
        self,
        *,
        path: str,
        storage_conn_id: str | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        lookback: timedelta = timedelta(days=3),
        call_ids: Iterable[Any] | str | None = None,
        user_id: str | None = None,
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
        self.call_ids = call_ids
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
            return self._reconcile(context, {})

    def execute_complete(self, context: Context, event: Any = None) -> list[dict[str, Any]]:
        """Archive what is still missing; only the figures of the summary are carried over the wait."""
        ti = context["ti"]
        earlier = ti.xcom_pull(task_ids=ti.task_id, key="summary", map_indexes=ti.map_index)
        with failing_when_interrupted(event):
            return self._reconcile(context, earlier if isinstance(earlier, Mapping) else {})

    def on_kill(self) -> None:
        """End the downloads under way."""
        if self._cancel is not None:
            self._cancel.set()
            self.hook.abort()

    def _reconcile(self, context: Context, earlier: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._cancel = cancel = threading.Event()
        settings = self.hook.settings
        limit = RateLimit(settings.recording_limit, settings.recording_period)
        archive = Archive(self.path, _text(self.storage_conn_id), Layout(self.key))
        attempt = Attempt.of(context)
        started_at = earlier.get("started_at") or pendulum.instance(context["ti"].start_date).isoformat()
        permits = int(earlier.get("permits_spent", 0))
        while True:
            try:
                plan = self._plan(context, archive, attempt)
                by_permit, others = self._evidence(plan, limit)
                ledger = Ledger(
                    self.amplemarket_conn_id,
                    limit,
                    answer_timeout=settings.deadline,
                    evidence=by_permit,
                    legacy_evidence=others,
                )
                downloads = Downloads(
                    hook=self.hook,
                    archive=archive,
                    ledger=ledger,
                    attempt=attempt,
                    decide=self._decider(context, attempt),
                    concurrency=self.max_concurrency,
                    is_full=self.sidecar == "full",
                    give_up_after=self.give_up_after,
                    cancel=cancel,
                )
                if not self.overwrite:
                    downloads.adopt(plan)
                try:
                    if plan.having(MISSING):
                        archive.check_writable()
                        downloads.run(plan)
                finally:
                    permits += downloads.requests
                    summary = {"started_at": started_at, **_summary(plan), "permits_spent": permits}
                    context["ti"].xcom_push(key="summary", value=summary)
            except AuthenticationError as error:
                raise AirflowFailException(str(error)) from error
            if not plan.having(MISSING):
                break
            self._wait(context, plan, ledger, summary, RELIED_ON * downloads.pace)
        self.log.info("Done: %s", json.dumps(summary))
        if failures := plan.failures():
            raise ArchiveIncompleteError(f"{len(failures)} recordings failed: {_list(failures)}")
        return [_row(item, plan.statuses[item.call_id], archive) for item in plan.having(STORED, ALREADY_STORED)]

    def _plan(self, context: Context, archive: Archive, attempt: Attempt) -> Plan:
        """List the calls, choose the wanted ones, and see what the archive has of them."""
        call_ids = _read_call_ids(self.call_ids)
        plan = Plan()
        if call_ids is None:
            plan.window = resolve(context, start=self.start, end=self.end, lookback=self.lookback)
            self.log.info("Window of calls: %s", plan.window)
            if self.not_found_for > self.lookback:
                self.log.warning(
                    "lookback=%s is shorter than not_found_for=%s: calls without recording may leave the window "
                    "before they are asked for again",
                    self.lookback,
                    self.not_found_for,
                )
            calls = self._select(
                plan,
                self.hook.iter_calls(start=plan.window.start, end=plan.window.end, user_id=_text(self.user_id)),
            )
        else:
            self.log.info("Calls: the %d of call_ids", len(call_ids))
            calls = self._look_up(plan, call_ids)
        decider = self._decider(context, attempt)
        for item in _items(calls, archive):
            plan.set(item, decider(item))
        self.log.info(
            "Found %d wanted calls (%d external, %d not selected); %d recordings to ask for",
            len(calls),
            plan.others[EXTERNAL],
            plan.others[NOT_SELECTED],
            len(plan.having(MISSING)),
        )
        return plan

    def _select(self, plan: Plan, calls: Iterable[Call]) -> dict[str, Call]:
        wanted = {}
        for call in calls:
            name = f"#{len(plan.hopeless) + 1}: {call.get('id')!r:.100}"
            if call.get("external") is True:
                plan.others[EXTERNAL] += 1
                continue
            try:
                is_selected = self.select(call)
            except Exception as error:
                plan.hopeless[name] = f"select failed with {type(error).__name__}: {error}"
                continue
            if not is_selected:
                plan.others[NOT_SELECTED] += 1
            elif is_plain_id(call.get("id")):
                wanted[call["id"]] = call
            else:
                plan.hopeless[name] = "its id is not a plain token"
        return wanted

    def _look_up(self, plan: Plan, call_ids: list[str]) -> dict[str, Call]:
        """Find what the API's list knows of the calls; of the others there is only the id."""
        unknown = set(call_ids)
        wanted: dict[str, Call] = {}
        for call in self.hook.iter_calls() if unknown else ():
            if is_plain_id(call.get("id")) and call["id"] in unknown:
                unknown.discard(call["id"])
                if call.get("external") is True:
                    plan.others[EXTERNAL] += 1
                else:
                    wanted[call["id"]] = call
                if not unknown:
                    break
        return {**wanted, **{call_id: {"id": call_id} for call_id in sorted(unknown)}}

    def _decider(self, context: Context, attempt: Attempt) -> Callable[[Item], str]:
        """Return what says of a call whether it is to be asked for."""
        # Clearing a task gives it the tries that it has had, on top of its own; nothing else does.
        is_cleared = context["ti"].max_tries > (self.retries or 0)
        insists = is_cleared or _read_call_ids(self.call_ids) is not None
        return lambda item: decide(
            item,
            attempt,
            overwrite=self.overwrite,
            not_found_for=self.not_found_for,
            now=pendulum.now("UTC"),
            insists=insists,
        )

    def _evidence(self, plan: Plan, limit: RateLimit) -> tuple[dict[str, float], list[float]]:
        """List the requests of the last period that the sidecars tell of, by permit, and those without one."""
        return evidence(plan.items.values(), self.amplemarket_conn_id, time.time() - limit.hold)

    def _wait(self, context: Context, plan: Plan, ledger: Ledger, summary: dict[str, Any], pace: float) -> None:
        """Wait until permits are free: in the triggerer, or in the worker where the wait is short."""
        left = len(plan.having(MISSING))
        moments = ledger.moments()
        until = ledger.limit.wake(moments, left, pace)
        if self.max_wait is not None:
            deadline = datetime.fromisoformat(summary["started_at"]).timestamp() + self.max_wait.total_seconds()
            if moments[0] > deadline:
                reasons = {item.call_id: "no permit" for item in plan.having(MISSING)} | plan.failures()
                raise ArchiveIncompleteError(
                    f"The quota is used up for longer than max_wait={self.max_wait} allows; {len(reasons)} recordings "
                    f"are left for a retry or the next run: {_list(reasons)}"
                )
            until = min(until, deadline)
        seconds = max(until - ledger.clock(), 0.0)
        waiting = {
            "left": left,
            "waiting_until": _iso(until),
            "estimated_end": _iso(ledger.limit.finish(moments, left)),
        }
        context["ti"].xcom_push(key="summary", value={**summary, **waiting})
        is_short = seconds < min(SLEEP_BELOW, ledger.limit.period / 4)
        self.log.info(
            "%d recordings archived, %d left. The quota of %d in %g s is used up: %s until %s, done at about %s",
            summary["stored"],
            left,
            ledger.limit.requests,
            ledger.limit.period,
            "waiting in the triggerer" if self.deferrable and not is_short else "sleeping in the worker",
            waiting["waiting_until"],
            waiting["estimated_end"],
        )
        if self.deferrable and not is_short:
            self.defer(trigger=MomentTrigger(moment=pendulum.from_timestamp(until)), method_name="execute_complete")
        # In slices, for on_kill; it runs in a signal's handler, where waiting for the Event could lock itself out.
        while (seconds := until - ledger.clock()) > 0:
            if self._cancel is not None and self._cancel.is_set():
                raise AmplemarketError("The task was told to stop")
            time.sleep(min(seconds, 1.0))


def _items(calls: Mapping[str, Call], archive: Archive) -> list[Item]:
    """Read the archive for the calls: at their places, and where they lie if their date was not known then."""
    layout = archive.layout
    places = {call_id: layout.place(call) for call_id, call in calls.items()}
    entries = archive.entries(places.values())
    items = {call_id: Item(call, entries[places[call_id].audio]) for call_id, call in calls.items()}
    absent = [item for item in items.values() if not item.entry.is_settled]
    undated = archive.entries(layout.undated(item.call) for item in absent)
    for item in absent:
        entry = undated[layout.undated(item.call).audio]
        if entry.is_settled:
            items[item.call_id] = Item(item.call, entry)
    # The list does not know these, so they may lie under any date.
    found = archive.search(item.call_id for item in absent if item.call.keys() == {"id"})
    for call_id, entry in found.items():
        items[call_id] = Item(items[call_id].call, entry)
    return list(items.values())


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


def _read_call_ids(value: Any) -> list[str] | None:
    """Read ``call_ids``: None for a window, else ids; from a list, an XCom result, or the text of either."""
    value = _text(value) if isinstance(value, str) else value
    if value is None:
        return None
    if isinstance(value, str) and value.startswith("["):
        value = _read_list(value)
    if isinstance(value, str | Mapping):
        value = [value]
    if not isinstance(value, Iterable):
        raise AmplemarketConfigurationError(f"call_ids={value!r} is no list of ids")
    call_ids = [row.get("call_id", row.get("id")) if isinstance(row, Mapping) else row for row in value]
    for call_id in call_ids:
        if not is_plain_id(call_id):
            raise AmplemarketConfigurationError(f"call_ids has {str(call_id)[:100]!r}, which is no call id")
    return list(dict.fromkeys(call_ids))


def _read_list(text: str) -> Any:
    """Read a list that a template rendered: as JSON, or as Python writes it."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    raise AmplemarketConfigurationError(f"call_ids={text[:100]!r} is no list")


def _text(value: str | None) -> str | None:
    # A template of nothing renders as the text "None".
    return None if value is None or value.strip() in ("", "None") else value.strip()


def _list(failures: Mapping[str, str], most: int = 20) -> str:
    lines = [f"{call_id} ({reason})" for call_id, reason in list(failures.items())[:most]]
    return "; ".join(lines) + (f"; and {len(failures) - most} more" if len(failures) > most else "")


def _iso(moment: float) -> str:
    return pendulum.from_timestamp(round(moment)).isoformat()
