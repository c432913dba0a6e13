"""A strict stand-in for OSCAR's API: whole definitions, deployments over time, jobs by the page. OSCAR's own Python client drives it too."""

from tests.fakes.oscar.cluster import PASSWORD, FakeOscar, definition

__all__ = ["PASSWORD", "FakeOscar", "definition"]
