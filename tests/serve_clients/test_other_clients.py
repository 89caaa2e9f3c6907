"""litellm, langchain-openai and llm, unmodified, against the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jsonschema
import pytest

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Is it warm in Rome?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": PARAMETERS}}


def _run(address, folder, program, *arguments):
    """Runs a client in a process of its own: they bring warnings, threads and settings with them."""
    environment = os.environ | {
        "HOME": str(folder),
        "LLM_USER_PATH": str(folder),
        "LLM_LOAD_PLUGINS": "",  # one that is installed for its weights needs llama.cpp
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "BASE": f"{address}/v1",
    }
    command = [sys.executable, "-W", "ignore", *(["-c", program] if program else []), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_litellm_answers_streams_and_calls(address, tmp_path):
    program = f"""
import json, os, litellm
common = dict(model="openai/tiny", api_base=os.environ["BASE"], api_key="none", messages={MESSAGES!r}, seed=3)
whole = litellm.completion(**common, max_tokens=12)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**common, max_tokens=12, stream=True)]
called = litellm.completion(**common, max_tokens=200, tools=[{TOOL!r}], tool_choice="required")
call = called.choices[0].message.tool_calls[0].function
print(json.dumps([whole.choices[0].message.content, "".join(pieces), call.name, call.arguments]))
"""
    whole, streamed, name, arguments = json.loads(_run(address, tmp_path, program).splitlines()[-1])

    assert whole == streamed != ""
    assert name == "weather"
    jsonschema.validate(json.loads(arguments), PARAMETERS)


def test_a_prompt_that_is_too_long_is_known_as_one(address, tmp_path):
    """Clients that shorten a chat then tell it from other errors by words of the message."""
    program = """
import os, litellm, langchain_core.exceptions, langchain_openai
asked = [{"role": "user", "content": "a" * 9999}]
found = []
try:
    litellm.completion(model="openai/tiny", api_base=os.environ["BASE"], api_key="none", messages=asked)
except litellm.ContextWindowExceededError:
    found.append("litellm")
try:
    langchain_openai.ChatOpenAI(model="tiny", base_url=os.environ["BASE"], api_key="none").invoke("a" * 9999)
except langchain_core.exceptions.ContextOverflowError:
    found.append("langchain")
print(*found)
"""
    assert _run(address, tmp_path, program).splitlines()[-1] == "litellm langchain"


def test_langchain_answers_streams_calls_and_structures(address, tmp_path):
    program = f"""
import json, os
from langchain_openai import ChatOpenAI
from langchain_core.messages import HumanMessage, ToolMessage
model = ChatOpenAI(model="tiny", base_url=os.environ["BASE"], api_key="none", seed=3, max_tokens=200)
short = ChatOpenAI(model="tiny", base_url=os.environ["BASE"], api_key="none", seed=3, max_tokens=12)
question = HumanMessage("Is it warm in Rome?")
whole = short.invoke([question]).content
streamed = "".join(chunk.content for chunk in short.stream([question]))
called = model.bind_tools([{TOOL!r}], tool_choice="any", parallel_tool_calls=False).invoke([question])
call = called.tool_calls[0]
chunks = model.bind_tools([{TOOL!r}], tool_choice="weather", parallel_tool_calls=False).stream([question])
total = None
for chunk in chunks:
    total = chunk if total is None else total + chunk
second = short.bind_tools([{TOOL!r}]).invoke([question, called, ToolMessage("31", tool_call_id=call["id"])])
schema = {{"title": "answer", "description": "it", **{PARAMETERS!r}}}
shaped = model.with_structured_output(schema, method="json_schema").invoke([question])
tokens = second.usage_metadata["input_tokens"]
print(json.dumps([whole, streamed, call["args"], total.tool_calls[0]["args"], shaped, tokens]))
"""
    whole, streamed, called, call_streamed, shaped, num_tokens = json.loads(
        _run(address, tmp_path, program).splitlines()[-1]
    )

    assert whole == streamed != ""
    for found in (called, call_streamed, shaped):
        jsonschema.validate(found, PARAMETERS)
    assert num_tokens > 100


def test_llm_of_the_command_line_answers(address, tmp_path):
    models = f"- model_id: tiny\n  model_name: tiny\n  api_base: {address}/v1\n  api_key_name: openai\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    arguments = ["-m", "llm", "-m", "tiny", "--key", "none", "-o", "seed", "3", "-o", "max_tokens", "12", "Is it warm?"]

    streamed = _run(address, tmp_path, None, *arguments)
    whole = _run(address, tmp_path, None, *arguments, "--no-stream")

    assert streamed == whole
    assert streamed.strip()
