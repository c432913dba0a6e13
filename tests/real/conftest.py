"""In CI a missing real part is a failure: with FLYBALL_REQUIRE_REAL=1 no test marked ``real`` may skip, wherever it lies.

But for what a machine refuses, such as a Docker Engine within another container: that is nothing that could be installed.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

REQUIRE = "FLYBALL_REQUIRE_REAL"
#: How such a skip begins.
REFUSED = "this machine does not allow it"


class _NoSkips:
    """Reports the skip of a real test as its failure, with the reason that it gave."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.skipped and item.get_closest_marker("real"):
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if REFUSED in why:
                return report
            report.outcome = "failed"
            report.longrepr = f"{REQUIRE} is set, so a real part must not be missing: {why}"
        return report


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(REQUIRE) == "1":
        config.pluginmanager.register(_NoSkips())
