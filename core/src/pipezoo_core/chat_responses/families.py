r"""How the models of known families mark reasoning and calls, where the checkpoint itself does not say.

A family is known by marks in its chat template, not by its architecture: a model that was distilled into Llama's
weights writes as its teacher does. Each `response` is a `response_template` in transformers' form, so that its own
parser is the oracle of ours. The facts are from the models' chat templates and cards. What an expression repeats has a
bound, so that text which may become a mark is not held back, and looked at again, for long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipezoo_core.chat_responses.call_form import CallForm

__all__ = ["FAMILIES", "Family"]

_CONTENT = {"content_args": {"strip": False}}  # as the model wrote it
_THINK = {"open": "<think>", "close_pattern": r"</think>\s{0,8}"}
_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
_LISTED = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
_CHATML = "<|im_start|>assistant\n"
_HARMONY_THOUGHTS = r"[^<]{0,1024}(?:<\|constrain\|>[^<]{0,1024})?<\|message\|>"  # behind the channel: what is
_HARMONY_HEADER = r"[^<]{0,256}(?:<\|constrain\|>[^<]{0,256})?<\|message\|>"  # longer is none, and its text content
_HARMONY_CALL = r"\s+to=functions\.(?P<name>[^\s<]{1,256})(?=[\s<])"
_NO_FUNCTION = r"(?!\s+to=functions\.)"
_ANY = r"(?:[^<]|<(?!\|))"  # begins no mark: a message of such alone has no header, and ends or is too long for one
_BARE = rf"(?:\A|<\|start\|>assistant)(?!\s{{0,8}}(to=|<))(?={_ANY}{{257}}|{_ANY}{{1,256}}(<\|(end|return|call)\|>|\Z))"


def _calls(**spec: Any) -> dict[str, Any]:
    return {"repeats": True, "content": "json", **spec}


_TAGGED = _calls(
    open_pattern=r"\s{0,8}<tool_call>", close="</tool_call>", transform={"type": "function", "function": "{content}"}
)
_TAGGED_LIST = _calls(
    open_pattern=r"\s{0,8}<tool_call>(?=\s*\[)", close="</tool_call>", transform=_LISTED, transform_each=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way to write answers.

    Attributes:
        name: for messages and tests.
        marks: what its chat templates have, all of them.
        response: its `response_template`.
        form: how its calls are written; None where they are no JSON.
        thoughts: what its models write before and behind their thoughts, where they have any.
        tools_in_system: the template looks for the tools, as JSON text, in the system's message.
        shows_single_calls: the template shows one call of a message, and one text before it, and fails at a function
            without a description.
        content_begin: what its models write before what is meant to be read.
    """

    name: str
    marks: tuple[str, ...]
    response: Mapping[str, Any] = field(repr=False)
    form: CallForm | None
    thoughts: tuple[str, str] | None = None
    tools_in_system: bool = False
    shows_single_calls: bool = False
    content_begin: str = ""


