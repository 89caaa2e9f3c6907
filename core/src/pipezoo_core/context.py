"""One request and its growth, and the requests of a step. Knows no torch, and no pages: they are the KV cache's."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipezoo_core.drafting import Drafter
from pipezoo_core.errors import EmptyPromptError, InsufficientPagesError, PromptTooLongError
from pipezoo_core.request import (
    GenerationStatus,
    LogProbabilities,
    RequestID,
    TextGenerationOutput,
    TextGenerationRequest,
    Timing,
    Usage,
)
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import TokenMatcher
from pipezoo_core.token_counts import TokenCounts

__all__ = ["TextContext", "TextGenerationInputs"]


class TextContext:
    """The tokens of one request, how many of them the KV cache holds, and whether it is done.

    A step feeds the model the *chunk* `tokens[cache_length : cache_length + active_length]`. For a request of five
    prompt tokens that is fed in chunks of three:

        step   tokens          cache_length  active_length  samples
        1      a b c d e       0             3              no
        2      a b c d e       3             2              yes -> f
        3      a b c d e f     5             1              yes -> g

    A step may feed a *draft*, too: tokens that are not there, but may come. Those that come are there at once, and the
    step's logits behind them are used. Here `h i j` is fed behind `g`, and `h i k` comes:

        step   tokens                cache_length  active_length  draft  next
        4      a b c d e f g         6             4              h i j  h
               a b c d e f g h       7             3              i j    i
               a b c d e f g h i     8             2              j      k
        5      a b c d e f g h i k   9             1

    Args:
        request_id: unique among the requests of a pipeline.
        prompt_tokens: at least one.
        max_length: most tokens of any request, prompt and answer together.
        sampling_params: complete settings.
        end_token_ids: the model's own end-of-sequence tokens.
        matcher: where the answer stands in the request's grammar; None where it has none.
        lora: name of the adapter it uses; None for the model as it is.
        bad_words: the tokens of what is kept out of the answer, none of them empty.
        arrival_time: when the request was handed over, by `time.monotonic`; None for now.

    Attributes:
        arrival_time: from then on its times count.
        allowed_tokens: the only tokens that may be generated; None allows all.
        biased_tokens: those whose logits `biases` are added to.
        token_counts: how often each token is there.
        generated_counts: how often each token is in the answer.
        stop_tokens: those of `stop_token_ids`, as an array.
        max_num_tokens: most tokens of this one, with what `max_new_tokens` leaves of `max_length`.
        draft: the tokens at the end of the chunk that are not there yet.
        num_draft_tokens: how many tokens of drafts were fed.
        num_accepted_tokens: how many of these came.
        cache_namespace: requests share pages of the KV cache only with others of the same namespace.
        stop_reason: the stop text, or the one of `stop_token_ids`, that ended the answer.

    Raises:
        EmptyPromptError: there are no prompt tokens.
        PromptTooLongError: the prompt leaves no room for one more token.
    """

    def __init__(
        self,
        *,
        request_id: RequestID,
        prompt_tokens: Sequence[int],
        max_length: int,
        sampling_params: SamplingParams,
        end_token_ids: Collection[int] = (),
        matcher: TokenMatcher | None = None,
        lora: str | None = None,
        bad_words: Sequence[Sequence[int]] = (),
        arrival_time: float | None = None,
    ) -> None:
        if not prompt_tokens:
            raise EmptyPromptError("the prompt is empty", cure="Give at least one token of text.")
        if len(prompt_tokens) >= max_length:
            raise PromptTooLongError(
                "the prompt is too long for the model's context",
                found=f"{len(prompt_tokens)} tokens",
                allowed=f"at most {max_length - 1}, which leaves room for one new token",
                cure="Shorten the prompt, or raise max_length if the model allows it.",
            )
        self.request_id = request_id
        self.sampling_params = sampling_params
        self.matcher = matcher
        self.lora = lora
        self.bad_words = [list(word) for word in bad_words]
        allowed = sampling_params.allowed_token_ids
        self.allowed_tokens = None if allowed is None else np.array(allowed, dtype=np.int64)
        bias = sampling_params.logit_bias
        self.biased_tokens = np.array([*bias], dtype=np.int64)
        self.biases = np.array([*bias.values()], dtype=np.float32)
        self.cache_namespace = ""
        self._own(prompt_tokens)
        self.prompt_length = len(self.tokens)
        self.cache_length = 0
        self.active_length = 0
        self.draft: Sequence[int] = ()
        self.num_draft_tokens = self.num_accepted_tokens = 0
        self.status = GenerationStatus.ACTIVE
        self.error: BaseException | None = None
        own = frozenset(sampling_params.stop_token_ids)
        self.stop_token_ids = own if sampling_params.ignore_eos else own | frozenset(end_token_ids)
        self.stop_tokens = np.array([*self.stop_token_ids], dtype=np.int64)
        wanted = sampling_params.max_new_tokens
        room = max_length - self.prompt_length
        self.stop_reason: str | int | None = None
        self.max_num_tokens = self.prompt_length + (room if wanted is None else min(wanted, room))
        self.arrival_time = time.monotonic() if arrival_time is None else arrival_time
        self._start_time: float | None = None
        self._first_token_time: float | None = None
        self._num_cached_tokens = 0

    def another(self, request: TextGenerationRequest) -> TextContext:
        """Returns the context of a request that differs in its id and its seed alone. This one has not begun yet."""
        assert self.cache_length == self.num_generated == 0
        assert request.sampling_params is not None
        other = copy.copy(self)
        other.request_id = request.request_id
        other.sampling_params = request.sampling_params
        other.matcher = None if self.matcher is None else self.matcher.anew()
        other._own(self.tokens)
        return other

    def _own(self, prompt_tokens: Sequence[int]) -> None:
        """Makes what changes as the request grows."""
        self.tokens = list(prompt_tokens)
        self.token_counts = TokenCounts(self.tokens)
        self.generated_counts = TokenCounts(self.tokens, len(self.tokens))
        self.prompt_log_probabilities = LogProbabilities([], [])
        self._random = random.Random(self.sampling_params.seed)

    @cached_property
    def drafter(self) -> Drafter:
        """Guesses what comes next, from what is there."""
        return Drafter(self.tokens)

    @property
    def generated_tokens(self) -> list[int]:
        """The tokens of the answer so far."""
        return self.tokens[self.prompt_length :]

    @property
    def num_generated(self) -> int:
        """How many tokens the answer has."""
        return len(self.tokens) - self.prompt_length

    @property
    def num_pending(self) -> int:
        """How many tokens the model has not seen yet; at least one."""
        return len(self.tokens) - self.cache_length

    @property
    def chunk(self) -> list[int]:
        """The tokens this step feeds to the model."""
        chunk = self.tokens[self.cache_length : self.cache_length + self.active_length]
        return [*chunk, *self.draft] if self.draft else chunk

    @property
    def samples(self) -> bool:
        """Whether this step's chunk reaches the last token, so that a new one follows."""
        return self.active_length >= self.num_pending

    @property
    def is_followed(self) -> bool:
        """Whether the step has logits for the next token still: the last one is there, and was in the draft."""
        return self.active_length > 0 and not self.status.is_done

    @property
    def may_end(self) -> bool:
        """Whether `min_new_tokens` is reached once the next token is there."""
        return self.num_generated + 1 > self.sampling_params.min_new_tokens

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the logits of every prompt token are needed (echo), so that none may come from the prefix cache."""
        return self.sampling_params.echo and self.num_generated == 0

    def begin(self) -> None:
        """Notes that the first step is about to begin. Does nothing when the request begins anew (preemption)."""
        if self._start_time is None:
            self._start_time = time.monotonic()
            self._num_cached_tokens = self.cache_length

    def set_chunk(self, num_tokens: int) -> None:
        """Says how many pending tokens the next step feeds."""
        assert 1 <= num_tokens <= self.num_pending, (num_tokens, self.num_pending)
        self.active_length = num_tokens
        self.draft = ()

    def set_draft(self, tokens: Sequence[int]) -> None:
        """Says which tokens the next step feeds behind a chunk that reaches the last token."""
        assert self.active_length == self.num_pending, "a draft follows the last token"
        self.draft = tokens
        self.active_length += len(tokens)
        self.num_draft_tokens += len(tokens)

    def drop_draft(self) -> None:
        """Takes the draft back, before the step."""
        self.active_length -= len(self.draft)
        self.num_draft_tokens -= len(self.draft)
        self.draft = ()

    def skip_to(self, cache_length: int) -> None:
        """Notes that the KV cache already holds the first `cache_length` tokens (a prefix hit)."""
        assert self.cache_length <= cache_length < len(self.tokens), (cache_length, len(self.tokens))
        self.cache_length = cache_length

    def restart(self) -> None:
        """Forgets what was cached (preemption): all tokens, the generated ones too, are fed anew."""
        self.cache_length = 0
        self.active_length = 0
        self.draft = ()
        self.prompt_log_probabilities = LogProbabilities([], [])

    def draw(self) -> float:
        """Draws the random number in [0, 1) that decides the next token."""
        return self._random.random()

    def advance(self, next_token: int | None) -> None:
        """Notes that the chunk went through the model and, where it reached the end, the token that came out.

        Where that is the first one of the draft, the chunk is from then on that token and the rest of the draft.
        """
        assert self.active_length > 0
        assert not self.status.is_done
        draft, self.draft = self.draft, ()
        self.cache_length += self.active_length - len(draft)
        self.active_length = 0
        if next_token is None:
            return
        may_end = self.may_end
        if self._first_token_time is None:
            self._first_token_time = time.monotonic()
        self.tokens.append(next_token)
        if may_end and next_token in self.stop_token_ids:
            self.status = GenerationStatus.END_OF_SEQUENCE
            self.stop_reason = next_token if next_token in self.sampling_params.stop_token_ids else None
        elif len(self.tokens) >= self.max_num_tokens:
            self.status = GenerationStatus.MAXIMUM_LENGTH
        if draft and next_token == draft[0]:
            self.num_accepted_tokens += 1
            self.draft, self.active_length = draft[1:], len(draft)

    def finish(self, status: GenerationStatus, error: BaseException | None = None) -> None:
        """Ends the request from outside: a stop text was met, the caller cancelled, or `error` says why it failed."""
        self.status = status
        self.error = error

    def output(self, *, text: str = "", tokens: Sequence[int] = ()) -> TextGenerationOutput:
        """Returns an output that says where the request stands; the last one has its usage and timing, too.

        Args:
            text: what is new of the answer's text.
            tokens: what is new of its tokens.
        """
        return TextGenerationOutput(
            request_id=self.request_id,
            text=text,
            tokens=list(tokens),
            final_status=self.status,
            error=self.error,
            stop_reason=self.stop_reason,
            usage=self._usage() if self.status.is_done else None,
            timing=self._timing() if self.status.is_done else None,
        )

    def _usage(self) -> Usage:
        return Usage(
            self.prompt_length,
            self._num_cached_tokens,
            self.num_generated,
            self.num_draft_tokens,
            self.num_accepted_tokens,
        )

    def _timing(self) -> Timing:
        def since_arrival(moment: float | None) -> float | None:
            return None if moment is None else moment - self.arrival_time

        return Timing(
            queue=since_arrival(self._start_time),
            first_token=since_arrival(self._first_token_time),
            total=time.monotonic() - self.arrival_time,
        )

    def check_fits(self, num_cache_tokens: int) -> None:
        """Checks that the request fits the KV cache even when it is alone there.

        Raises:
            InsufficientPagesError: prompt and answer together need more tokens than `num_cache_tokens`.
        """
        needed, num_new = self.max_num_tokens - 1, self.max_num_tokens - self.prompt_length  # the last is never fed
        if needed > num_cache_tokens:
            raise InsufficientPagesError(
                "the KV cache is too small for this request",
                found=f"{self.prompt_length} prompt tokens and up to {num_new} new ones",
                allowed=f"{num_cache_tokens + 1} tokens together",
                cure="Lower max_new_tokens, or load with more kv_cache_memory.",
            )


@dataclass(frozen=True, slots=True)
class TextGenerationInputs:
    """The requests of one step.

    Attributes:
        batches: one dict per replica, request id -> its context. Every context's chunk is set and its pages are
            reserved.
        num_steps: how many tokens to generate for each context.
    """

    batches: list[dict[RequestID, TextContext]]
    num_steps: int = 1

    @property
    def batch(self) -> list[TextContext]:
        """All contexts, in the order in which the model sees them."""
        return [context for batch in self.batches for context in batch.values()]
