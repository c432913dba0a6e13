"""A strict stand-in for HAProxy's stats socket: one backend, one command a connection, and the words of a real HAProxy 2.6."""

from tests.fakes.haproxy.runtime import FakeHAProxy, FakeServer

__all__ = ["FakeHAProxy", "FakeServer"]
