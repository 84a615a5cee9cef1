"""The operator that archives the recordings of a run's window."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator

from airflow_provider_amplemarket.archive.layout import DEFAULT_KEY, Layout
from airflow_provider_amplemarket.archive.store import Archive
from airflow_provider_amplemarket.calls import Call
from airflow_provider_amplemarket.exceptions import (
    AmplemarketConfigurationError,
    ArchiveIncompleteError,
    AuthenticationError,
    ConnectionNotDefinedError,
    LedgerBusyError,
)
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.interrupt import failing_when_interrupted
from airflow_provider_amplemarket.pool import POOL_NAME
from airflow_provider_amplemarket.run.downloads import Downloads
from airflow_provider_amplemarket.run.named import NamedCalls
from airflow_provider_amplemarket.run.parameters import check_parameters, read_call_ids, read_text
from airflow_provider_amplemarket.run.plan import Plan
from airflow_provider_amplemarket.run.quota import Pause, limit_of, open_ledger, warn_of_skew
from airflow_provider_amplemarket.run.recorder import Recorder
from airflow_provider_amplemarket.run.report import Summary, list_failures, rows
from airflow_provider_amplemarket.run.rules import Rules, attempt_of
from airflow_provider_amplemarket.run.selection import Planner, has_duration
from airflow_provider_amplemarket.run.window import resolve, warn_of_lookback
from airflow_provider_amplemarket.run.work import Work
from airflow_provider_amplemarket.triggers.quota import QuotaTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Waits shorter than this many seconds, or than a quarter of the period, are slept in the worker: a trigger that
#: fires at once can race the scheduler, which then fails a healthy task.
SLEEP_BELOW = 60.0

#: What a parameter is that the DAG does not give, where None may be what a template or an XCom came to.
_NOT_GIVEN: Any = object()


class AmplemarketRecordingOperator(BaseOperator):
    """Archive the recordings of a window of calls in object storage, within the hourly quota of the API key.

    Each run is a reconciliation: it lists the window's calls, subtracts what is in the archive, and asks for the
    rest, oldest first, with one request for each recording. Where the quota is used up, it defers until there are
    permits again. One bad recording does not stop the others; the task fails at the end, and a retry asks for
    those alone.

    :param path: root of the archive, as Airflow writes object-storage paths: ``s3://conn_id@bucket/recordings``,
        ``gs://…``, ``abfs://…``, ``file:///data/recordings``. (templated)
    :param storage_conn_id: connection of the storage, an alternative to the user part of ``path``. (templated)
    :param start: start of the window (datetime or ISO 8601); the data interval's by default, or the end of
        the last successful run where the interval is empty. (templated)
    :param end: end of the window, which it does not include; the data interval's end by default, or the time from
        which the run was due. (templated)
    :param lookback: how much earlier than ``start`` the window begins: calls appear in the API days late.
    :param call_ids: archive exactly these calls, whatever the window has: ids, or rows with a ``call_id``. An empty
        list asks for nothing; a template or an XCom of nothing is an error. Ids that the API's list no longer knows
        go under ``undated/``. ``select`` and ``user_id`` do not apply. (templated)
    :param user_id: archive only this user's calls. (templated)
    :param select: called with each call as the API gave it; only those for which it returns true are archived.
    :param key: format string for the objects' names, over the call's fields; see :class:`.layout.Layout`.
    :param sidecar: ``"full"`` keeps the call as the API gave it beside the recording, ``"minimal"`` only ids,
        times and hash.
    :param overwrite: ask for recordings that are archived, too.
    :param not_found_for: how long after its start a call that the API has no recording of (404) is asked for again.
    :param give_up_after: how long after its first request a call that fails, in more than one run or after a clear,
        is given up: it fails no run any more, and is asked for again only if the task is cleared, or ``call_ids`` or
        ``overwrite`` ask for it. None is given up where more than three fail and nothing is archived beside them.
        A call that cannot be asked for at all fails the runs until so long after its start.
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

    #: Set by ``on_kill``; exists only while the task runs, as what it works with does.
    _cancel: threading.Event | None = None
    _work: Work | None = None

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
        # In a DAG file None is the same as the default; in an expanded task it is what an upstream task has returned.
        is_expanded = getattr(self, "_BaseOperator__from_mapped", False)  # Airflow's own mark
        self._names_calls = self.call_ids is not None or (call_ids is None and is_expanded)
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
        check_parameters(self)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Map the operator; Airflow would not see the default of ``pool`` then, but run the tasks in its own."""
        if kwargs.get("call_ids", _NOT_GIVEN) is None:  # so a None that a task is made with comes from ``expand``
            del kwargs["call_ids"]
        partial = super().partial(**kwargs)
        partial.kwargs.setdefault("pool", POOL_NAME)
        return partial

    @cached_property
    def hook(self) -> AmplemarketHook:
        """The hook for ``amplemarket_conn_id``."""
        return AmplemarketHook(self.amplemarket_conn_id)

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Archive what is missing."""
        with failing_when_interrupted():
            return self._archive_calls(context, {}, None)

    def execute_complete(self, context: Context, event: Any = None, named: str | None = None) -> list[dict[str, Any]]:
        """Archive what is still missing. Over the wait, only the figures of the summary are carried.

        :param named: what was found of the calls of ``call_ids``.
        """
        ti = context["ti"]
        earlier = ti.xcom_pull(task_ids=ti.task_id, key="summary", map_indexes=ti.map_index)
        with failing_when_interrupted(event):
            return self._archive_calls(context, earlier if isinstance(earlier, Mapping) else {}, named)

    def on_kill(self) -> None:
        """End what is under way, of the API and of the store; it runs in a signal's handler."""
        if self._cancel is not None:
            self._cancel.set()
            self.hook.abort()
        if self._work is not None:
            self._work.cancel.set()
            self._work.archive.abort()

    def _archive_calls(self, context: Context, earlier: Mapping[str, Any], memory: str | None) -> list[dict[str, Any]]:
        try:
            return self._reconcile(context, earlier, memory)
        except ConnectionNotDefinedError:  # where Airflow's API server fails, it looks the same
            raise
        except (AuthenticationError, AmplemarketConfigurationError) as error:
            raise AirflowFailException(str(error)) from error

    def _reconcile(self, context: Context, earlier: Mapping[str, Any], memory: str | None) -> list[dict[str, Any]]:
        """Plan, download, and wait until nothing is pending any more.

        :param earlier: the summary of this try before it waited; empty if it has not.
        :param memory: what was found of the calls of ``call_ids`` before that.
        """
        self._cancel = threading.Event()
        named = self._named_calls(memory)
        work = self._work = self._prepare(context, insists=named is not None)
        if self._cancel.is_set():  # before there was anything to stop
            work.cancel.set()
        work.go_on()
        summary = Summary(context["ti"], earlier)
        while True:
            plan = self._plan(context, work, named)
            if summary.is_new:
                warn_of_skew(self.hook.clock_skew)
            ledger = open_ledger(plan, work, patience=SLEEP_BELOW if self.deferrable else math.inf)
            downloads = Downloads(plan, work, ledger=ledger, concurrency=self.max_concurrency)
            busy = None
            try:
                downloads.prepare()
                downloads.run()
            except LedgerBusyError as error:
                busy = error
            finally:
                summary.push(downloads.plan, requests=downloads.requests)
            if not downloads.plan.left:
                return self._result(downloads, summary)
            pause = Pause.of_ledger(busy) if busy else Pause.of_quota(downloads.plan, ledger, downloads.pace)
            self._wait(downloads, pause, summary, named)

    def _named_calls(self, memory: str | None) -> NamedCalls | None:
        """Read ``call_ids``; None where the window's calls are wanted."""
        if not self._names_calls:
            return None
        named = NamedCalls(read_call_ids(self.call_ids))
        if memory is not None:
            named.remember(memory)
        return named

    def _plan(self, context: Context, work: Work, named: NamedCalls | None) -> Plan:
        planner = Planner(work=work, select=self.select, key=self.key)
        if named is not None:
            return planner.of_named(named)
        window = resolve(context, start=self.start, end=self.end, lookback=self.lookback)
        warn_of_lookback(self.lookback, self.not_found_for)
        return planner.of_window(window, read_text(self.user_id))

    def _prepare(self, context: Context, *, insists: bool) -> Work:
        # Clearing a task gives it the tries that it has had, on top of its own; nothing else does.
        is_cleared = context["ti"].max_tries > (self.retries or 0)
        attempt = attempt_of(context)
        limit = limit_of(self.hook)
        return Work(
            hook=self.hook,
            archive=Archive(self.path, conn_id=read_text(self.storage_conn_id), layout=Layout(self.key)),
            rules=Rules(
                attempt=attempt,
                overwrite=self.overwrite,
                not_found_for=self.not_found_for,
                give_up_after=self.give_up_after,
                insists=insists or is_cleared,
            ),
            recorder=Recorder(
                attempt=attempt,
                conn_id=self.amplemarket_conn_id,
                is_full=self.sidecar == "full",
                hold=timedelta(seconds=limit.hold),
            ),
            cancel=threading.Event(),
        )

    def _wait(self, downloads: Downloads, pause: Pause, summary: Summary, named: NamedCalls | None) -> None:
        """Wait until there can be permits: in the triggerer, or in the worker where the wait is short."""
        plan, ledger = downloads.plan, downloads.ledger
        downloads.work.go_on()
        until = pause.within(self.max_wait, summary.started_at, plan)
        is_short = until - ledger.clock() < min(SLEEP_BELOW, ledger.limit.period / 4)
        is_deferred = self.deferrable and not is_short
        summary.push(plan, waiting=pause.summary(until))
        self.log.info("%s", pause.text(plan, until, is_deferred=is_deferred))
        if is_deferred:
            self.defer(
                trigger=QuotaTrigger(until, f"{plan.progress()}. {pause.reason}"),
                method_name="execute_complete",
                kwargs={"named": named.memory} if named else None,
            )
        # In slices, for on_kill; it runs in a signal's handler, where waiting for the Event could lock itself out.
        while (seconds := until - ledger.clock()) > 0:
            downloads.work.go_on()
            time.sleep(min(seconds, 1.0))

    def _result(self, downloads: Downloads, summary: Summary) -> list[dict[str, Any]]:
        self.log.info("Done: %s", json.dumps(summary.figures))
        if failures := downloads.plan.failures():
            raise ArchiveIncompleteError(f"{len(failures)} recordings failed: {list_failures(failures)}")
        return rows(downloads.plan, downloads.work.archive)
