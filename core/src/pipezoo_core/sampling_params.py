"""How the next token of a request is chosen and when the request ends. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from pipezoo_core.config import Settings
from pipezoo_core.errors import InvalidSettingError

__all__ = ["SamplingParams"]

_Probability = Annotated[float, Field(ge=0.0, le=1.0)]
_NEARLY_ZERO = 1e-5  # below it, dividing logits by the temperature overflows before it changes anything
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

    Logits are changed in this order: `logit_bias`, the three penalties, the end tokens barred by `min_new_tokens`,
    `temperature`, `top_k`, `top_p`, `min_p`; the order of transformers' logits processors.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (Holtzman et al., 2020).
        min_p: drop tokens less likely than min_p times the most likely one (Nguyen et al., 2024).
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the prompt or the
            answer (CTRL, Keskar et al., 2019); 1 does nothing.
        frequency_penalty: subtracted once per occurrence in the answer (OpenAI's definition).
        presence_penalty: subtracted from every token that occurred in the answer (OpenAI's definition).
        logit_bias: token id -> value added to its logit.
        max_new_tokens: most tokens to generate; None fills what is left of the context.
        min_new_tokens: the request does not end by itself before so many tokens.
        ignore_eos: do not end at the model's end-of-sequence tokens.
        stop: texts that end the answer; the text itself is left out.
        stop_token_ids: further tokens that end the answer.
        seed: makes a sampled answer repeatable; None draws a new one each time.
        log_probabilities: how many of the most likely tokens to list next to each generated one; 0 gives no log
            probabilities at all.
        echo: with `log_probabilities`, give those of the prompt's tokens, too.
    """

    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_p: _Probability = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    logit_bias: Mapping[Annotated[int, Field(ge=0)], float] = Field(default_factory=dict)
    max_new_tokens: Annotated[int | None, Field(ge=1)] = None
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: Annotated[int | None, Field(ge=0)] = None
    log_probabilities: Annotated[int, Field(ge=0, le=128)] = 0
    echo: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def model_post_init(self, _context: Any, /) -> None:
        """Checks settings against each other.

        Raises:
            InvalidSettingError: `min_new_tokens` is above `max_new_tokens`, or `echo` lacks `log_probabilities`.
        """
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InvalidSettingError(
                "setting 'min_new_tokens' is above 'max_new_tokens'",
                found=self.min_new_tokens,
                allowed=f"at most {self.max_new_tokens}",
            )
        if self.echo and not self.log_probabilities:
            raise InvalidSettingError(
                "setting 'echo' gives the prompt's log probabilities, but none are asked for",
                cure="Set log_probabilities, too.",
            )

    @classmethod
    def from_generation_config(cls, generation_config: Mapping[str, Any]) -> SamplingParams:
        """Returns our defaults, overridden by what a model's generation_config.json sets.

        A config that says `do_sample: false` means greedy decoding, whatever its temperature.
        """
        found = {
            name: generation_config[name] for name in _FROM_GENERATION_CONFIG if generation_config.get(name) is not None
        }
        if generation_config.get("do_sample") is False:
            found["temperature"] = 0.0
        return cls(**found)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken; so it is, too, where the temperature is nearly 0."""
        return self.temperature < _NEARLY_ZERO
