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

# After these a run can still succeed: the call is archived in the end, or there is no recording of it for good.
SURVIVABLE = "chunked drip flaky large-3 late not-found redirect redirect-away slow too-large"

EPILOG = """\
It prints its URL, and the Airflow connection to use as a line for the shell.
Then it serves until Ctrl-C. LIMIT, PERIOD and PORT are variables of the
environment. A call whose id ends in "--" and the name of a fault has a
recording with that fault, e.g. sandbox--flaky.
"""


def datetime_of(text: str) -> datetime:
    """Return a datetime; without a time zone it is in UTC.

    :param text: The datetime in ISO 8601.
    """
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        problem = f"{text!r} is not a valid datetime; use ISO 8601, e.g. 2026-11-20T00:00:00Z"
        raise argparse.ArgumentTypeError(problem) from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def fault_name(text: str) -> str:
    """Return the name of a fault of recordings.

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
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_amplemarket.sandbox",
        usage="%(prog)s [options]",
        description="Serve the Amplemarket API on this machine, with invented calls.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_server(parser)
    add_limit(parser)
    add_calls(parser)
    return parser


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the options for the server.

    :param parser: The parser of the command line.
    :raises SettingError: When the environment sets a default that cannot be one.
    """
    option = parser.add_argument_group("server").add_argument
    port = PORT.read(0)
    option("--port", type=PORT.parse, default=port, help="port on 127.0.0.1, 0 for a free one (default: PORT, or 0)")
    option("--api-key", metavar="KEY", default="sandbox-key", help="key that is accepted (default: %(default)s)")
    option("--log", metavar="FILE", help="append every request to this file, as a line of JSON")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add the options for the limit of the recording endpoint.

    :param parser: The parser of the command line.
    :raises SettingError: When the environment sets a default that cannot be one.
    """
    option = parser.add_argument_group("limit of the recording endpoint").add_argument
    limit, period = LIMIT.read(50), PERIOD.read(3600.0)
    option(
        "--limit",
        type=LIMIT.parse,
        metavar="N",
        default=limit,
        help="requests that are admitted in any period (default: LIMIT, or 50)",
    )
    option(
        "--period",
        type=PERIOD.parse,
        metavar="SECONDS",
        default=period,
        help="length of that period (default: PERIOD, or 3600)",
    )
    option("--no-retry-after", action="store_true", help="send 429 without Retry-After")
    option("--count-refused", action="store_true", help="count refused requests, too")


def add_calls(parser: argparse.ArgumentParser) -> None:
    """Add the options for the calls and their list.

    :param parser: The parser of the command line.
    """
    option = parser.add_argument_group("calls").add_argument
    now = datetime.now(UTC).replace(microsecond=0)
    option("--calls", type=int, metavar="N", default=60, help="number of calls (default: %(default)s)")
    option("--days", type=float, metavar="N", default=1.0, help="days over which they are spread (default: 1)")
    option(
        "--end",
        type=datetime_of,
        metavar="DATETIME",
        default=now,
        help="datetime in ISO 8601 before which they begin; in UTC, unless it has a time zone (default: now)",
    )
    option("--seed", type=int, metavar="N", default=0, help="the same seed gives the same calls (default: %(default)s)")
    option("--ignore-filters", action="store_true", help="ignore the filters of GET /calls")
    option(
        "--order",
        choices=("newest", "oldest", "shuffled"),
        default="newest",
        help="the calls that GET /calls lists first; shuffled is newest with rows a few places off (default: newest)",
    )
    option(
        "--page-size",
        type=int,
        metavar="N",
        default=DEFAULT_SIZE,
        help="most calls on a page of GET /calls (default: %(default)s)",
    )
    option(
        "--faults",
        nargs="*",
        type=fault_name,
        metavar="FAULT",
        help="add a call for each of these faults of a recording; a wrong name lists all faults. Without names these "
        f"are added, with which a run can still succeed: {SURVIVABLE}",
    )


def faulty_calls(faults: list[str], end: datetime) -> list[Call]:
    """Return one call for each fault, within the last minutes.

    :param faults: The faults.
    :param end: All of the calls begin before this time.
    """
    return [
        make_call(id=f"sandbox--{fault}", start_date=end - timedelta(seconds=20 * place))
        for place, fault in enumerate(faults, start=1)
    ]


def make_sandbox(options: argparse.Namespace) -> Sandbox:
    """Return the sandbox that the command line describes.

    :param options: The options of the command line.
    """
    calls = make_calls(options.calls, end=options.end, days=options.days, seed=options.seed)
    if options.faults is not None:
        calls += faulty_calls(options.faults or SURVIVABLE.split(), options.end)
    return Sandbox(
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


def description(sandbox: Sandbox, options: argparse.Namespace) -> str:
    """Return what is printed of a running sandbox.

    :param sandbox: The sandbox.
    :param options: The options of the command line.
    """
    extra = {"recording_limit": options.limit, "recording_period": options.period}
    connection = json.dumps(
        {"conn_type": "amplemarket", "host": sandbox.url, "password": options.api_key, "extra": extra}
    )
    return (
        f"The Amplemarket sandbox is running; Ctrl-C stops it.\n"
        f"  URL    {sandbox.url}\n"
        f"  key    {options.api_key}\n"
        f"  calls  {len(sandbox.calls)}, before {options.end:%Y-%m-%d %H:%M:%S %Z}\n"
        f"  limit  {options.limit} recordings in {options.period:g} s\n"
        f"  log    {sandbox.url}/sandbox/log\n"
        f"For Airflow:\n"
        f"  export AIRFLOW_CONN_AMPLEMARKET_DEFAULT={shlex.quote(connection)}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted or terminated, and return the exit code.

    :param arguments: The command line, by default that of the process.
    """
    try:
        options = parser().parse_args(arguments)
    except SettingError as problem:
        print(problem, file=sys.stderr)
        return 2
    sandbox = make_sandbox(options)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        sandbox.start()
    except OSError as problem:
        print(f"The sandbox cannot start: {problem}", file=sys.stderr)
        return 1
    print(description(sandbox, options), flush=True)
    stop.wait()
    sandbox.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
