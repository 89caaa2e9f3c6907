"""Tries grammars in a process of its own, which a grammar may crash or keep busy in place of the caller's.

llguidance follows a grammar's rules by recursion, and some short grammars keep it busy for hours. What is let through
here has used half of the stack that a thread has elsewhere, little memory and little time. Knows no torch; the process
imports llguidance and nothing else.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipezoo_core.errors import InvalidGrammarError, MissingDependencyError
from pipezoo_core.line_process import LineProcess, ProcessEndedError, ProcessNotStartedError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["GrammarTrial", "new_matcher"]

_STACK = 1 << 20  # bytes; the threads that compute masks have twice as much
_MEMORY = 1 << 29  # bytes, besides those of the vocabulary
_SECONDS = 2.0  # of CPU time to compile it, so that a busy machine refuses nothing more
_SECONDS_PER_TOKEN = 0.25  # of CPU time; the other requests of a step wait for it
# Of the answers that are tried: some grammars explode in some answers only, most of them soon, some at a later token.
_NUMS_OF_TOKENS = (64,) * 8 + (8,) * 24
_NUM_KNOWN = 64  # grammars that were let through: prompts of a list, and of a program, have the same ones
_MAX_LEXER_STATES = 20_000  # of up to 2 kB each, which a running request keeps
# What holds a step of a running request, whose grammar may explode behind the tokens that were tried. An ambiguous one
# takes time by the square of the items; a schema of a thousand optional names needs some 4,000 of them in a step.
_MAX_ITEMS_IN_ROW = 1_000
_MAX_ITEMS_IN_STEP = 6_000


def new_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Returns llguidance's matcher, at the beginning of the grammar."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        verbose_errors=False,
        max_lexer_states=_MAX_LEXER_STATES,
        max_items_in_row=_MAX_ITEMS_IN_ROW,
        step_max_items=_MAX_ITEMS_IN_STEP,
    )
    return LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


class GrammarTrial:
    """A process that tries one grammar after the other. It starts with the first one, and anew where it was ended.

    Args:
        vocabulary: the text of a tokenizer.json.
        end: the token that stands for the end of the answer.
    """

    def __init__(self, vocabulary: str, end: int) -> None:
        process = LineProcess(
            [sys.executable, "-P", "-m", "pipezoo_core.grammar_trial"],
            first=_line([vocabulary, end]),
            environment=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._check = lru_cache(_NUM_KNOWN)(partial(_check, process))

    def check(self, grammar: str) -> None:
        """Waits until the grammar was compiled and a few tokens were spelled by it, or remembers that it was.

        Raises:
            InvalidGrammarError: that took too much time, stack or memory.
            MissingDependencyError: no process can be started that imports llguidance.
        """
        self._check(grammar)


def _check(process: LineProcess, grammar: str) -> None:
    try:
        process.ask(_line(grammar))
    except ProcessEndedError as error:
        raise InvalidGrammarError(
            "the request's grammar is too complex",
            found=f"{len(grammar)} characters",
            allowed=f"what compiles in {_SECONDS:g} s and finds a token in {_SECONDS_PER_TOKEN:g} s of CPU "
            f"time, with {_STACK >> 20} MiB of stack and {_MEMORY >> 20} MiB of memory",
            cure="Simplify the grammar: fewer rules within rules, names, repetitions and combined patterns.",
        ) from error
    except ProcessNotStartedError as error:
        raise MissingDependencyError(
            "the process that tries grammars does not start",
            found=error,
            cure=f"Check that {sys.executable} can import llguidance.",
        ) from error


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _spell(tokenizer: LLTokenizer, grammar: str) -> None:
    """Compiles a grammar and spells the beginnings of random answers."""
    matcher, rng = new_matcher(tokenizer, grammar), random.Random(0)
    for num_tokens in _NUMS_OF_TOKENS:
        _spell_one(matcher.deep_copy(), num_tokens, tokenizer.eos_token, rng)


def _spell_one(matcher: LLMatcher, num_tokens: int, end: int, rng: random.Random) -> None:
    for _ in range(num_tokens):
        signal.setitimer(signal.ITIMER_PROF, _SECONDS_PER_TOKEN)
        bits = matcher.compute_bitmask()
        if matcher.is_error() or matcher.is_stopped():
            return
        matcher.consume_token(_some_token(bits, end, rng))


def _some_token(bits: bytes, end: int, rng: random.Random) -> int:
    """Returns one of the tokens whose bits are set: of the first byte that has any from a random place on.

    The end only where no other is left: an answer that goes on is the one that may explode.
    """
    others = bytearray(bits)
    others[end // 8] &= ~(1 << end % 8)
    rest = others[rng.randrange(len(bits)) :].lstrip(b"\0") or others.lstrip(b"\0") or bits.lstrip(b"\0")
    return 8 * (len(bits) - len(rest)) + rng.choice([bit for bit in range(8) if rest[0] >> bit & 1])


def _limit_memory() -> None:
    import resource

    statistics = Path("/proc/self/statm")
    if statistics.exists():
        limit = int(statistics.read_text().split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve() -> None:
    """Answers each line with an empty one, until there are no more; a signal ends the process at a bad grammar."""
    from llguidance import LLTokenizer

    vocabulary, end = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(vocabulary, eos_token=end)
    _limit_memory()
    threading.stack_size(_STACK)
    print(flush=True)  # noqa: T201
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        thread = threading.Thread(target=_spell, args=(tokenizer, json.loads(line)))
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
