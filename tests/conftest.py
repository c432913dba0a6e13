"""What all tests share: hypothesis without a clock, since the machine's speed is not under test; in CI the same examples each time;
and plain tracebacks in the log, since drawing them takes longer than most tests."""

import os

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile(
    "flyball", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("flyball")
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo takes longest by far: begun first, nobody waits for it alone in the end."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
