"""A strict stand-in for Azure: ARM with Machine Learning's online endpoints, Azure Monitor, and the endpoints' own scoring address.

It speaks HTTP on loopback, keeps state, refuses what Azure refuses, and lets operations take their time. It is itself driven by the
official SDKs, in ``test_azure_sdk.py``.
"""

from tests.fakes.azure.cloud import Cloud, Fault, Law
from tests.fakes.azure.server import FakeAzure

__all__ = ["Cloud", "FakeAzure", "Fault", "Law"]
