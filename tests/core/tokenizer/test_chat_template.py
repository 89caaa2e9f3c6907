"""Chat templates: what they may use, against transformers; and that time, memory and text are bounded."""

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipezoo_core.tokenizer import chat_template as chat_template_module
from pipezoo_core.tokenizer.chat_template import ChatTemplate, ChatTemplateError

CHAT = [
    {"role": "system", "content": "Be brief. <&> 'é' 😀"},
    {"role": "user", "content": "Hi", "tools": [{"name": "a", "n": 1.5}]},
    {"role": "assistant", "content": "Hello", "thinking": "hm"},
]
GIVEN = {"messages": CHAT, "tools": None, "documents": None, "add_generation_prompt": True}


@pytest.mark.matrix
@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}",
        "{%- for m in messages %}\n {%- if loop.first %}A{% elif loop.last %}{{ loop.index }}{% endif %}\n{% endfor %}",
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n  x\n  {% endif %}\n{% endfor %}\n",
        "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ messages | tojson }} {{ messages[1].tools | tojson(indent=2) }} {{ messages[0] | tojson(sort_keys=true) }}",
        "{{ messages[1] | tojson(separators=(',', ':'), ensure_ascii=true) }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% macro line(m) %}<{{ m.role | upper }}>{% endmacro %}{{ line(messages[0]) }}{{ line(messages[1]) }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}",
        "{{ dict(a=1, b=2) | items | list }}{{ messages[0].get('nothing', 'none') }}{{ messages[0].items() | list }}",
        "{{ strftime_now('%Y') }} {{ tools is none }} {{ documents is defined }} {{ nothing is defined }}{{ nothing }}",
        "{{ messages[2].reasoning_content }}{{ messages[2].thinking }}{{ messages[0].thinking is defined }}",
        "{{ messages[0].content.split(' ')[0] | trim }}{{ 'a' * 3 ~ 2 ** 3 }}{{ messages[-1]['content'][::-1] }}",
        "{{ range(3) | list }}{{ lipsum is defined }}{{ cycler('a', 'b').next() }}",
        "{{ '%s and %d' | format('x', 3) }}{{ 'x{}'.format(1) }}{{ '<' | e }}",
    ],
)
def test_the_text_is_transformers(text):
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template([CHAT], chat_template=text, add_generation_prompt=True, bos_token="<s>")
    assert ChatTemplate(text).render({**GIVEN, "bos_token": "<s>"}) == expected[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ raise_exception('roles alternate') }}", "^roles alternate$"),
        ("{% if %}", "xpected"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "no attribute '_x'"),
        ("{{ namespace(_x=1) }}", "no attribute '_x'"),
        ("{{ messages[9].role }}", "has no element 9"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% include 'file' %}", "no loader"),
    ],
)
def test_what_fails_is_an_error_of_the_template(text, reason):
    template = ChatTemplate(text)
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=reason):
            template.render(GIVEN)


ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = dict() %}{% for a in range(99999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{{ 7 ** (7 ** 11) }}",
    "{% for x in [[1]] * 99999 recursive %}{{ loop([x] * 9999) if loop.depth < 99 }}{% endfor %}",
]
LARGE = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ 'a'.zfill(10 ** 10) }}",
    "{{ messages | tojson(indent=10 ** 9) }}",
    "{% set ns = namespace(s='a') %}{% for a in range(50) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[0]) %}{% for a in range(50) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
    "{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
]


@pytest.mark.slow
@pytest.mark.parametrize("text", [*ENDLESS, *LARGE])
def test_a_template_that_takes_too_much_is_ended(text, monkeypatch):
    monkeypatch.setattr(chat_template_module, "_SECONDS", 2.0)
    with pytest.raises(ChatTemplateError):
        ChatTemplate(text).render(GIVEN)


def test_the_next_request_is_answered_after_one_that_was_ended(monkeypatch):
    template = ChatTemplate("{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}done")
    monkeypatch.setattr(chat_template_module, "_SECONDS", 0.2)
    with pytest.raises(ChatTemplateError, match=r"longer than 0\.2 seconds"):
        template.render({**GIVEN, "n": 99_999})
    monkeypatch.setattr(chat_template_module, "_SECONDS", 60.0)
    assert template.render({**GIVEN, "n": 1}) == "done"


def test_a_process_that_ended_is_replaced():
    template = ChatTemplate("{{ messages | length }}")
    assert template.render(GIVEN) == "3"
    os.kill(template._process._process.pid, signal.SIGKILL)
    template._process._process.wait()
    assert template.render(GIVEN) == "3"


def test_the_process_ends_with_the_template():
    template = ChatTemplate("a")
    template.render(GIVEN)
    process = template._process._process
    del template
    assert process.returncode == -signal.SIGKILL


def test_requests_of_several_threads_get_their_own_answers():
    template = ChatTemplate("{{ n }}")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: template.render({**GIVEN, "n": n}), range(50)))
    assert found == [str(n) for n in range(50)]


def test_values_that_json_does_not_know_have_a_name():
    template = ChatTemplate("{{ messages[0].image }} {{ n + 1 }}")
    assert template.render({"messages": [{"image": np.zeros(2)}], "n": np.int64(4)}) == "<ndarray> 5"
    with pytest.raises(ChatTemplateError):
        template.render({"messages": [{(1, 2): 3}]})


def test_large_and_odd_texts_travel_as_they_are():
    content = "a\n\r\u2028\x00😀\ud800" * 100_000
    assert ChatTemplate("{{ messages[0].content }}").render({"messages": [{"content": content}]}) == content


@pytest.mark.slow
def test_a_fork_has_a_process_of_its_own():
    program = textwrap.dedent("""
        import os
        from pipezoo_core.tokenizer.chat_template import ChatTemplate

        template = ChatTemplate("{{ n }}")
        assert template.render({"messages": [], "n": 1}) == "1"
        if child := os.fork():
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert template.render({"messages": [], "n": 3}) == "3"
        else:
            assert template.render({"messages": [], "n": 2}) == "2"
    """)
    assert subprocess.run([sys.executable, "-W", "error", "-c", program], timeout=60).returncode == 0
