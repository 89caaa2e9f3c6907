"""Which settings a request is answered with: its own, those of the call, or the pipeline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipezoo_core.errors import InvalidSettingError, shown
from pipezoo_core.request import TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["settings_of_call", "with_settings"]


def settings_of_call(defaults: SamplingParams, given: SamplingParams | Mapping[str, Any] | None) -> SamplingParams:
    """Returns the settings of a call's requests that bring none.

    Args:
        defaults: the pipeline's.
        given: the call's: complete ones, a mapping of those that differ from the defaults, or None.

    Raises:
        InvalidSettingError: a setting is unknown or out of range, or `given` is of another kind.
    """
    if given is None:
        return defaults
    if isinstance(given, SamplingParams):
        return given
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return defaults.updated(**given)
    raise InvalidSettingError(
        "'sampling_params' is not valid", found=shown(given), allowed="SamplingParams, or a mapping of its settings"
    )


def with_settings(
    requests: Sequence[TextGenerationRequest],
    of_call: SamplingParams,
    keywords: Mapping[str, Any],
    *,
    lora: str | None,
) -> list[TextGenerationRequest]:
    """Returns requests with complete settings: their own or the call's, under its keywords.

    Args:
        requests: with settings of their own or without.
        of_call: of those without.
        keywords: settings that win over all others.
        lora: name of the adapter that all of them use; None leaves it to the requests.

    Raises:
        InvalidSettingError: a setting is unknown or out of range.
    """
    changed = of_call.updated(**keywords)

    def completed(request: TextGenerationRequest) -> TextGenerationRequest:
        own = request.sampling_params
        settings = changed if own is None else own.updated(**keywords) if keywords else own
        return replace(request, sampling_params=settings, lora=request.lora if lora is None else lora)

    return [completed(request) for request in requests]
