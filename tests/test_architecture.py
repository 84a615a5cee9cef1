"""The rooms of the package, and what stands beside it: who may know whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_amplemarket

PACKAGE = Path(airflow_provider_amplemarket.__file__).parent
NAME = "airflow_provider_amplemarket"
CHECKOUT = Path(__file__).parents[1]

#: From the top of the house to its ground floor; the wings on one storey do not know each other.
STOREYS = [{"operators"}, {"run"}, {"hooks"}, {"api", "archive", "quota"}]
ROOMS = {room for storey in STOREYS for room in storey}
#: What is on the ground floor and may be used by everybody; it uses nothing from above.
GROUND_FLOOR = {
    "audio",
    "calls",
    "exceptions",
    "get_provider_info",
    "interrupt",
    "plugin",
    "pool",
    "priority",
    "threads",
    "triggers",
}
OUTSIDE = {"sandbox"}


def all_imports(path: Path) -> Iterator[str]:
    """Yield all that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, below the package's name."""
    yield from (name.removeprefix(f"{NAME}.") for name in all_imports(path) if name.startswith(f"{NAME}."))


def room_of(path: Path) -> str:
    """Return the first part of a file's name below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) != "__init__")


def storey_of(room: str) -> int:
    """Return how far below the top a room is."""
    return next((number for number, storey in enumerate(STOREYS) if room in storey), len(STOREYS))


def used() -> list[tuple[str, str, str]]:
    """Return for each import of one room in another: the file, its room, and the other one."""
    found = [(path, room_of(path), name.split(".")[0]) for path in files() for name in imports(path)]
    return [(str(path.relative_to(PACKAGE)), room, other) for path, room, other in found if room != other]


def test_every_file_has_a_room() -> None:
    assert {room_of(path) for path in files()} == ROOMS | GROUND_FLOOR | OUTSIDE


def test_nothing_is_imported_upwards_or_across() -> None:
    wrong = [
        (file, other)
        for file, room, other in used()
        if other in ROOMS and room not in OUTSIDE and storey_of(other) <= storey_of(room)
    ]
    assert wrong == []


def test_nothing_imports_the_sandbox_and_it_imports_nothing() -> None:
    assert [(file, other) for file, room, other in used() if OUTSIDE & {room, other} and other != "__version__"] == []


def test_what_answers_people_never_imports_a_run() -> None:
    assert [file for file, room, other in used() if room in ("ui", "cli") and other == "run"] == []


def test_the_api_knows_nothing_of_airflow() -> None:
    for path in (PACKAGE / "api").rglob("*.py"):
        assert [name for name in all_imports(path) if name.split(".")[0] == "airflow"] == []


@pytest.mark.parametrize(
    ("folder", "others"),
    [
        (PACKAGE, {"benchmarks", "dags", "dev", "tests"}),
        (CHECKOUT / "dags", {"benchmarks", "dev", "tests"}),
        (CHECKOUT / "dev", {"benchmarks", "dags", "tests"}),
        (CHECKOUT / "benchmarks", {"dags", "tests"}),
        (CHECKOUT / "tests", {"benchmarks", "dags"}),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_what_developers_run_knows_the_package_and_not_the_other_way_round(folder: Path, others: set[str]) -> None:
    found = [(str(path), name) for path in folder.rglob("*.py") for name in all_imports(path)]
    assert [(path, name) for path, name in found if name.split(".")[0] in others] == []
