"""Measure how dense the package's code is, as CONTRIBUTING.md limits it: ``python -m dev.measures``."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from radon.complexity import cc_visit

PACKAGE = Path(__file__).parent.parent / "airflow_provider_amplemarket"
#: Left out: it is a server to try against, and no part of the provider at work.
SANDBOX = PACKAGE / "sandbox"

_INLINE = (ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Function:
    """One function or method.

    :param name: file and name.
    :param complexity: cyclomatic, by radon.
    :param lines: of its body, without docstring.
    """

    name: str
    complexity: int
    lines: int


def functions(path: Path) -> Iterator[Function]:
    """Yield the functions and methods of a file, nested ones with those around them."""
    text = path.read_text()
    lines = {node.lineno: _body_lines(node) for node in ast.walk(ast.parse(text)) if isinstance(node, _FUNCTION)}
    for block in cc_visit(text):
        if block.letter != "C":
            line = block.lineno if block.lineno in lines else min(n for n in lines if n >= block.lineno)
            yield Function(f"{path.relative_to(PACKAGE)}: {block.fullname}", block.complexity, lines[line])


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def inline(path: Path) -> int:
    """Count conditional expressions, ``and``, ``or`` and comprehensions."""
    return sum(isinstance(node, _INLINE) for node in ast.walk(ast.parse(path.read_text())))


def code_lines(path: Path) -> int:
    """Count the lines that have code: neither blank, nor comment, nor docstring."""
    text = path.read_text()
    strings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in strings
        for number, line in enumerate(text.splitlines(), start=1)
    )


def main() -> int:
    """Print the figures; 1 where one is over its limit."""
    files = sorted(path for path in PACKAGE.rglob("*.py") if SANDBOX not in path.parents)
    found = [function for path in files for function in functions(path)]
    code = sum(map(code_lines, files))
    lengths = {path: len(path.read_text().splitlines()) for path in files}
    complex_ones = [function for function in found if function.complexity > 10]
    figures = [
        ("mean complexity", statistics.mean(function.complexity for function in found), 3.0),
        ("functions of complexity over 10 (%)", 100 * len(complex_ones) / len(found), 3.0),
        ("files of over 300 lines", float(sum(length > 300 for length in lengths.values())), 0.0),
        ("90th percentile of the functions' lines", statistics.quantiles([f.lines for f in found], n=10)[-1], 22.0),
        ("inline conditions and comprehensions per 100 lines", 100 * sum(map(inline, files)) / code, 7.0),
    ]
    bodies = sum(function.lines for function in found)
    print(f"{len(files)} files, {sum(lengths.values())} lines, {code} of code")
    print(f"{len(found)} functions with {bodies} lines in their bodies")
    for name, figure, limit in figures:
        print(f"{figure:8.2f}  {name} (at most {limit:g}){'' if figure <= limit else '  <<<'}")
    if "--all" in sys.argv:
        for function in sorted(found, key=lambda function: -function.complexity)[:25]:
            print(f"{function.complexity:4} {function.lines:4}  {function.name}")
        for path, length in lengths.items():
            print(f"{length:5} {100 * inline(path) / max(1, code_lines(path)):6.1f}  {path.relative_to(PACKAGE)}")
    return int(any(figure > limit for _, figure, limit in figures))


if __name__ == "__main__":
    sys.exit(main())
