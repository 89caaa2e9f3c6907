"""Answers in pieces, in the words of `/v1/responses`: each piece belongs to the item that it was written in."""

from __future__ import annotations

import pytest
from core.chat_responses.family_chats import FAMILY_CHATS, TOOLS

from pipezoo.serve.replies.chat import ChatReply
from pipezoo.serve.replies.heading import Heading
from pipezoo.serve.replies.responses import ResponsesReply
from pipezoo_core.request import GenerationStatus, RequestID, TextGenerationOutput, Usage

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'


def _items(pieces):
    reply = ResponsesReply(
        Heading("resp_1", "tiny"), FAMILY_CHATS["Qwen and Hermes"].format.parser(TOOLS), echoed={}, num_tokens=len
    )
    events = reply.begin()
    for piece in pieces:
        events += reply.events(TextGenerationOutput(request_id=RequestID("1"), text=piece))
    end = TextGenerationOutput(
        request_id=RequestID("1"), final_status=GenerationStatus.END_OF_SEQUENCE, usage=Usage(1, 0, 1)
    )
    events += reply.events(end)
    grown = {}
    for event in events:
        if event["type"].endswith(".delta"):
            grown[event["output_index"]] = grown.get(event["output_index"], "") + event["delta"]
    output = events[-1]["response"]["output"]
    texts = [item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"] for item in output]
    assert texts == [grown[number] for number in range(len(output))]
    return [(item["type"], text) for item, text in zip(output, texts, strict=True)]


@pytest.mark.parametrize("cut", range(len(CALL) + 1))
def test_the_rest_of_a_call_is_the_calls_though_text_follows_at_once(cut):
    items = _items([CALL[:cut], CALL[cut:] + " Done."])

    assert sorted(items) == [("function_call", '{"city": "Rome"}'), ("message", " Done.")]


@pytest.mark.parametrize(
    ("status", "arguments"), [(GenerationStatus.END_OF_SEQUENCE, "{}"), (GenerationStatus.MAXIMUM_LENGTH, "")]
)
def test_a_call_without_arguments_has_empty_ones_where_the_model_ended_it_and_none_where_it_was_cut(status, arguments):
    text = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    output = TextGenerationOutput(request_id=RequestID("1"), text=text, final_status=status, usage=Usage(1, 0, 1))

    def new_parser():
        return FAMILY_CHATS["gpt-oss"].format.parser(TOOLS)

    reply = ResponsesReply(Heading("resp_1", "tiny"), new_parser(), echoed={}, num_tokens=len)
    [item] = reply.events(output)[-1]["response"]["output"]
    chat = ChatReply(
        Heading("1", "tiny"),
        [1],
        new_parser=new_parser,
        num_logprobs=None,
        num_prompt_logprobs=None,
        wants_usage=False,
    )
    [call] = chat.whole([output])["choices"][0]["message"]["tool_calls"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chat.chunks(output)]
    [[streamed]] = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]

    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "weather", arguments)
    for function in (call["function"], streamed["function"]):
        assert function == {"name": "weather", "arguments": arguments}
