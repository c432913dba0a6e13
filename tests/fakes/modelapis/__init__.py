"""Strict stand-ins for the admin APIs of OpenAI and Anthropic, after their specifications."""

from tests.fakes.modelapis.organizations import ADMIN_KEY, FakeAnthropic, FakeOpenAI

__all__ = ["ADMIN_KEY", "FakeAnthropic", "FakeOpenAI"]
