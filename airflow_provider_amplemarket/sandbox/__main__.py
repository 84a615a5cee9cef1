"""Run the sandbox as a program: ``python -m airflow_provider_amplemarket.sandbox``."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta

from airflow_provider_amplemarket.sandbox.calls import Call, make_call, make_calls
from airflow_provider_amplemarket.sandbox.faults import RECORDING_FAULTS, known
from airflow_provider_amplemarket.sandbox.pages import DEFAULT_SIZE
from airflow_provider_amplemarket.sandbox.server import Sandbox
from airflow_provider_amplemarket.sandbox.settings import LIMIT, PERIOD, PORT, SettingError

# Those after which a run can still end well: the call is archived in the end, or is for good not to be had.
SURVIVABLE = "chunked drip flaky large-3 late not-found redirect redirect-away slow too-large"


def moment(text: str) -> datetime:
    """Read a time; without a zone it is UTC.

    :param text: The time in ISO 8601.
    """
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def fault_name(text: str) -> str:
    """Read the name of a fault of recordings.

    :param text: The name.
    """
    try:
        return known(text, RECORDING_FAULTS)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line.

    :raises SettingError: When the environment sets a default that cannot be one.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_amplemarket.sandbox",
        description="Serve the Amplemarket API on this machine, with made-up calls and real sound.",
    )
    option = parser.add_argument
    limit, period, port = LIMIT.read(50), PERIOD.read(3600.0), PORT.read(0)
    option("--port", type=PORT.parse, default=port, help="port on 127.0.0.1, 0 for a free one (PORT, or 0)")
    option("--calls", type=int, default=60, help="number of calls (%(default)s)")
    option("--days", type=float, default=1.0, help="days over which they are spread (%(default)s)")
    option("--end", type=moment, default=now, help="time before which they begin, in ISO 8601 (now)")
    option("--seed", type=int, default=0, help="the same seed gives the same calls (%(default)s)")
    option("--limit", type=LIMIT.parse, default=limit, help="recordings in any period (LIMIT, or 50)")
    option("--period", type=PERIOD.parse, default=period, help="seconds of that period (PERIOD, or 3600)")
    option("--api-key", default="sandbox-key", help="key that is accepted (%(default)s)")
    option("--no-retry-after", action="store_true", help="leave Retry-After out of a 429")
    option("--count-refused", action="store_true", help="let refused requests count as well")
    option("--ignore-filters", action="store_true", help="ignore the filters of GET /calls")
    option("--order", choices=("newest", "oldest", "shuffled"), default="newest", help="order (%(default)s)")
    option("--page-size", type=int, default=DEFAULT_SIZE, help="most calls on a page (%(default)s)")
    option("--log", metavar="FILE", help="append every request to this file, as a line of JSON")
    option(
        "--faults",
        nargs="*",
        type=fault_name,
        metavar="FAULT",
        help=f"add a call for each of these faults of its recording; without names: {SURVIVABLE}",
    )
    return parser


def faulty_calls(faults: list[str], end: datetime) -> list[Call]:
    """Return one call for each fault, within the last minutes.

    :param faults: The faults.
    :param end: All of the calls begin before this time.
    """
    return [
        make_call(id=f"sandbox--{fault}", start_date=end - timedelta(seconds=20 * place))
        for place, fault in enumerate(faults, start=1)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted or terminated.

    :param arguments: The command line, by default that of the process.
    """
    try:
        options = parser().parse_args(arguments)
    except SettingError as problem:
        print(problem, file=sys.stderr)
        return 2
    calls = make_calls(options.calls, end=options.end, days=options.days, seed=options.seed)
    if options.faults is not None:
        calls += faulty_calls(options.faults or SURVIVABLE.split(), options.end)
    sandbox = Sandbox(
        calls=calls,
        api_key=options.api_key,
        limit=options.limit,
        period=options.period,
        retry_after=not options.no_retry_after,
        count_refused=options.count_refused,
        honour_filters=not options.ignore_filters,
        order=options.order,
        page_size=options.page_size,
        log_path=options.log,
        port=options.port,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox.start()
    except OSError as problem:
        print(f"The sandbox cannot start: {problem}", file=sys.stderr)
        return 1
    extra = {"recording_limit": options.limit, "recording_period": options.period}
    connection = json.dumps(
        {"conn_type": "amplemarket", "host": sandbox.url, "password": options.api_key, "extra": extra}
    )
    print(
        f"The Amplemarket sandbox is running; Ctrl-C stops it.\n"
        f"  URL    {sandbox.url}\n"
        f"  key    {options.api_key}\n"
        f"  calls  {len(calls)}, before {options.end:%Y-%m-%d %H:%M:%S %Z}\n"
        f"  limit  {options.limit} recordings in {options.period:g} s\n"
        f"  log    {sandbox.url}/sandbox/log\n"
        f"For Airflow:\n"
        f"  export AIRFLOW_CONN_AMPLEMARKET_DEFAULT={shlex.quote(connection)}",
        flush=True,
    )
    stop.wait()
    sandbox.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
