"""What an answer's text has to look like: a JSON schema, a regular expression or a grammar, followed token by token.

The grammars are llguidance's, an optional dependency that is imported when the first request asks for one. Knows no
torch and no batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pipezoo_core.errors import InvalidGrammarError, MissingDependencyError, UnsupportedTokenizerError
from pipezoo_core.grammar_trial import GrammarTrial, new_matcher
from pipezoo_core.panics import panics_as_exceptions
from pipezoo_core.process_lock import ProcessLock
from pipezoo_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy import bool_
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["JSON_WHITESPACE", "GrammarCompiler", "TokenMatcher", "check_constraint", "check_min_properties"]

JSON_WHITESPACE = r"\x20|\n[\x20\t]{0,32}"
"""What may stand between two tokens of JSON: nothing, a space, or a line break with an indent. Without a bound, a small
model that has begun to write spaces may never stop."""

_MAX_SIZE = 1 << 17  # characters: a schema of thousands of names has fewer
_END_OF_ANSWER = "<|pipezoo end of answer|>"
_AS_IT_IS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_MAX_UNUSED = 1 << 16


class TokenMatcher:
    """Where one answer stands in its grammar. Belongs to the request's context, so a preemption leaves it as it is.

    Args:
        new_ll_matcher: makes llguidance's, at the beginning of the grammar.
        end: the token that stands for the end of the answer in llguidance's vocabulary, and nowhere else.
        end_token_ids: the model's own end tokens. They are never text.

    Attributes:
        ll_matcher: llguidance's, where the answer stands.
        is_complete: the text satisfies the grammar, and nothing can follow.
        error: why the answer cannot go on: the grammar has become too complex, or no token of the vocabulary fits.
    """

    def __init__(self, new_ll_matcher: Callable[[], LLMatcher], *, end: int, end_token_ids: Collection[int]) -> None:
        self._new_ll_matcher = new_ll_matcher
        self.ll_matcher = new_ll_matcher()
        self.is_complete = False
        self.error: InvalidGrammarError | None = None
        self._end = end
        self._end_token_ids = list(end_token_ids)
        self._scout: LLMatcher | None = None
        self._ahead_of_scout: list[int] = []

    def anew(self) -> TokenMatcher:
        """Returns another answer's, at the beginning of the same grammar.

        It is no copy. llguidance's would have the lexer in common, which fails for all once one has too many states.
        """
        return TokenMatcher(self._new_ll_matcher, end=self._end, end_token_ids=self._end_token_ids)

    @property
    def num_tokens(self) -> int:
        """The length of llguidance's masks."""
        return self._end + 1

    @property
    def is_done(self) -> bool:
        """Whether no further token can follow."""
        return self.is_complete or self.error is not None

    def consume(self, token: int) -> None:
        """Notes the answer's next token, which is not one that ended the request."""
        self.ll_matcher.consume_token(token)
        self._ahead_of_scout.append(token)
        self._check()
        self.is_complete = self.error is None and self.ll_matcher.is_stopped()

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """Returns how many of these tokens the grammar allows, one after the other; it stays where it is.

        A matcher of its own tries them: llguidance keeps the lexer's states of all that it tries, and fails once there
        are too many, which tokens that never come shall not bring about. Where that one fails, none is allowed.
        """
        if self._scout is None:
            self._scout = self._new_ll_matcher()
        if self._ahead_of_scout:
            self._scout.consume_tokens(self._ahead_of_scout)
            self._ahead_of_scout.clear()
        known = [*takewhile(lambda token: token < self._end, tokens)]  # others are an error to it
        return 0 if self._scout.is_error() else self._scout.validate_tokens(known)

    def settle(self, allowed_V: NDArray[bool_], *, stop_token_ids: Collection[int], may_end: bool) -> None:
        """Turns what the grammar allows next into what the request allows next, in place.

        The end and stop tokens of the request are allowed where the grammar accepts the text as it is. Where the
        request may not end yet, they are barred, unless nothing else is left: the grammar has the last word. Where
        nothing at all is left, the matcher is complete, or has an error.

        Args:
            allowed_V: of llguidance, [num_tokens].
            stop_token_ids: of the request, the model's own ones included where they are not ignored.
            may_end: whether the request may end with the next token.
        """
        accepts = bool(allowed_V[self._end])
        stops = [token for token in stop_token_ids if token < self._end]
        allowed_V[[self._end, *self._end_token_ids]] = False
        if not may_end:
            needed = allowed_V[stops]
            allowed_V[stops] = False
            if not allowed_V.any():
                allowed_V[stops] = needed
        is_at_end = not allowed_V.any()
        self._check(is_stuck=is_at_end and not accepts)
        self.is_complete = self.error is None and is_at_end
        if accepts and may_end:
            allowed_V[stops] = True

    def _check(self, *, is_stuck: bool = False) -> None:
        if self.error is None and (is_stuck or self.ll_matcher.is_error()):
            self.error = InvalidGrammarError(
                "the answer cannot follow its grammar any further",
                found=_reason(self.ll_matcher),
                cure="Simplify the grammar, or take a model whose vocabulary can spell it.",
            )


