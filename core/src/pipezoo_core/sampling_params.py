"""How the next token of a request is chosen and when the request ends. Knows no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from pipezoo_core.errors import InvalidSettingError, shown
from pipezoo_core.settings import Settings

__all__ = ["NUMBERS_SAMPLED_AT_ONCE", "NUM_ECHOED_AT_ONCE", "SamplingParams"]

NUMBERS_SAMPLED_AT_ONCE = 2**18
"""Logits that are sampled from together: it takes a dozen tensors like them, too much for a full batch at once."""

NUM_ECHOED_AT_ONCE = 16
"""Rows of logits that a step may have besides one per request of a full batch, for prompts that are echoed."""

_Text = Annotated[str, Field(min_length=1, max_length=1024)]
_Probability = Annotated[float, Field(ge=0.0, le=1.0)]
_NEARLY_ZERO = 1e-5  # below it, dividing logits by the temperature overflows before it changes anything
_MAX_NUM_TOKENS = 2**31 - 1
_MAX_ENTRIES = {
    "logit_bias": 4096,
    "stop": 128,
    "stop_token_ids": 4096,
    "bad_words": 128,
    "allowed_token_ids": 2**18,
    "choice": 1024,
    "logits_processors": 16,
}
_CONSTRAINTS = ("json_schema", "regex", "grammar", "choice")
_BARRING = ("logits_processors", "allowed_token_ids", "bad_words", "logit_bias", *_CONSTRAINTS)
_ELSEWHERE = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "max_length": "max_new_tokens, which counts the answer alone; max_length is a setting of registry.load",
    "min_tokens": "min_new_tokens",
    "min_length": "min_new_tokens, which counts the answer alone",
    "logprobs": "log_probabilities",
    "top_logprobs": "log_probabilities",
    "output_scores": "log_probabilities",
    "n_probs": "log_probabilities",
    "prompt_logprobs": "log_probabilities and echo=True",
    "temp": "temperature",
    "do_sample": "temperature=0 to take the most likely token, and a temperature above 0 to sample",
    "num_return_sequences": "n",
    "best_of": "n, and choose among the answers",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "eos_token_id": "stop_token_ids",
    "bad_words_ids": "bad_words, which are texts",
    "suppress_tokens": "logit_bias with -1e6 for each of them",
    "logits_processor": "logits_processors",
    "repeat_penalty": "repetition_penalty",
    "guided_json": "json_schema",
    "response_format": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "grammar",
    "guided_choice": "choice",
    "structured_outputs": "json_schema, regex, grammar or choice",
    "random_seed": "seed",
    "use_beam_search": "nothing in its place: there is no beam search",
    "num_beams": "nothing in its place: there is no beam search",
    "length_penalty": "nothing in its place: there is no beam search",
}
_FROM_GENERATION_CONFIG = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
    "min_new_tokens",
)


class SamplingParams(Settings):
    """Sampling settings of one request.

    Logits are changed in this order: `logit_bias`, the three penalties, `logits_processors`, what `bad_words` and
    `allowed_token_ids` bar, the end tokens barred by `min_new_tokens`, what the grammar bars, `temperature`, `top_k`,
    `top_p`, `min_p`; the order of transformers' logits processors, but for the request's own, which come before all
    that bars.

    At most one of `json_schema`, `regex`, `grammar` and `choice` is given. The answer follows it as far as it gets: the
    model can end it only where the text is complete, and it ends by itself where nothing can follow; `max_new_tokens`
    and stop texts cut it short. They need the package llguidance, whose dialects they are written in.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens, and those as likely as the last of them; 1 takes the most likely token
            (greedy), 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (Holtzman et al., 2020), and those as likely
            as the last of them.
        min_p: drop tokens less likely than min_p times the most likely one (Nguyen et al., 2024).
        repetition_penalty: above 0 and at most 1,000; divides positive and multiplies negative logits of tokens seen in
            the prompt or the answer (CTRL, Keskar et al., 2019); 1 does nothing.
        frequency_penalty: subtracted once per occurrence in the answer (OpenAI's definition).
        presence_penalty: subtracted from every token that occurred in the answer (OpenAI's definition).
        logit_bias: token id -> value added to its logit, of 4,096 tokens at most.
        max_new_tokens: most tokens to generate; None fills what is left of the context.
        min_new_tokens: the request does not end by itself before so many tokens.
        ignore_eos: do not end at the model's end-of-sequence tokens.
        stop: texts that end the answer; the text itself is left out. At most 128 of 1,024 characters each.
        stop_token_ids: further tokens that end the answer, 4,096 at most.
        seed: makes a sampled answer repeatable, below 2**64; None draws a new one each time.
        log_probabilities: how many of the most likely tokens to list next to each generated one, 0 for that one alone;
            None gives no log probabilities at all.
        echo: with `log_probabilities`, give those of the prompt's tokens, too.
        json_schema: the answer is JSON that this schema allows; a mapping, or JSON text.
        regex: the answer matches this regular expression, from its first to its last character.
        grammar: the answer is derived from this context-free grammar, in Lark's notation.
        choice: the answer is one of these texts; 1,024 of 1,024 characters at most.
        n: how many answers to give to the prompt, each with draws of its own; with a seed, the answer number i has the
            seed and i more.
        bad_words: texts that are kept out of the answer, as the tokens that the tokenizer spells them with: alone,
            after a space, and in the middle of a word; 128 of 1,024 characters at most.
        allowed_token_ids: the only tokens that may be generated, 2**18 at most. The answer ends by itself only if one
            of them is an end token. None allows all.
        logits_processors: functions that are called in turn for each token, with the tokens so far (a list, prompt and
            answer) and the logits [V], which they may change in place; they return what takes their place. One that
            raises fails its own request. They see no other request, and must not keep the tensor.
        include_stop_str_in_output: whether the text has at its end the stop text, or the text of the stop token, that
            ended the answer.
        skip_special_tokens: whether special tokens are left out of the text.
        truncate_prompt_tokens: of a longer prompt take its last tokens, this many with the BOS token that it begins
            with; -1 takes as many as the context has room for beside `max_new_tokens`, or beside one.
        cache_salt: the request shares pages of the KV cache only with others of the same salt, so that the time which
            it takes says nothing of the prompts of others; 1,024 characters at most.
        priority: requests that wait begin in the order of this number, the least first, and those with the same in the
            order in which they came. It changes no answer, and those that run go on.
    """

    elsewhere: ClassVar[Mapping[str, str]] = _ELSEWHERE

    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_p: _Probability = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=1e3)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Mapping[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        default_factory=dict
    )
    max_new_tokens: Annotated[int | None, Field(ge=1, le=_MAX_NUM_TOKENS)] = None
    min_new_tokens: Annotated[int, Field(ge=0, le=_MAX_NUM_TOKENS)] = 0
    ignore_eos: bool = False
    stop: tuple[_Text, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: Annotated[int | None, Field(ge=0, lt=2**64)] = None
    log_probabilities: Annotated[int | None, Field(ge=0, le=128)] = None
    echo: bool = False
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Annotated[tuple[_Text, ...] | None, Field(min_length=1)] = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    bad_words: tuple[_Text, ...] = ()
    allowed_token_ids: Annotated[tuple[int, ...] | None, Field(min_length=1)] = None
    logits_processors: tuple[Callable[[Sequence[int], Any], Any], ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int | None, Field(ge=-1, le=_MAX_NUM_TOKENS)] = None
    cache_salt: _Text | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0

    @field_validator(*_MAX_ENTRIES, mode="before")
    @classmethod
    def _not_too_many(cls, value: object, info: ValidationInfo) -> object:
        """Looks at the number of entries before anybody looks at each of them."""
        if isinstance(value, str) or callable(value):
            return (value,)
        assert info.field_name is not None
        most = _MAX_ENTRIES[info.field_name]
        if isinstance(value, Iterator):
            value = tuple(itertools.islice(value, most + 1))
        if isinstance(value, Sized) and len(value) > most:
            raise InvalidSettingError(
                f"setting {info.field_name!r} has too many entries", found=len(value), allowed=f"at most {most}"
            )
        return value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_as_text(cls, value: object) -> object:
        if value is None:
            return None
        try:
            schema = json.loads(value) if isinstance(value, str) else value
            if not isinstance(schema, Mapping):
                raise TypeError(f"a {type(schema).__name__} is no mapping")
            return json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidSettingError(
                "setting 'json_schema' is not valid",
                found=shown(value),
                allowed="a JSON schema, as a mapping or as the text of a JSON object",
            ) from error

    def model_post_init(self, _context: Any, /) -> None:
        """Checks settings against each other.

        Raises:
            InvalidSettingError: `min_new_tokens` is above `max_new_tokens`, `echo` lacks `log_probabilities`, there is
                more than one of `json_schema`, `regex`, `grammar` and `choice`, no token of the prompt is left, or
                several answers would all be the same.
        """
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidSettingError(
                "setting 'min_new_tokens' is above 'max_new_tokens'",
                found=self.min_new_tokens,
                allowed=f"at most {self.max_new_tokens}",
            )
        if self.echo and self.log_probabilities is None:
            raise InvalidSettingError(
                "setting 'echo' gives the prompt's log probabilities, but none are asked for",
                cure="Set log_probabilities, too.",
            )
        if len(given := self._constraints) > 1:
            raise InvalidSettingError(
                f"setting {given[0]!r} excludes {given[1]!r}", found=given, allowed=f"one of {', '.join(_CONSTRAINTS)}"
            )
        if self.truncate_prompt_tokens == 0:
            raise InvalidSettingError(
                "setting 'truncate_prompt_tokens' leaves nothing of the prompt", found=0, allowed="-1, or at least 1"
            )
        if self.n > 1 and self.is_greedy:
            raise InvalidSettingError(
                "setting 'n' asks for several answers, and they would all be the same",
                found=f"n={self.n}, temperature={self.temperature:g}, top_k={self.top_k}",
                cure="Set a temperature above 0.",
            )

    @classmethod
    def from_generation_config(cls, generation_config: Mapping[str, Any]) -> SamplingParams:
        """Returns our defaults, overridden by what a model's generation_config.json sets.

        A config that says `do_sample: false` means greedy decoding, whatever its temperature.

        Raises:
            InvalidSettingError: a value is out of range, named as a setting; the caller knows the file.
        """
        found = {
            name: generation_config[name] for name in _FROM_GENERATION_CONFIG if generation_config.get(name) is not None
        }
        if generation_config.get("do_sample") is False:
            found["temperature"] = 0.0
        return cls(**found)

    @property
    def constraint(self) -> str | None:
        """The name of the setting that says what the text looks like, `regex` for example, or None."""
        return next(iter(self._constraints), None)

    @property
    def _constraints(self) -> list[str]:
        return [name for name in _CONSTRAINTS if getattr(self, name) is not None]

    @property
    def changes_logits(self) -> bool:
        """Whether the most likely token may become another one, grammars and `min_new_tokens` apart."""
        has_penalty = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)
        others = (self.logit_bias, self.bad_words, self.allowed_token_ids, self.logits_processors)
        return has_penalty or any(others)

    @property
    def barring(self) -> list[str]:
        """The names of the settings that are set and may leave no token to choose."""
        return [name for name in _BARRING if getattr(self, name)]

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken; so it is, too, where the temperature is nearly 0."""
        return self.temperature < _NEARLY_ZERO or self.top_k == 1
