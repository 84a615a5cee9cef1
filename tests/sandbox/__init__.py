"""The sandbox tells the truth: what it counts, lists and serves, and how it lets things go wrong."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.sandbox.checks", "tests.sandbox.client")
