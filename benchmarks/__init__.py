"""
What the provider is measured by, side by side with what a user would write otherwise.

``python -m benchmarks`` runs all of it and writes ``docs/benchmarks.md``; ``python -m benchmarks burst memory`` runs
some.
Every module has a ``run()`` that returns rows of the table, and a docstring that describes how it measures.
"""
