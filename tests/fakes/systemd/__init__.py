"""A stand-in for ``systemctl``: it answers in systemd's form, and starts real processes with the variables of their files."""

from tests.fakes.systemd.units import FakeSystemd

__all__ = ["FakeSystemd"]
