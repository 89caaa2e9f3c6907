"""What the prompt of a request begins with, as a short key: requests of one key may share what a prefix cache has."""

from __future__ import annotations

import hashlib
import json

__all__ = ["prefix_of"]

_PROMPTS = ("messages", "prompt", "input")  # the fields that have one
_PREFIX_CHARS = 1024  # about a system prompt and a question


def prefix_of(body: bytes) -> str | None:
    """Returns a digest of what a request's prompt begins with, by which it is told where to go.

    Of a chat, that is all up to the first message of its user: it stays as it is while the chat grows. It is None of a
    request without a prompt, which may go anywhere.

    Args:
        body: JSON, or anything else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    prompt = next((asked[name] for name in _PROMPTS if asked.get(name)), None) if isinstance(asked, dict) else None
    if prompt is None:
        return None
    if isinstance(prompt, list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in prompt]
        prompt = prompt[: roles.index("user") + 1] if "user" in roles else prompt
    text = json.dumps([asked.get("model"), asked.get("cache_salt"), prompt], sort_keys=True)[:_PREFIX_CHARS]
    return hashlib.sha256(text.encode()).hexdigest()
