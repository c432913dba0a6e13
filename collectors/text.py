"""Text from outside, made fit to be kept: the one place where NUL, lone surrogates and endless strings end."""

from __future__ import annotations

import re

#: Longest text of a label, a fact or an error that is kept: characters.
MOST = 1_000
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def clean(text: str, most: int = MOST) -> str:
    """The text without control characters and lone surrogates (each becomes U+FFFD), cut at ``most`` characters."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return _UNFIT.sub("\ufffd", cut)
