"""Prompts of a wanted length in tokens, without a tokenizer: plain words, sized by what the server's own usage says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Short, common words: most tokenizers give each one token, and the calibration corrects for those that do not.
_TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city name team minute idea body back parent face level office door health person art war history
party result change morning reason research girl guy moment air teacher force
"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class TokensPerWord:
    """A prompt of n words has ``fixed + each * n`` tokens: the template's own, and the words'."""

    fixed: float = 0.0
    each: float = 1.0

    @classmethod
    def fitted(cls, few: tuple[int, int], many: tuple[int, int]) -> TokensPerWord:
        """From two prompts, each as (words, tokens). Falls back to one token a word where they make no sense."""
        words, tokens = many[0] - few[0], many[1] - few[1]
        if words <= 0 or tokens <= 0:
            return cls()
        each = tokens / words
        return cls(max(0.0, few[1] - each * few[0]), each)

    def words(self, tokens: int) -> int:
        """How many words make a prompt of about that many tokens; at least one."""
        return max(1, round((tokens - self.fixed) / self.each))


def prompt_of(words: int, rng: np.random.Generator) -> str:
    """That many words, drawn. Drawn anew for each request, so that no prefix cache has seen it."""
    return " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), words))
