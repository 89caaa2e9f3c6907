"""A model that a running server has, as a chat talks to it: the server's names of settings, and its answers' pieces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from pipezoo.cli.answer import Answer
from pipezoo.cli.answer_text import visible
from pipezoo.cli.server_connection import ServerConnection
from pipezoo_core.errors import InvalidRequestError, InvalidSettingError, ServerFailedError, shown
from pipezoo_core.request import ChatMessage, GenerationStatus, TextGenerationOutput, Usage
from pipezoo_core.sampling_params import SamplingParams

__all__ = ["ServedModel"]

_RENAMED = {"max_new_tokens": "max_completion_tokens", "min_new_tokens": "min_tokens"}
_STRUCTURED = {"json_schema": "json", "regex": "regex", "grammar": "grammar", "choice": "choice"}
_LOCAL = {"echo": "false", "log_probabilities": "none"}  # a chat shows nothing of them; how each is taken back
_STATUSES = {"stop": GenerationStatus.END_OF_SEQUENCE, "length": GenerationStatus.MAXIMUM_LENGTH}


class ServedModel:
    """A model, or an adapter, of a server.

    Args:
        connection: to the server.
        name: of the model or adapter; None takes the first one.

    Raises:
        InvalidRequestError: the server has none of this name.
        What `ServerConnection.get` does.
    """

    sampling_params = None

    def __init__(self, connection: ServerConnection, *, name: str | None) -> None:
        self._connection = connection
        names = _names(connection.get("/v1/models"))
        if name is not None and name not in names:
            raise InvalidRequestError(f"the server has no model {name!r}", allowed=list(map(visible, names)))
        self._name = names[0] if name is None else name

    def answer(
        self, answer: Answer, messages: Sequence[ChatMessage], show: Callable[[str], None], **sampling: Any
    ) -> None:
        """Answers as `ChatModel` says; the server notices that nobody listens any more, and ends the request."""
        answer.follow(self._pieces({"messages": list(messages), **_fields(sampling)}), show)

    def _pieces(self, body: Mapping[str, Any]) -> Generator[TextGenerationOutput]:
        request = {"model": self._name, "stream": True, "stream_options": {"include_usage": True}, **body}
        for event in self._connection.events("/v1/chat/completions", request):
            try:
                yield _piece(event)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ServerFailedError("what the server says is no piece of an answer", found=shown(event)) from error


def _names(listed: Any) -> list[str]:
    try:
        names = [model["id"] for model in listed["data"]]
    except (KeyError, TypeError):
        names = []
    if not names or not all(isinstance(name, str) for name in names):
        raise ServerFailedError("what answers at the address lists no models", found=shown(listed))
    return names


def _piece(event: Any) -> TextGenerationOutput:
    """Returns what an event brings of the first answer."""
    text, status = "", GenerationStatus.ACTIVE
    for choice in event.get("choices") or []:
        if choice.get("index", 0) == 0:
            text += choice["delta"].get("content") or ""
            if choice.get("finish_reason"):
                status = _STATUSES.get(choice["finish_reason"], GenerationStatus.END_OF_SEQUENCE)
    if counted := event.get("usage"):
        usage = Usage(int(counted["prompt_tokens"]), 0, int(counted["completion_tokens"]))
        return TextGenerationOutput(request_id="", text=text, final_status=status, usage=usage)
    return TextGenerationOutput(request_id="", text=text, final_status=status)


def _fields(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in the server's names.

    Raises:
        InvalidSettingError: a setting is unknown or out of range, or nothing that a chat with a server has.
    """
    found: dict[str, Any] = {}
    for name, value in SamplingParams(**sampling):
        if name not in sampling or value is None:
            continue
        if name in _LOCAL and value is not False:
            cure = f"/set {name} {_LOCAL[name]} takes it back."
            raise InvalidSettingError(f"setting {name!r} is not for chats with a server", found=value, cure=cure)
        if name in _STRUCTURED:
            found["structured_outputs"] = {_STRUCTURED[name]: value}
        elif name not in _LOCAL:
            found[_RENAMED.get(name, name)] = dict(value) if isinstance(value, Mapping) else value
    return found
