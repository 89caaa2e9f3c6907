"""From what a chat model writes to reasoning, content and tool calls, and from tools to what it is told.

    chat_format = ChatFormat.of(llm.tokenizer.delegate, llm.tokenizer.special_texts)
    tools = Tools.read([{"type": "function", "function": {"name": "weather", "parameters": {…}}}])
    messages, told = chat_format.told.chat([{"role": "user", "content": "Is it warm in Rome?"}], tools)
    output = llm.chat(messages, tools=told, skip_special_tokens=not chat_format.needs_special_tokens)
    chat_format.response(output.text, tools).tool_calls

Knows no model, no torch and no server.
"""

from pipezoo_core.chat_responses.chat_format import ChatFormat
from pipezoo_core.chat_responses.parser import ResponseParser
from pipezoo_core.chat_responses.response import ChatResponse, ResponseDelta, ToolCall, ToolCallDelta, new_call_id
from pipezoo_core.chat_responses.template import ResponseTemplate
from pipezoo_core.chat_responses.tools import MAX_TOOLS, Function, Tools

__all__ = [
    "MAX_TOOLS",
    "ChatFormat",
    "ChatResponse",
    "Function",
    "ResponseDelta",
    "ResponseParser",
    "ResponseTemplate",
    "ToolCall",
    "ToolCallDelta",
    "Tools",
    "new_call_id",
]
