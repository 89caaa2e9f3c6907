"""How an answer is sampled, in the words of clients; what each value may be is what `SamplingParams` allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipezoo.serve.errors import FieldError
from pipezoo.serve.fields.body import Body, Listed, check_size
from pipezoo_core.errors import InvalidSettingError
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["ANY_OBJECT", "JSONSchemaFormat", "ResponseFormat", "SamplingFields", "StructuredOutputs", "checked_params"]

_RENAMED = {"min_tokens": "min_new_tokens"}
_TokenID = Annotated[int, Field(ge=0, lt=2**31)]
_MAX_BIASES = 4096  # before each of them is looked at
ANY_OBJECT = '{"type": "object"}'


def _few_biases(value: object) -> object:
    return check_size(value, _MAX_BIASES)


class JSONSchemaFormat(Body):
    """A named JSON schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="An answer follows the schema whatever is said here.")


class ResponseFormat(Body):
    """What the answer's text looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None

    def constraint(self) -> dict[str, Any]:
        """Returns the setting of `SamplingParams` that says so; none for text.

        Raises:
            FieldError: there is a schema and it is not asked for, or it is, and there is none.
        """
        if self.type != "json_schema" and self.json_schema is not None:
            raise FieldError(
                "response_format", "'json_schema' goes with the type 'json_schema', and with no other", found=self.type
            )
        if self.type == "json_schema" and self.json_schema is None:
            raise FieldError("response_format", "the type 'json_schema' goes with a field 'json_schema'", found="none")
        if self.json_schema is None:
            return {"json_schema": ANY_OBJECT} if self.type == "json_object" else {}
        if self.json_schema.schema_ is None:
            raise FieldError("response_format.json_schema.schema", "the schema is not given")
        return {"json_schema": self.json_schema.schema_}


class StructuredOutputs(Body):
    """What the answer's text looks like: one of these."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json", description="A JSON schema.")
    regex: str | None = None
    choice: Listed[str] | None = None
    grammar: str | None = Field(default=None, description="In Lark's notation.")
    json_object: bool | None = Field(default=None, description="Any JSON object.")

    def constraint(self) -> dict[str, Any]:
        """Returns the settings of `SamplingParams` that say so."""
        found = self.given()
        if "json_" in found:
            found["json_schema"] = found.pop("json_")
        if found.pop("json_object", False):
            found["json_schema"] = found.get("json_schema", ANY_OBJECT)
        return found


class SamplingFields(Body):
    """Sampling, as all endpoints that generate take it. A field that is not given is what the model's files say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(lt=2**31)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_few_biases)] = Field(
        default=None, description="Token id -> value added to its logit."
    )
    n: int | None = Field(default=None, description="How many answers to give.")
    seed: int | None = None
    stop: str | Listed[str] | None = None
    stop_token_ids: Listed[_TokenID] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    bad_words: Listed[str] | None = None
    allowed_token_ids: Listed[_TokenID] | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = Field(default=None, description="Most likely tokens to list for each prompt token.")
    cache_salt: str | None = Field(default=None, description="Prompts are shared with requests of the same salt alone.")
    priority: int | None = Field(default=None, description="Requests that wait begin with the least.")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what was given as settings of `SamplingParams`.

        Those of the numbers of tokens and of log probabilities are not among them: endpoints name them differently.

        Raises:
            FieldError: a field is not valid, or excludes another one.
        """
        names = SamplingFields.model_fields.keys() - {"prompt_logprobs", "response_format", "structured_outputs"}
        found = {_RENAMED.get(name, name): value for name, value in self.given().items() if name in names}
        if "logit_bias" in found:
            found["logit_bias"] = _with_token_ids(found["logit_bias"])
        constraints = [each.constraint() for each in (self.response_format, self.structured_outputs) if each]
        if sum(map(len, constraints)) > 1:
            raise FieldError("structured_outputs", "an answer has one form", found=[*map(str, constraints)])
        return found | {name: value for each in constraints for name, value in each.items()}

    def names(self, counts: Mapping[str, int | None]) -> dict[str, str]:
        """Returns a setting's name -> the field's that it was given by, where there are several of them.

        Args:
            counts: by field how many log probabilities are asked for, those of the prompt's tokens apart.
        """
        asked = {**counts, "prompt_logprobs": self.prompt_logprobs}
        numbers = {name: count for name, count in asked.items() if count is not None}
        found: dict[str, str] = {}
        if numbers:  # a bad one is below all others, or above
            least = min(numbers, key=numbers.__getitem__)
            found["log_probabilities"] = least if numbers[least] < 0 else max(numbers, key=numbers.__getitem__)
        if self.response_format is not None:
            found["json_schema"] = "response_format.json_schema.schema"
        if self.structured_outputs is not None:
            parts = self.structured_outputs.constraint()
            found |= {name: f"structured_outputs.{name.removesuffix('_schema')}" for name in parts}
        return found


def checked_params(defaults: SamplingParams, settings: Mapping[str, Any], names: Mapping[str, str]) -> SamplingParams:
    """Returns complete settings.

    Args:
        defaults: the model's.
        settings: what the client gave.
        names: a setting's name -> the field's, where it is another one.

    Raises:
        FieldError: a value is out of range, or excludes another one.
    """
    try:
        return defaults.updated(**settings)
    except InvalidSettingError as error:
        raise _in_fields(error, {"min_new_tokens": "min_tokens", **names}) from error


def _in_fields(error: InvalidSettingError, names: Mapping[str, str]) -> FieldError:
    """Returns an error about settings in the names of fields."""
    what = error.what
    mentioned = [name for name in SamplingParams.model_fields if f"'{name}'" in what]
    mentioned.sort(key=lambda name: what.index(f"'{name}'"))
    for name, field in names.items():
        what = what.replace(f"'{name}'", f"'{field}'")
    what = what.replace("setting '", "field '")
    first = mentioned[0] if mentioned else None
    param = None if first is None else names.get(first, first)
    return FieldError(param, what, found=error.found, allowed=error.allowed, cure=error.cure)


def _with_token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    ids = {text: int(text) for text in bias if text.isascii() and text.isdecimal() and len(text) < 12}
    for text in bias:
        if text not in ids:
            raise FieldError(
                "logit_bias", "a key of 'logit_bias' is no token id", found=text, allowed='as in {"42": 1}'
            )
    return {ids[text]: value for text, value in bias.items()}
