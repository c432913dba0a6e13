"""Amazon's services: moto's own server, and before it a strict layer for what moto lacks or allows though Amazon does not."""

from tests.fakes.aws.server import ACCOUNT, IDENTITY, REGION, FakeAws

__all__ = ["ACCOUNT", "IDENTITY", "REGION", "FakeAws"]
