"""How much of a rate limit is used, in each vendor's spelling; what is not told stays unknown."""

from __future__ import annotations

import pytest

from collectors.ratelimits import used


@pytest.mark.parametrize(
    ("headers", "shares"),
    [
        (
            {
                "x-ratelimit-limit-tokens": "1000",
                "x-ratelimit-remaining-tokens": "250",
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "60",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            {"token_limit_used": 0.75, "request_limit_used": 0.0},
        ),
        (
            {"anthropic-ratelimit-input-tokens-limit": "400", "anthropic-ratelimit-input-tokens-remaining": "100"},
            {"token_limit_used": 0.75},
        ),
        ({"x-ratelimit-remaining-tokens": "250"}, {}),
        ({"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"}, {}),
        ({"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "nan"}, {}),
        ({"x-ratelimit-limit-tokens": "10", "x-ratelimit-remaining-tokens": "25"}, {"token_limit_used": 0.0}),
        ({}, {}),
    ],
)
def test_shares(headers: dict[str, str], shares: dict[str, float]) -> None:
    assert used(headers) == pytest.approx(shares)
