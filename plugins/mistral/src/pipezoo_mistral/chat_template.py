"""The chat template of a folder whose tekken.json comes without one, as `mistral_common` writes chats.

It knows text. How tools are written has changed from version to version, so a chat with tools is refused.
"""

from __future__ import annotations

__all__ = ["chat_template"]

_BEGIN = """{{- bos_token }}
{%- if tools %}
    {{- raise_exception('this tekken.json has no chat template, and tools need the model\\'s own') }}
{%- endif %}
"""

# The system's text stands before the last message of the user.
_WITHOUT_SYSTEM_TOKENS = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system, chat = messages[0]['content'] + '\\n\\n', messages[1:] %}
{%- else %}
    {%- set system, chat = '', messages %}
{%- endif %}
{%- set last = namespace(user=-1) %}
{%- for message in chat %}
    {%- if message['role'] == 'user' %}
        {%- set last.user = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in chat %}
    {%- if message['role'] == 'user' %}
        {{- '[INST]' + (system if loop.index0 == last.user else '') + message['content'] + '[/INST]' }}
"""

_WITH_SYSTEM_TOKENS = """
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
"""

_END = """
    {%- elif message['role'] == 'assistant' and not message['tool_calls'] %}
        {{- message['content'].rstrip(' ') }}
        {{- eos_token }}
    {%- else %}
        {{- raise_exception('this tekken.json has no chat template, and a message of ' + message['role']
            + (' with tool calls' if message['tool_calls'] else '') + ' needs the model\\'s own') }}
    {%- endif %}
{%- endfor %}
"""

_TEMPLATES = {
    "v3": _BEGIN + _WITHOUT_SYSTEM_TOKENS + _END,
    "v7": _BEGIN + _WITH_SYSTEM_TOKENS + _END,
    "v11": _BEGIN + _WITH_SYSTEM_TOKENS + _END,
    "v13": _BEGIN + _WITH_SYSTEM_TOKENS + _END,
}


def chat_template(version: object) -> str | None:
    """Returns the template of a tekken.json.

    Args:
        version: what the file calls its version.

    Returns:
        None for a version that is not known.
    """
    return _TEMPLATES.get(version) if isinstance(version, str) else None
