"""A strict stand-in for a LiteLLM proxy 1.106 without a database: what it answers was seen of the real one (``tests/real/test_litellm.py``).

It knows its master key alone, reads its file when it starts and never again, and gives a deployment without an id the hash of its limits.
"""

from tests.fakes.litellm.proxy import MASTER_KEY, FakeProxy

__all__ = ["MASTER_KEY", "FakeProxy"]
