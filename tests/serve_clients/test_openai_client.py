"""openai-python, unmodified, against the server."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import openai
import pydantic
import pytest

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Is it warm in Rome?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Says it.", "parameters": PARAMETERS}}
    for name in ("weather", "time_in")
]
LIMITS = {"seed": 3, "max_tokens": 200}


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_answer_and_its_stream_are_the_same(client):
    arguments = {"model": "tiny", "messages": MESSAGES, "seed": 1, "max_tokens": 12}

    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))

    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.choices[0].message.tool_calls is None


def test_async_answers_go_side_by_side(address):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            return await asyncio.gather(
                *(client.chat.completions.create(model="tiny", messages=MESSAGES, seed=1, max_tokens=8) for _ in "abc")
            )

    answers = asyncio.run(ask())

    assert len({answer.choices[0].message.content for answer in answers}) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time_in"}}])
def test_a_call_that_is_required_is_made_and_streamed(client, choice):
    arguments = {"model": "tiny", "messages": MESSAGES, "tools": TOOLS, "tool_choice": choice, **LIMITS}
    arguments |= {"parallel_tool_calls": False}

    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True))

    [call] = whole.choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    assert call.function.name == "time_in" or choice == "required"
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or []]
    assert [piece.function.name for piece in pieces if piece.function.name] == [call.function.name]
    assert [piece.id is not None for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    assert len(pieces) > 5


def test_a_conversation_of_two_turns_goes_on_behind_a_call(client):
    first = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, **LIMITS
    )
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "31 degrees"}

    second = client.chat.completions.create(
        model="tiny", messages=[*MESSAGES, message, result], tools=TOOLS, seed=2, max_tokens=8
    )

    assert second.choices[0].finish_reason in ("stop", "length")
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens


def test_the_librarys_own_parsing_of_answers_and_tools(client):
    class Answer(pydantic.BaseModel):
        warm: bool
        degrees: int = pydantic.Field(ge=0, le=50)

    parsed = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Answer, seed=1, max_tokens=100
    )
    called = client.chat.completions.parse(
        model="tiny",
        messages=MESSAGES,
        tools=[openai.pydantic_function_tool(Answer)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
        max_tokens=100,
    )

    assert isinstance(parsed.choices[0].message.parsed, Answer)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Answer)


def test_a_schema_binds_what_is_no_call(client):
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}

    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=TOOLS, response_format=form, seed=seed, max_tokens=400
        )
        message = answer.choices[0].message
        if message.tool_calls:
            jsonschema.validate(json.loads(message.tool_calls[0].function.arguments), PARAMETERS)
        else:
            jsonschema.validate(json.loads(message.content), schema)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS * 65}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": TOOLS, "extra_body": {"structured_outputs": {"regex": "a"}}}, "structured_outputs"),
    ],
)
def test_tools_that_are_not_sound_are_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, **fields)

    assert caught.value.param == param


RESPONSE_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]


def test_a_response_and_its_events_are_the_same(client):
    arguments = {"model": "tiny", "input": "Is it warm?", "instructions": "Be kind.", "max_output_tokens": 12}
    arguments |= {"metadata": {"a": "b"}, "extra_body": {"seed": 1}}

    whole = client.responses.create(**arguments)
    events = list(client.responses.create(**arguments, stream=True))

    last = events[-1].response
    assert last.output_text == whole.output_text != ""
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert last.usage == whole.usage
    assert (whole.metadata, whole.instructions, whole.status) == ({"a": "b"}, "Be kind.", last.status)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events][:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]


def test_the_librarys_own_stream_of_a_response_with_a_call(client):
    arguments = {"model": "tiny", "input": "Is it warm?", "tools": RESPONSE_TOOLS, "tool_choice": "required"}
    arguments |= {"parallel_tool_calls": False, "max_output_tokens": 200, "extra_body": {"seed": 3}}

    whole = client.responses.create(**arguments)
    with client.responses.stream(**arguments) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_response()

    [call] = whole.output
    jsonschema.validate(json.loads(call.arguments), PARAMETERS)
    assert (streamed.output[0].name, streamed.output[0].arguments) == (call.name, call.arguments)
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "31 degrees"}
    second = client.responses.create(
        model="tiny",
        input=[{"role": "user", "content": "Is it warm?"}, call, result],
        tools=RESPONSE_TOOLS,
        max_output_tokens=4,
    )
    assert second.usage.input_tokens > whole.usage.input_tokens + whole.usage.output_tokens
    dumped = [item.model_dump() for item in (call, *second.output)]  # with null for all that the library knows
    third = client.responses.create(model="tiny", input=[*dumped, result], tools=RESPONSE_TOOLS, max_output_tokens=4)
    assert third.usage.input_tokens > 0


def test_a_response_follows_a_schema(client):
    class Answer(pydantic.BaseModel):
        warm: bool

    parsed = client.responses.parse(model="tiny", input="Is it?", text_format=Answer, max_output_tokens=60)

    assert isinstance(parsed.output_parsed, Answer)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"conversation": "c"}, "conversation"),
        ({"text": {"format": {"type": "text", "schema": {"type": "object"}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}}, None),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "x"}}}, "stream": True}, None),
    ],
)
def test_what_a_response_cannot_have_is_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "tiny", "input": "Is it?", **fields})

    assert param is None or caught.value.param == param


def test_the_tokens_of_a_chat_with_tools_are_those_that_are_counted(client, http):
    question = {"messages": [{"role": "user", "content": "Is it warm?"}], "tools": TOOLS}
    answer = client.chat.completions.create(model="tiny", max_tokens=1, **question)
    assert http.post("/tokenize", json=question).json()["count"] == answer.usage.prompt_tokens
