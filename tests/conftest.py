"""What all tests share: hypothesis without a clock, since the machine's speed is not under test; in CI the same examples each time."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "flyball", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("flyball")
