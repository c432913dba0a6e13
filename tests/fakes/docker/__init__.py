"""A strict stand-in for a Docker Engine, for where none may run. Its answers are a real 20.10's (data/recorded/docker)."""

from tests.fakes.docker.engine import FakeDocker

__all__ = ["FakeDocker"]
