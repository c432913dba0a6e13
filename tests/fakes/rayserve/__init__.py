"""A strict stand-in for Ray Serve's REST API: a PUT is of everything, and its answers and states are those of a real Ray Serve 2.60."""

from tests.fakes.rayserve.dashboard import FakeApplication, FakeRayServe

__all__ = ["FakeApplication", "FakeRayServe"]