class _Bytes:
    """A tokenizer whose vocabulary is the bytes."""

    @property
    def backend_tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


def check_constraint(params: SamplingParams) -> None:
    """Tries a request's grammar before there is a model, over a vocabulary that spells everything: the bytes.

    What passes may still be refused by a model's own `GrammarCompiler`, whose tokens it can take longer to find.

    Raises:
        MissingDependencyError: llguidance is not installed.
        InvalidGrammarError: as of `GrammarCompiler.matcher`.
    """
    GrammarCompiler(_Bytes(), end_token_ids=[]).matcher(params)


class GrammarCompiler:
    """Makes matchers over one model's vocabulary, which is handed to llguidance on first use.

    Args:
        delegate: the model's tokenizer; not changed.
        end_token_ids: the tokens at which the model itself ends an answer.
    """

    def __init__(self, delegate: PreTrainedTokenizerBase | _Bytes, *, end_token_ids: Collection[int]) -> None:
        self._delegate = delegate
        self._end_token_ids = end_token_ids
        self._engine: tuple[LLTokenizer, GrammarTrial] | None = None
        self._lock = ProcessLock()

    def matcher(self, params: SamplingParams) -> TokenMatcher | None:
        """Returns a matcher for the request's grammar, or None where it has none.

        Raises:
            MissingDependencyError: llguidance is not installed.
            UnsupportedTokenizerError: llguidance cannot read the model's tokenizer.
            InvalidGrammarError: the grammar is malformed, too large or too complex, cannot be satisfied, or llguidance
                cannot express it.
        """
        if params.constraint is None:
            return None
        try:
            import llguidance  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"setting {params.constraint!r} needs the package llguidance",
                cure="Try: pip install 'pipezoo-core[structured]'",
            ) from error
        grammar = _grammar(params)
        with self._lock:
            if self._engine is None:
                self._engine = _engine(self._delegate)
        tokenizer, trial = self._engine
        trial.check(grammar)
        inside = [token for token in self._end_token_ids if token < tokenizer.eos_token]
        matcher = TokenMatcher(partial(new_matcher, tokenizer, grammar), end=tokenizer.eos_token, end_token_ids=inside)
        matcher.ll_matcher.compute_bitmask()  # some grammars are found to allow nothing, or too much at once, only here
        if matcher.ll_matcher.is_error():
            raise _invalid(params.constraint, _reason(matcher.ll_matcher))
        return matcher


