"""Grammars that crash llguidance, keep it busy or fill the memory fail their own request, and nothing else."""

import json
import random
import threading

import pytest

from pipezoo_core import grammar_trial
from pipezoo_core.errors import InvalidGrammarError, PipezooError
from pipezoo_core.line_process import LineProcess
from pipezoo_core.sampling_params import SamplingParams
from pipezoo_core.structured_output import GrammarCompiler


@pytest.fixture(scope="module")
def compiler(byte_level):
    return GrammarCompiler(byte_level, end_token_ids=[byte_level.eos_token_id])


def rules(count, rule):
    return "\n".join(["start: r0", *(rule.format(i, i + 1) for i in range(count)), f'r{count}: "b"'])


def definitions(count, definition):
    """A chain of definitions, each of which refers to the next one."""
    text = json.dumps(definition)
    chain = {f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(count)}
    return {"$defs": {**chain, f"d{count}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


AND = " & ".join(f"/(a|b)*a(a|b){{{i}}}/" for i in range(40))
NEXT = {"$ref": "NEXT"}
IN_SOME_ANSWERS = r"""start: r0
T0: /(b)*/
T1: /((babaaabbba)*)/
T2: /é/
r0: (r1) "b" (r2 | r0 | T1)? | (r0 | T2){900} "a" | (r0 | T1 | T2) (r1)
r1: "b"{900}
r2: "a"+ "a"{2,7} "c"+ (T1 | T0 | r2)
"""
# Whose answers may end before they explode.
BEHIND_AN_END = r"""start: r0
T0: /(( ){60})?/
T1: /((b){9})*/
T2: /\pL/
r0: "b" | "b"{2,7} T1 "b"
r1: (T2 | T0 | T0){900} r1? | "b" "b"{900} "b"{900} r1{900} | (T2 | r2 | T0) "c" "b"?
r2: (T2){2,7}
"""
BEHIND_A_LATER_END = r"""start: r0
T0: /(aaaababaab){0,9}([^a]){0,2}aabbababa/
T1: /(1cb|( ){60}|(a)*)/
T2: /b/
r0: (r0) r0{900} "b"{2,7} "a"+ | "a"+ "c" T1
"""
IN_FEW_ANSWERS = r"""start: r0
T0: /(b)*/
T1: /(babaaaab[^a] ){1000}/
T2: /((aababa){9})/
r0: "b" "c"* (T1 | T2) | "c" "c"* "a"{2,7} | (T0)* T1 "c"{2,7}
"""
BAD = {
    "rules": {"grammar": rules(3_000, 'r{0}: r{1} "a"')},
    "rules to the right": {"grammar": rules(3_000, 'r{0}: "a" r{1}')},
    "rules that may be empty": {"grammar": rules(3_000, "r{0}: r{1}?")},
    "rules twice": {"grammar": rules(3_000, "r{0}: r{1} r{1}")},
    "many rules": {"grammar": rules(20_000, 'r{0}: r{1} "a"')},
    "terminals": {"grammar": rules(4_000, 'R{0}: R{1} "a"').replace("r", "R").replace("staRt", "start")},
    "terminals that double": {"grammar": rules(3_000, "R{0}: R{1} R{1}").replace("r", "R").replace("staRt", "start")},
    "parentheses": {"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000},
    "terminals at once": {"grammar": f"start: T\nT: {AND}"},
    "a schema in a grammar": {"grammar": "start: %json " + json.dumps({"required": [f"r{i}" for i in range(9_000)]})},
    "names": {"json_schema": {"type": "object", "required": [f"r{i}" for i in range(50_000)]}},
    "fewer names": {"json_schema": {"type": "object", "required": [f"r{i}" for i in range(9_000)]}},
    "references": {"json_schema": definitions(1_000, NEXT)},
    "references in objects": {"json_schema": definitions(1_000, {"type": "object", "properties": {"a": NEXT}})},
    "references twice": {"json_schema": definitions(1_000, {"allOf": [NEXT, NEXT]})},
    "patterns at once": {
        "json_schema": {"type": "string", "allOf": [{"pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(40)]}
    },
    "deep schema": {"json_schema": '{"anyOf":[' * 200 + "{}" + "]}" * 200},
    "stars": {"regex": "a" + "*" * 50_000},
    "groups": {"regex": "(" * 50_000 + "a" + ")" * 50_000},
    "long regex": {"regex": "ab?" * 100_000},
    "in some answers only": {"grammar": IN_SOME_ANSWERS},
    "in few answers": {"grammar": IN_FEW_ANSWERS},
    "behind an end": {"grammar": BEHIND_AN_END},
    "behind a later end": {"grammar": BEHIND_A_LATER_END},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_bad_grammar_fails_alone(compiler, name):
    with pytest.raises(InvalidGrammarError) as raised:
        compiler.matcher(SamplingParams(**BAD[name]))
    assert len(str(raised.value).encode()) < 1000
    assert compiler.matcher(SamplingParams(regex="[0-9]{4}")).error is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 2},
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}},
        {"type": "array", "items": {"anyOf": [{"minProperties": 3, "required": ["a", "b"]}]}},
    ],
    ids=str,
)
def test_keys_that_could_repeat_are_not_counted(compiler, schema):
    with pytest.raises(InvalidGrammarError, match="repeating a key"):
        compiler.matcher(SamplingParams(json_schema=schema))


GOOD = {
    "one key": {"json_schema": {"type": "object", "minProperties": 1}},
    "a property of this name": {"json_schema": {"properties": {"minProperties": {"type": "integer"}}}},
    "rules": {"grammar": rules(100, 'r{0}: r{1} "a"')},
    "names": {"json_schema": {"type": "object", "required": [f"r{i}" for i in range(1_000)]}},
    "properties": {"json_schema": {"properties": {f"p{i}": {"type": "integer"} for i in range(1_000)}}},
    "enum": {"json_schema": {"enum": [f"name {i}" for i in range(5_000)]}},
    "nested": {"json_schema": definitions(40, {"type": "object", "properties": {"a": NEXT}, "required": ["a"]})},
    "long text": {"json_schema": {"type": "string", "minLength": 10_000, "maxLength": 100_000}},
    "words": {"regex": "|".join(f"word{i}" for i in range(5_000))},
    "repetitions": {"regex": "([a-z]{1,30} ){1,200}[.]"},
}


def tool(number):
    arguments = {"type": "object", "properties": {f"a{i}": {"type": "string"} for i in range(10)}}
    return {"properties": {"name": {"const": f"f{number}"}, "arguments": arguments}, "required": ["name", "arguments"]}


GOOD |= {
    "tools": {"json_schema": {"type": "array", "items": {"anyOf": [tool(number) for number in range(100)]}}},
    "kinds": {
        "json_schema": {
            "anyOf": [
                {"properties": {f"k{i}": {"type": "string"}, "kind": {"const": i}}, "required": ["kind"]}
                for i in range(200)
            ]
        }
    },
    "words that may be left out": {"grammar": "start: " + " ".join(f'"w{i}"?' for i in range(300))},
    "one word of many": {"grammar": "start: w+\nw: " + " | ".join(f'"w{i}" " "' for i in range(500))},
    "sums": {"grammar": 'start: s\ns: s "+" p | s "-" p | p\np: p "*" v | p "/" v | v\nv: "(" s ")" | N\nN: /[0-9]+/'},
}


@pytest.mark.matrix
@pytest.mark.parametrize("name", GOOD)
def test_a_large_grammar_is_fine(compiler, name):
    assert compiler.matcher(SamplingParams(**GOOD[name])).error is None


def test_threads_get_their_own_verdict(compiler):
    found = {}

    def work(number):
        try:
            found[number] = compiler.matcher(SamplingParams(**(BAD["rules"] if number % 2 else GOOD["rules"]))) is None
        except InvalidGrammarError:
            found[number] = True

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: bool(number % 2) for number in range(8)}


def watch_processes(monkeypatch):
    """Returns a list that the processes which are started get into."""
    started, start = [], LineProcess._start
    monkeypatch.setattr(LineProcess, "_start", lambda process: (start(process), started.append(process._process))[0])
    return started


def test_a_process_that_is_gone_is_started_again(byte_level, monkeypatch):
    compiler = GrammarCompiler(byte_level, end_token_ids=[])
    started = watch_processes(monkeypatch)
    compiler.matcher(SamplingParams(regex="a"))
    started[0].kill()
    started[0].wait()
    assert compiler.matcher(SamplingParams(regex="b")).error is None
    assert len(started) == 2
    del compiler
    assert started[1].poll() is not None


def test_a_grammar_is_tried_once(byte_level, monkeypatch):
    """Whatever number of requests have it; one that was refused is tried again."""
    compiler = GrammarCompiler(byte_level, end_token_ids=[])
    tried = []
    ask = LineProcess.ask
    monkeypatch.setattr(LineProcess, "ask", lambda process, line: (tried.append(line), ask(process, line))[1])
    for _ in range(3):
        assert compiler.matcher(SamplingParams(regex="[0-9]{4}")).error is None
    assert len(tried) == 1
    for _ in range(2):
        with pytest.raises(InvalidGrammarError, match="too complex"):
            compiler.matcher(SamplingParams(**BAD["rules"]))
    assert len(tried) == 3


def test_answers_of_one_grammar_have_nothing_in_common(compiler, byte_level, monkeypatch):
    """One that makes its lexer fail, by too many states, leaves the others as they are."""
    monkeypatch.setattr(grammar_trial, "_MAX_LEXER_STATES", 500)
    letters = [byte_level.convert_tokens_to_ids(letter) for letter in "ab"]
    first = compiler.matcher(SamplingParams(regex="(a|b)*a(a|b){12}c"))
    before, rng = first.anew(), random.Random(0)
    while not first.is_done:
        first.ll_matcher.compute_bitmask()
        first.consume(rng.choice(letters))
    assert first.error is not None
    for other in (before, first.anew(), compiler.matcher(SamplingParams(regex="(a|b)*a(a|b){12}c"))):
        for letter in (0, 1, 1, 0):
            other.ll_matcher.compute_bitmask()
            other.consume(letters[letter])
        assert not other.is_done


def test_what_is_tried_in_vain_takes_no_state_of_the_answer(compiler, byte_level, monkeypatch):
    """An answer comes as far, and fails for the same reason, whether or not others were tried on the way."""
    monkeypatch.setattr(grammar_trial, "_MAX_LEXER_STATES", 200)
    letters = [byte_level.convert_tokens_to_ids(letter) for letter in "ab"]
    lengths, num_allowed = [], []
    for num_tried in (0, 8):
        matcher = compiler.matcher(SamplingParams(regex="(a|b)*a(a|b){12}c"))
        answer, others, length = random.Random(0), random.Random(1), 0
        while not matcher.is_done:
            num_allowed.append(matcher.num_allowed(others.choices(letters, k=num_tried)))
            matcher.ll_matcher.compute_bitmask()
            matcher.consume(answer.choice(letters))
            length += 1
        lengths.append(length)
    assert lengths[0] == lengths[1]
    assert {*num_allowed} == {0, 8}


def late(rules):
    """Two hundred letters, which the trial does not get through, and then the rules."""
    return f"start: /x{{200}}/ s\n{rules}"


def choices(count, choice):
    names = " | ".join(f"r{i}" for i in range(count))
    return "\n".join([f"s: {names}", *(f"r{i}: {choice}" for i in range(count))])


LATE = {
    "three of itself": late('s: s s s | s s | "a" | "b" | '),
    "six of itself": late('s: s s s s s s | s s | "a" | "b" | '),
    "each other": late('s: t t | "a" | "b" |\nt: u u | s\nu: s t | t u s | "a"'),
    "many ways": late(choices(120, 's "a" | s "b" s | "a" s | "b"')),
    "many ways of three": late(choices(60, 's s s | "a" | "b"')),
    "patterns": late("s: T\nT: " + " | ".join(f"/(a|b)*a(a|b){{{i}}}c/" for i in range(60))),
}


@pytest.mark.parametrize("name", LATE)
def test_a_grammar_that_explodes_later_ends_its_request(compiler, byte_level, name):
    """It goes on for a while, or fails; without a bound a single step takes minutes."""
    followed = compiler.matcher(SamplingParams(grammar=LATE[name]))
    rng = random.Random(0)
    letters = [byte_level.convert_tokens_to_ids(letter) for letter in "xab"]
    num_tokens, is_over = 0, False
    while num_tokens < 260 and not is_over:
        bits = followed.ll_matcher.compute_bitmask()
        fitting = [token for token in letters if bits[token // 8] >> token % 8 & 1]
        if is_over := not fitting or followed.is_done:
            break
        followed.consume(rng.choice(fitting))
        num_tokens += 1
    assert num_tokens > 200
    assert followed.ll_matcher.is_error() or not is_over or name == "patterns"


def random_regex(rng, depth=4):
    kind = rng.randrange(9) if depth else rng.randrange(3)
    inner = [random_regex(rng, depth - 1) for _ in range(rng.randrange(1, 4))] if kind > 2 else []
    most = rng.choice([2, 9, 60, 1000])
    return [
        lambda: rng.choice("abc01 .é"),
        lambda: rng.choice([r"\w", r"\d", "[^a]", r"\s", "[a-m]", r"\pL", "(?i:ab)"]),
        lambda: "".join(rng.choices("ab", k=rng.randrange(12))),
        lambda: "".join(inner),
        lambda: f"({'|'.join(inner)})",
        lambda: f"({inner[0]})*",
        lambda: f"({inner[0]})?",
        lambda: f"({inner[0]}){{{rng.randrange(3)},{most}}}",
        lambda: f"({inner[0]}){{{most}}}",
    ][kind]()


def random_schema(rng, depth=4):
    def inner():
        return random_schema(rng, depth - 1)

    def several():
        return [inner() for _ in range(rng.randrange(1, 4))]

    count = rng.choice([1, 3, 40, 3000])
    flat = [
        lambda: {"type": "string", "maxLength": count},
        lambda: {"type": "string", "pattern": random_regex(rng, 3)},
        lambda: {"type": rng.choice(["integer", "number"]), "minimum": -count, "maximum": count * rng.random()},
        lambda: {"enum": [rng.choice([None, 1, "a", [], {}]) for _ in range(min(count, 40))]},
        lambda: {"$ref": "#"},
        lambda: {"type": "string", "format": rng.choice(["date", "email", "uuid", "ipv6"])},
    ]
    deep = [
        lambda: {"type": "array", "items": inner(), "minItems": rng.randrange(count), "maxItems": count},
        lambda: {"anyOf": several()},
        lambda: {"allOf": several()},
        lambda: {"type": "object", "additionalProperties": inner(), "required": ["a", "b"]},
        lambda: {"properties": {str(i): one for i, one in enumerate(several())}, "required": ["0"]},
        lambda: {"type": "object", "patternProperties": {random_regex(rng, 1): inner()}},
        lambda: {"type": "array", "prefixItems": several()},
    ]
    return rng.choice(flat + deep * 2 if depth else flat)()


def random_grammar(rng):
    count = rng.choice([1, 3, 10, 200])
    names = [f"r{i}" for i in range(count)] + [f"T{i}" for i in range(3)]

    def item(names):
        suffix = rng.choice(["", "", "", "?", "*", "+", "{2,7}", "{900}"])
        if rng.random() < 0.3:
            return f"({' | '.join(rng.choices(names, k=rng.randrange(1, 4)))}){suffix}"
        return rng.choice([rng.choice(names), f'"{rng.choice("abc")}"', f'"{rng.choice("abc")}"']) + suffix

    lines = ["start: r0", *(f"T{i}: /{random_regex(rng, 2).replace('/', '')}/" for i in range(3))]
    for i in range(count):
        choices = [" ".join(item(names) for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        lines.append(f"r{i}: {' | '.join(choices)}")
    return "\n".join(lines)


def damaged(rng, text):
    """The text with a part of it taken out, or written many times."""
    first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return text[:first] + text[first:last] * rng.choice([0, 2, 50]) + text[last:]


def random_settings(rng):
    kind = rng.choice(["json_schema", "regex", "grammar"])
    if kind == "json_schema":
        return {kind: random_schema(rng)}
    text = random_regex(rng) if kind == "regex" else random_grammar(rng)
    return {kind: damaged(rng, text) if rng.random() < 0.2 else text}


def spell(compiler, rng):
    """Follows a random grammar for a while, in this process, which stays alive; returns whether it was a good one."""
    try:
        followed = compiler.matcher(SamplingParams(**random_settings(rng)))
    except PipezooError:
        return False
    for _ in range(12):
        bits = followed.ll_matcher.compute_bitmask()
        allowed = [i for i in range(followed.num_tokens - 1) if bits[i // 8] >> i % 8 & 1]
        if not allowed or followed.is_done:
            break
        followed.consume(rng.choice(allowed))
    return True


@pytest.mark.parametrize("num_grammars", [30, pytest.param(1_000, marks=pytest.mark.slow)])
def test_no_random_grammar_ends_the_process(compiler, num_grammars):
    rng = random.Random(num_grammars)
    good = sum(spell(compiler, rng) for _ in range(num_grammars))
    assert num_grammars // 5 < good < num_grammars
