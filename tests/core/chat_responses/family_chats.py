"""For each family: a chat template with its marks, and an answer as its models write it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipezoo_core.chat_responses import ChatFormat, ChatResponse, ToolCall, Tools

TOOLS = Tools.read(
    [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "Says it.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
        for name in ("weather", "time_in")
    ]
)
ROME = ToolCall("weather", '{"city": "Rome", "days": 3}')
ODD = ToolCall("time_in", '{"city": "</tool_call> \\"[]\\" }{ é"}')


@dataclass(frozen=True)
class FamilyChat:
    """A family's chat template in short, and an answer with what it is."""

    template: str
    answer: str
    response: ChatResponse
    prompt: str = ""
    special: tuple[str, ...] = ()
    is_plain_json: bool = True

    @property
    def format(self) -> ChatFormat:
        return ChatFormat(self.template, special_tokens={text: i for i, text in enumerate(self.special, start=1000)})


def _json(call: ToolCall, key: str = "arguments") -> str:
    return f'{{"name": "{call.name}", "{key}": {call.arguments}}}'


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_R1 = "<｜User｜>{{ messages[-1].content }}<｜Assistant｜>{{ m['tool_calls'] }}"
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>")

FAMILY_CHATS = {
    "Qwen and Hermes": FamilyChat(
        template=_CHATML + "{% if tools %}<tool_call>{% endif %}<think>",
        answer=f"<think>\nRome?\n</think>\n\nLet me see.\n<tool_call>\n{_json(ROME)}\n</tool_call>\n<tool_call>\n"
        f"{_json(ODD)}\n</tool_call>",
        response=ChatResponse("Let me see.", "Rome?", (ROME, ODD)),
        prompt="<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n",
    ),
    "Qwen3-Coder": FamilyChat(
        template=_CHATML + "{% if tools %}<tool_call><function=f><parameter=a>{% endif %}",
        answer="Let me see.\n<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>"
        "\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>",
        response=ChatResponse("Let me see.", "", (ROME,)),
        prompt="<|im_start|>assistant\n",
        is_plain_json=False,
    ),
    "SmolLM2": FamilyChat(
        template="You are SmolLM. " + _CHATML,
        answer=f"<tool_call>[{_json(ROME)},\n{_json(ODD)}]</tool_call>",
        response=ChatResponse("", "", (ROME, ODD)),
        prompt="<|im_start|>assistant\n",
    ),
    "Llama 3": FamilyChat(
        template="<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ tools }} ipython tool_calls",
        answer=_json(ODD, "parameters"),
        response=ChatResponse("", "", (ODD,)),
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        special=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eot_id|>"),
    ),
    "Mistral, as a list": FamilyChat(
        template="[INST]{{ tools }}[/INST][TOOL_CALLS]{{ m.tool_calls }}",
        answer=f"[TOOL_CALLS] [{_json(ROME)}, {_json(ODD)}]",
        response=ChatResponse("", "", (ROME, ODD)),
        prompt="[INST]Hello[/INST]",
        special=("[TOOL_CALLS]", "[INST]", "[/INST]"),
    ),
    "Mistral, by name": FamilyChat(
        template="[INST]{{ tools }}[/INST][TOOL_CALLS]{{ m.tool_calls }}[ARGS][THINK]",
        answer=f"[THINK]Rome?[/THINK]Well.[TOOL_CALLS]weather[ARGS]{ROME.arguments}"
        f"[TOOL_CALLS]time_in[ARGS]{ODD.arguments}",
        response=ChatResponse("Well.", "Rome?", (ROME, ODD)),
        prompt="[INST]Hello[/INST]",
        special=("[TOOL_CALLS]", "[ARGS]", "[INST]", "[/INST]", "[THINK]", "[/THINK]"),
    ),
    "DeepSeek R1": FamilyChat(
        template=_R1 + "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n<think>\n",
        answer="Rome?\n</think>\n\nWell.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{ROME.arguments}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time_in\n```json\n"
        f"{ODD.arguments}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        response=ChatResponse("Well.", "Rome?", (ROME, ODD)),
        prompt="<｜User｜>Hello<｜Assistant｜><think>\n",
    ),
    "DeepSeek V3.1": FamilyChat(
        template=_R1 + "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>",
        answer=f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ROME.arguments}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>time_in<｜tool▁sep｜>{ODD.arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        response=ChatResponse("", "", (ROME, ODD)),
        prompt="<｜User｜>Hello<｜Assistant｜></think>",
    ),
    "Phi-4-mini": FamilyChat(
        template="{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|tool|>{{ m['tools'] }}<|/tool|>"
        "{% endfor %}",
        answer=f"<|tool_call|>[{_json(ROME)}, {_json(ODD)}]<|/tool_call|>",
        response=ChatResponse("", "", (ROME, ODD)),
        prompt="<|user|>Hello<|end|><|assistant|>",
        special=("<|assistant|>", "<|user|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    ),
    "FunctionGemma": FamilyChat(
        template="<start_of_turn>model\n{{ tools }}{{ m.tool_calls }}<start_function_call>",
        answer="<start_function_call>call:weather{city:<escape>Rome<escape>,days:3}<end_function_call>",
        response=ChatResponse("", "", (ROME,)),
        prompt="<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
        special=("<start_function_call>", "<end_function_call>", "<escape>", "<start_of_turn>"),
        is_plain_json=False,
    ),
    "gpt-oss": FamilyChat(
        template="<|start|>{{ m.role }}<|channel|>{{ tools }}{{ m.tool_calls }}",
        answer="<|channel|>analysis<|message|>Rome?<|end|><|start|>assistant<|channel|>commentary<|message|>"
        "Well.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + ROME.arguments,
        response=ChatResponse("Well.", "Rome?", (ROME,)),
        prompt="<|start|>user<|message|>Hello<|end|><|start|>assistant",
        special=_HARMONY,
    ),
    "any other": FamilyChat(
        template="{{ messages }}",
        answer=f"Rome?</think>Well.<tool_call>{_json(ROME)}</tool_call>",
        response=ChatResponse("Well.", "Rome?", (ROME,)),
        prompt="A: <think> B: <think>\n",
    ),
}

assert all(json.loads(call.arguments) for call in (ROME, ODD))
