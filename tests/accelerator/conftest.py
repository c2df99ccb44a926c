"""`make test-accelerator` demands an accelerator for these tests; elsewhere they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.accelerator import mode


def pytest_configure():
    if problem := mode.problem():
        raise pytest.UsageError(problem)


def pytest_collection_modifyitems(items):
    if reason := mode.skipped():
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason=reason))
