"""Lists of a client's: bounded, given up at the first bad item, and conversations of items as messages."""

import importlib
import pkgutil

import pytest
from pydantic import ValidationError

from pipezoo.serve import fields as field_modules
from pipezoo.serve.fields.body import UNKNOWN_FIELD, Body
from pipezoo.serve.fields.chat import ChatBody
from pipezoo.serve.fields.message import MAX_MESSAGES
from pipezoo.serve.fields.responses import ResponsesBody
from pipezoo_core.chat_responses import MAX_TOOLS

MESSAGE = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "name": "f"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ResponsesBody, {"input": [{"role": "nobody"}] * 100}),
        (ResponsesBody, {"input": [{**MESSAGE, "content": [{"type": "image"}] * 100}]}),
        (ResponsesBody, {"input": [{"type": "reasoning", "summary": [{"type": "image"}] * 100}]}),
        (ResponsesBody, {"input": "hi", "tools": [{"type": "web_search"}] * 100}),
        (ChatBody, {"messages": [MESSAGE], "tools": [{"type": "web_search"}] * 100}),
    ],
)
def test_many_bad_items_cost_no_more_than_one(body, fields):
    with pytest.raises(ValidationError) as caught:
        body.model_validate(fields)

    assert caught.value.error_count() < 10


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ResponsesBody, {"input": [MESSAGE] * (MAX_MESSAGES + 1)}),
        (ResponsesBody, {"input": "hi", "tools": [TOOL] * (MAX_TOOLS + 1)}),
        (
            ChatBody,
            {"messages": [MESSAGE], "tools": [{"type": "function", "function": {"name": "f"}}] * (MAX_TOOLS + 1)},
        ),
    ],
)
def test_lists_have_a_bound(body, fields):
    with pytest.raises(ValidationError, match="too_long"):
        body.model_validate(fields)


FUNCTION = {"name": "f"}
NEEDED = {
    "ChatBody": {"messages": [MESSAGE]},
    "CompletionBody": {"prompt": "hi"},
    "ContentPart": {"type": "text", "text": "hi"},
    "DetokenizeBody": {"tokens": [1]},
    "FunctionCall": {"name": "f", "arguments": "{}"},
    "FunctionCallItem": {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    "FunctionCallOutputItem": {"type": "function_call_output", "call_id": "a", "output": "1"},
    "FunctionName": FUNCTION,
    "FunctionSpec": FUNCTION,
    "FunctionTool": {"type": "function", "function": FUNCTION},
    "LoadAdapterBody": {"lora_name": "a", "lora_path": "b"},
    "Message": {"role": "user"},
    "MessageItem": MESSAGE,
    "NamedTool": {"type": "function", "function": FUNCTION},
    "ReasoningItem": {"type": "reasoning"},
    "ReasoningPart": {"type": "summary_text", "text": "hi"},
    "ResponseFormat": {"type": "text"},
    "ResponseTextFormat": {"type": "text"},
    "ResponseTool": TOOL,
    "ResponseToolChoice": TOOL,
    "ResponsesBody": {"input": "hi"},
    "TextPart": {"type": "text", "text": "hi"},
    "ToolCall": {"function": {"name": "f", "arguments": "{}"}},
    "UnloadAdapterBody": {"lora_name": "a"},
}


for module in pkgutil.iter_modules(field_modules.__path__, f"{field_modules.__name__}."):
    importlib.import_module(module.name)


def kinds_of(base):
    """All bodies, and the objects in them."""
    return [kind for own in base.__subclasses__() for kind in (own, *kinds_of(own))]


@pytest.mark.parametrize("body", kinds_of(Body), ids=lambda body: body.__name__)
def test_what_is_null_is_not_given(body):
    fields = NEEDED.get(body.__name__, {})
    nulls = {field.alias or name: None for name, field in body.model_fields.items()}
    assert body.model_validate(nulls | fields) == body.model_validate(fields)


def num_errors(body, fields):
    try:
        body.model_validate(fields)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("body", kinds_of(Body), ids=lambda body: body.__name__)
def test_no_field_has_an_error_for_each_of_many_entries(body):
    for name, field in body.model_fields.items():
        for entry in (None, 1, "x", [], {}):
            for value in ([entry] * 5000, {str(number): entry for number in range(5000)}):
                given = {**NEEDED.get(body.__name__, {}), field.alias or name: value}
                assert num_errors(body, given) < 10, name


@pytest.mark.parametrize("name", [name for name in NEEDED if name.endswith("Item")])
def test_nor_where_it_says_which_of_several_objects_one_is(name):
    nulls = dict.fromkeys(("type", "id", "status", "phase"))
    [item] = ResponsesBody.model_validate({"input": [nulls | NEEDED[name]]}).input
    assert type(item).__name__ == name
    assert [item] == ResponsesBody.model_validate({"input": [NEEDED[name]]}).input


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ChatBody, {"messages": [{**MESSAGE, "audio": None, "refusal": None, "phase": None}], "user": None}),
        (ChatBody, {"messages": [MESSAGE], "response_format": {"type": "text", "strict": None}}),
        (ResponsesBody, {"input": [{**MESSAGE, "phase": None}], "conversation": None, "include": None}),
    ],
)
def test_nor_is_what_is_null_and_not_known(body, fields):
    """Clients that write out all fields they know send what a later version of the interface has."""
    assert body.model_validate(fields)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ChatBody, {"messages": [{**MESSAGE, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        (ChatBody, {"messages": [MESSAGE], "tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        (ResponsesBody, {"input": [{**MESSAGE, "content": [{"type": "input_image", **dict.fromkeys("abcdef", 1)}]}]}),
        (ResponsesBody, {"input": "hi", "tools": [{"type": "web_search", "search_context_size": "low"}]}),
    ],
)
def test_an_object_of_another_type_is_refused_for_its_type(body, fields):
    """And not for the fields that only such ones have."""
    with pytest.raises(ValidationError) as caught:
        body.model_validate(fields)

    assert "type" in {error["loc"][-1] for error in caught.value.errors()}
    assert UNKNOWN_FIELD not in {error["type"] for error in caught.value.errors()}


def test_what_an_assistant_wrote_in_several_items_is_one_message():
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}]},
        {"type": "reasoning", "summary": []},
        {"role": "assistant", "content": "Well"},
        {"role": "assistant", "content": "."},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "2"},
        {"role": "assistant", "content": "2"},
    ]

    assert ResponsesBody.model_validate({"input": items}).messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "Well.",
            "reasoning_content": "so",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
