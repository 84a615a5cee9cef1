"""What the documents name is there: make's targets, modules to run, and paths."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "airflow_provider_amplemarket"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("airflow_provider_amplemarket", "benchmarks", "constraints", "dags", "dev", "docs", "tests")
#: What commands make; it need not be there.
MADE = (".venv", ".stores", ".airflow", "dist")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_of(document: Path) -> list[str]:
    """Return what a document shows as code: its blocks and its spans."""
    text = document.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return blocks + spans


def targets() -> set[str]:
    """Return the Makefile's targets that are no files."""
    [phony] = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(phony.replace("\\\n", " ").split())


def targets_named(document: Path) -> set[str]:
    """Return the targets that a document calls make with."""
    commands = re.findall(r"(?<![\w./-])make((?: +[\w.=-]+)+)", "\n".join(code_of(document)))
    return {word for command in commands for word in command.split() if "=" not in word}


def paths_named(document: Path) -> set[str]:
    """Return the paths that a document links to, or has in its code."""
    links = re.findall(r"\]\((?!\w+:)([^)#]+)[^)]*\)", document.read_text())
    spans = [code for code in code_of(document) if re.fullmatch(r"[\w.-]+/[\w./-]*|[\w-]+\.(py|md|txt|toml)", code)]
    words = re.findall(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]+", "\n".join(code_of(document)))
    return {path for path in [*links, *spans, *words] if not path.startswith(MADE)}


def is_there(path: str, document: Path) -> bool:
    """Return whether a path exists beside the document, at the top or in the package; a mere name may be anywhere."""
    if any((place / path).exists() for place in (document.parent, ROOT, PACKAGE)):
        return True
    return "/" not in path and any(PACKAGE.rglob(path))


@each_document
def test_every_target_that_is_named_is_in_the_makefile(document: Path) -> None:
    assert targets_named(document) - targets() == set()


@each_document
def test_every_path_that_is_named_exists(document: Path) -> None:
    assert [path for path in sorted(paths_named(document)) if not is_there(path, document)] == []


@each_document
def test_every_module_that_is_to_be_run_exists(document: Path) -> None:
    modules = re.findall(r"python3? -m ([\w.]+)", "\n".join(code_of(document)))
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_every_target_is_explained_to_contributors() -> None:
    assert targets() - targets_named(CONTRIBUTING) == set()


def test_every_module_of_the_package_is_in_the_design() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")]
    assert [str(path) for path in files if path.parts[0] != "sandbox" and str(path) not in text] == []