def _grammar(params: SamplingParams) -> str:
    """Returns the request's grammar as llguidance takes it.

    Raises:
        InvalidGrammarError: it is too long, or not even well-formed text.
    """
    from llguidance import LLMatcher

    assert params.constraint is not None
    text = "".join(getattr(params, params.constraint))  # the texts of a choice
    if len(text) > _MAX_SIZE:
        raise InvalidGrammarError(
            f"the request's {params.constraint} is too long",
            found=f"{len(text)} characters",
            allowed=f"at most {_MAX_SIZE}",
        )
    try:
        if params.json_schema is not None:
            check_min_properties(json.loads(params.json_schema))
            return LLMatcher.grammar_from_json_schema(
                params.json_schema, defaults={"whitespace_pattern": JSON_WHITESPACE}
            )
        if params.regex is not None:
            if (len(params.regex) - len(params.regex.rstrip("\\"))) % 2:  # llguidance would drop it
                raise ValueError("a single backslash at the end")
            return LLMatcher.grammar_from_regex(params.regex)
        if params.choice is not None:
            return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(_lark_text, params.choice))}")
        assert params.grammar is not None
        return LLMatcher.grammar_from_lark(params.grammar)
    except ValueError as error:
        raise _invalid(params.constraint, error) from error


def _lark_text(text: str) -> str:
    """Returns a text as Lark writes it: like JSON, with the last control character of ASCII escaped, too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def check_min_properties(schema: object) -> None:
    """Refuses a number of keys that llguidance cannot hold, because it lets a key that has no name repeat.

    Raises:
        ValueError: there has to be such a number of them.
    """
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            least, required = part.get("minProperties"), part.get("required")
            num_required = len(set(map(str, required))) if isinstance(required, list) else 0
            if isinstance(least, int | float) and least > max(1, num_required):
                raise ValueError(f"minProperties {least} can be met by repeating a key; name the keys in 'required'")
            parts.extend(value for key, value in part.items() if key not in ("const", "enum"))
        elif isinstance(part, list):
            parts.extend(part)


def _engine(delegate: Any) -> tuple[LLTokenizer, GrammarTrial]:
    """Hands a vocabulary to llguidance, here and where grammars are tried.

    It has one more token behind all others that stands for the end of an answer. So a model's end tokens, of which
    there may be any number, also none, are kept out of the grammar altogether.
    """
    from llguidance import LLTokenizer

    try:
        with panics_as_exceptions():
            vocabulary, end = _with_end(delegate.backend_tokenizer.to_str())
            return LLTokenizer(vocabulary, eos_token=end), GrammarTrial(vocabulary, end)
    except Exception as error:  # a tokenizer without a backend, or of a kind that llguidance does not know
        raise UnsupportedTokenizerError(
            "llguidance cannot read the model's tokenizer",
            found=f"{type(delegate).__name__}: {error}",
            allowed="fast tokenizers (tokenizer.json) with byte-level or byte-fallback decoding",
            cure="Ask for no json_schema, regex, grammar or choice with this model.",
        ) from error


def _with_end(tokenizer_json: str) -> tuple[str, int]:
    """Returns a tokenizer.json with a token for the end of an answer, which is the last one, and that token's id.

    Ids that no token has get special ones, which are no text: otherwise, the end would be the first of them, and all
    tokens behind it were barred.

    Raises:
        ValueError: the ids are far apart.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings, ids = json.loads(tokenizer.to_str()), set(tokenizer.get_vocab(with_added_tokens=True).values())
    end = max(ids) + 1
    if end - len(ids) > _MAX_UNUSED:
        raise ValueError(f"{end - len(ids)} ids up to {end} have no token")
    added = {i: f"<|pipezoo unused {i}|>" for i in range(end) if i not in ids} | {end: _END_OF_ANSWER}
    settings["added_tokens"] += [
        {"id": token, "content": text, "special": True, **_AS_IT_IS} for token, text in added.items()
    ]
    if isinstance(vocabulary := settings["model"]["vocab"], dict):  # of a list, which has no gaps, ids are the order
        for entry in settings["added_tokens"]:  # those that are not in it would be counted from its size on
            vocabulary.setdefault(entry["content"], entry["id"])
    return json.dumps(settings), end


def _invalid(name: str, reason: object) -> InvalidGrammarError:
    return InvalidGrammarError(
        f"the request's {name} cannot be used",
        found=reason,
        allowed="what llguidance documents for it: https://github.com/guidance-ai/llguidance/tree/main/docs",
    )


def _reason(matcher: LLMatcher) -> str:
    reason = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return "no token of the vocabulary can follow" if not reason or reason.startswith("NoExtension") else reason