FAMILIES = (
    Family(
        name="gpt-oss",
        marks=("<|channel|>", "<|start|>"),
        response={
            "start_anchor": "<|start|>assistant",
            "fields": {
                "reasoning_content": {
                    "open_pattern": r"<\|channel\|>analysis" + _NO_FUNCTION + _HARMONY_THOUGHTS,
                    "close": "<|end|>",
                    "repeats": True,
                    "join": "\n",
                },
                "tool_calls": _calls(
                    open_pattern=rf"(?:<\|channel\|>(?:commentary|analysis){_HARMONY_CALL}"
                    rf"|{_HARMONY_CALL}\s{{0,8}}<\|channel\|>(?:commentary|analysis))" + _HARMONY_HEADER,
                    close=["<|call|>", "<|end|>"],
                    transform=_NAMED,
                ),
                "content": {
                    "open_pattern": rf"(?:<\|channel\|>(?:final|commentary){_NO_FUNCTION})?{_HARMONY_HEADER}|{_BARE}",
                    "close_pattern": r"<\|(?:end|return|call)\|>|(?=<\|(?:start|channel)\|>)",
                    "repeats": True,
                    "join": "\n",
                    **_CONTENT,
                },
            },
        },
        form=CallForm(
            call="<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS",
        ),
        thoughts=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        shows_single_calls=True,
        content_begin="<|channel|>final<|message|>",
    ),
    Family(
        name="DeepSeek R1",
        marks=("<｜tool▁calls▁begin｜>", "```json"),
        response={
            "start_anchor": "<｜Assistant｜>",
            "fields": {
                "reasoning_content": _THINK,
                "tool_calls": _calls(
                    open_pattern=r"\s{0,8}(?:<｜tool▁calls▁begin｜>)?\s{0,8}<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
                    r"(?P<name>[^\n]{1,128})\n```json\n",
                    close_pattern=r"\s{0,8}```<｜tool▁call▁end｜>\s{0,8}(?:<｜tool▁calls▁end｜>)?",
                    transform=_NAMED,
                ),
                "content": _CONTENT,
            },
        },
        form=CallForm(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>",
            between="\n",
            end="<｜tool▁calls▁end｜>",
        ),
        thoughts=("<think>", "</think>"),
    ),
    Family(
        name="DeepSeek V3.1",
        marks=("<｜tool▁calls▁begin｜>",),
        response={
            "start_anchor_pattern": "<｜Assistant｜>(?:</think>)?",
            "fields": {
                "reasoning_content": _THINK,
                "tool_calls": _calls(
                    open_pattern=r"\s{0,8}(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>(?P<name>[^<]{1,128})<｜tool▁sep｜>",
                    close_pattern=r"<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
                    transform=_NAMED,
                ),
                "content": _CONTENT,
            },
        },
        form=CallForm(
            begin="<｜tool▁calls▁begin｜>",
            call="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>",
            between="",
            end="<｜tool▁calls▁end｜>",
        ),
        thoughts=("<think>", "</think>"),
    ),
    Family(
        name="Mistral, by name",
        marks=("[TOOL_CALLS]", "[ARGS]"),
        response={
            "start_anchor": ["[/INST]", "[/TOOL_RESULTS]"],
            "fields": {
                "reasoning_content": {"open": "[THINK]", "close_pattern": r"\[/THINK\]\s{0,8}"},
                "tool_calls": _calls(
                    open_pattern=r"\[TOOL_CALLS\](?P<name>[^\[\]{}]{1,128})(?:\[CALL_ID\]\w{1,64})?\[ARGS\]",
                    close_pattern=r"(?=\[TOOL_CALLS\])",
                    transform=_NAMED,
                ),
                "content": _CONTENT,
            },
        },
        form=CallForm(call="[TOOL_CALLS]NAME[ARGS]ARGUMENTS", between=""),
        thoughts=("[THINK]", "[/THINK]"),
    ),
    Family(
        name="Mistral, as a list",
        marks=("[TOOL_CALLS]",),
        response={
            "start_anchor": ["[/INST]", "[/TOOL_RESULTS]"],
            "fields": {
                "tool_calls": _calls(open="[TOOL_CALLS]", transform=_LISTED, transform_each=True),
                "content": _CONTENT,
            },
        },
        form=CallForm(begin="[TOOL_CALLS] [", call='{"name": "NAME", "arguments": ARGUMENTS}', between=", ", end="]"),
    ),
    Family(
        name="Phi-4-mini",
        marks=("<|tool|>", "<|/tool|>"),
        response={
            "start_anchor": "<|assistant|>",
            "fields": {
                "tool_calls": _calls(
                    open="<|tool_call|>", close="<|/tool_call|>", transform=_LISTED, transform_each=True
                ),
                "content": _CONTENT,
            },
        },
        form=CallForm(
            begin="<|tool_call|>[",
            call='{"name": "NAME", "arguments": ARGUMENTS}',
            between=", ",
            end="]<|/tool_call|>",
        ),
        tools_in_system=True,
    ),
    Family(
        name="FunctionGemma",
        marks=("<start_function_call>",),
        response={
            "start_anchor": ["<start_of_turn>model\n", "<end_function_response>"],
            "fields": {
                "tool_calls": _calls(
                    open_pattern=r"<start_function_call>call:(?P<name>\w{1,128})",
                    close="<end_function_call>",
                    content_args={"unquoted_keys": True, "string_delims": [["<escape>", "<escape>"]]},
                    transform=_NAMED,
                ),
                "content": _CONTENT,
            },
        },
        form=None,
    ),
    Family(
        name="Qwen3-Coder",
        marks=("<tool_call>", "<function=", "<parameter="),
        response={
            "start_anchor": _CHATML,
            "fields": {
                "reasoning_content": _THINK,
                "tool_calls": _calls(
                    open_pattern=r"\s{0,8}<tool_call>\s{0,8}<function=(?P<name>[^>\n]{1,128})>",
                    close_pattern=r"</function>\s{0,8}</tool_call>",
                    content="xml-inline",
                    content_args={
                        "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>",
                    },
                    transform=_NAMED,
                ),
                "content": _CONTENT,
            },
        },
        form=None,
        thoughts=("<think>", "</think>"),
    ),
    Family(
        name="Qwen and Hermes",
        marks=("<tool_call>",),
        response={
            "start_anchor": _CHATML,
            "fields": {"reasoning_content": _THINK, "tool_calls": _TAGGED, "content": _CONTENT},
        },
        form=CallForm(
            call='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
            between="\n",
        ),
        thoughts=("<think>", "</think>"),
    ),
    Family(
        name="Llama 3",
        marks=("<|start_header_id|>", "ipython"),
        response={
            "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "fields": {
                "tool_calls": _calls(
                    open_pattern=r"\A\s{0,8}(?:<\|python_tag\|>)?(?=\{\s{0,8}\"(?:name|type)\")",
                    transform={
                        "type": "function",
                        "function": {"name": "{content.name}", "arguments": "{content.parameters}"},
                    },
                ),
                "content": _CONTENT,
            },
        },
        form=CallForm(call='{"name": "NAME", "parameters": ARGUMENTS}', sign=r'\s{0,8}\{\s{0,8}"(name|type)"'),
    ),
    Family(
        name="SmolLM2",
        marks=("<|im_start|>", "SmolLM"),
        response={"start_anchor": _CHATML, "fields": {"tool_calls": _TAGGED_LIST, "content": _CONTENT}},
        form=CallForm(
            begin="<tool_call>[",
            call='{"name": "NAME", "arguments": ARGUMENTS}',
            between=", ",
            end="]</tool_call>",
            sign=r"(?s:.*)<tool_call>\s*\[",
        ),
    ),
    Family(
        name="any other",
        marks=(),
        response={
            # from the last mark that reasoning begins, if the prompt ends with one
            "start_anchor_pattern": r"\A(?:(?!<think>\s*\Z).)*",
            "fields": {"reasoning_content": _THINK, "tool_calls": _TAGGED, "content": _CONTENT},
        },
        form=CallForm(
            call='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
            between="\n",
        ),
        thoughts=("<think>", "</think>"),
    ),
)
"""Those with more marks come before those that have some of them; the last one is any model's."""
