"""What `/v1/completions` takes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Listed, check_size
from pipezoo.serve.fields.sampling import SamplingFields, checked_params
from pipezoo.serve.fields.stream_options import StreamOptions, check_stream_options
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["CompletionBody"]

_DEFAULT_MAX_TOKENS = 16
_MAX_PROMPTS = 1024
_NAMES = {"max_new_tokens": "max_tokens"}


def _few_prompts(value: object) -> object:
    is_one = isinstance(value, list) and bool(value) and isinstance(value[0], int)
    return value if is_one else check_size(value, _MAX_PROMPTS)


class CompletionBody(SamplingFields):
    """A prompt, or several, to complete."""

    model: str | None = Field(default=None, description="The served model, or an adapter; the model if not given.")
    prompt: Annotated[str | Listed[str] | Listed[int] | Listed[Listed[int]], BeforeValidator(_few_prompts)] = Field(
        description="Texts, or the ids of their tokens."
    )
    max_tokens: int | None = Field(default=None, description="Most tokens to generate; 0 with `echo`, too.")
    logprobs: int | None = Field(default=None, description="Most likely tokens to list for each token.")
    echo: bool = Field(default=False, description="Whether the text begins with the prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or its tokens.

        Raises:
            FieldError: there are none.
        """
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            return [self.prompt]
        if not self.prompt:
            raise FieldError("prompt", "there is no prompt", allowed=f"1 to {_MAX_PROMPTS}")
        return [*self.prompt]

    @property
    def num_tokens(self) -> int:
        """Most tokens to generate."""
        return _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self, defaults: SamplingParams) -> SamplingParams:
        """Returns how to sample. Where no token is wanted one is generated, for the prompt's log probabilities.

        Raises:
            FieldError: a field is not valid, or excludes another one.
        """
        check_stream_options(self.stream_options, stream=self.stream)
        settings: dict[str, Any] = {"max_new_tokens": self.num_tokens or 1, **self.settings()}
        counts = [each for each in (self.logprobs, self.prompt_logprobs) if each is not None]
        if counts:
            settings["log_probabilities"] = max(counts) if min(counts) >= 0 else min(counts)
            settings["echo"] = self.echo or self.prompt_logprobs is not None
        return checked_params(defaults, settings, {**_NAMES, **self.names({"logprobs": self.logprobs})})
