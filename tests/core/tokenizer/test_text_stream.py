"""Streamed text against decoding the whole answer at once."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipezoo_core.tokenizer import TextStream

PIECES = [
    "👩‍👩‍👧",
    "🇩🇪",
    "e\u0301",
    "中文",
    "\ufffd",
    " ",
    "  ",
    "\n",
    "é",
    "hello",
    "aé",
    "😀",
    "<eos>",
    "a",
    "b",
    "the",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)


def decoder(tokenizer):
    return lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stream_all(stream, tokens):
    pieces = [stream.push(token) for token in tokens]
    return "".join(pieces) + stream.finish()


def continuation(decode, prompt, answer):
    """The text of the answer, with the whole character that the prompt may have begun."""
    before, whole = decode(prompt), decode([*prompt, *answer])
    same = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), min(len(before), len(whole))
    )
    return whole[same:]


def check_continuation(decode, prompt, answer):
    assert stream_all(TextStream(decode, prompt_tokens=prompt), answer) == continuation(decode, prompt, answer)


def cut(draw, tokens):
    at = draw(st.integers(1, len(tokens)))
    return tokens[:at], tokens[at:]


@given(text=TEXTS, data=st.data())
def test_pieces_are_the_text_that_decoding_at_once_gives(smollm2, text, data):
    check_continuation(decoder(smollm2), *cut(data.draw, smollm2.encode("x" + text)))


@given(text=TEXTS, data=st.data())
def test_sentencepiece_spaces_and_byte_fallback(sentencepiece, text, data):
    assume("\ufffd" not in text)  # spelled in bytes, which are decoded as a whole, it cannot be told from wrong ones
    check_continuation(decoder(sentencepiece), *cut(data.draw, sentencepiece.encode(text)))


@given(prompt=st.lists(st.integers(0, 273), min_size=1, max_size=24), answer=st.lists(st.integers(0, 273), max_size=24))
def test_any_tokens_valid_text_or_not(byte_level, prompt, answer):
    check_continuation(decoder(byte_level), prompt, answer)


@given(
    prompt=st.lists(st.sampled_from([0x61, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0xFF]), min_size=1, max_size=20),
    answer=st.lists(st.sampled_from([0x61, 0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0xFF]), max_size=60),
)
def test_any_bytes(byte_level, prompt, answer):
    check_continuation(decoder(byte_level), prompt, answer)


@given(text=TEXTS, data=st.data())
def test_nothing_is_held_back_but_an_incomplete_character(smollm2, text, data):
    decode = decoder(smollm2)
    tokens = smollm2.encode("x" + text)
    assume("\ufffd" not in decode(tokens))  # the vocabulary lacks a few bytes that only unassigned characters need
    prompt, answer = cut(data.draw, tokens)
    stream, given_out = TextStream(decode, prompt_tokens=prompt), ""
    for i, token in enumerate(answer):
        given_out += stream.push(token)
        assert given_out == continuation(decode, prompt, answer[: i + 1]).rstrip("\ufffd")


def test_a_character_is_never_split(byte_level):
    stream = TextStream(decoder(byte_level), prompt_tokens=[0x61])
    assert [stream.push(byte) for byte in "é中😀".encode()] == ["", "é", "", "", "中", "", "", "", "😀"]


def test_a_character_that_the_prompt_begins_belongs_to_the_answer(byte_level):
    first, *rest = "é!".encode()
    assert stream_all(TextStream(decoder(byte_level), prompt_tokens=[0x61, first]), rest) == "é!"


def test_bytes_that_are_no_text_are_shown_once(byte_level):
    check_continuation(decoder(byte_level), [0x61, 0xC3], [0xFF] * 40)


def test_an_incomplete_character_at_the_end_is_shown(byte_level):
    stream = TextStream(decoder(byte_level), prompt_tokens=[0x61])
    assert (stream.push(0xE4), stream.push(0xB8), stream.finish()) == ("", "", "\ufffd")


def test_the_space_of_the_first_word_is_kept_behind_a_prompt(sentencepiece):
    decode = decoder(sentencepiece)
    prompt, the = sentencepiece.encode("<s>the</s></s></s></s></s>"), sentencepiece.convert_tokens_to_ids("▁the")
    assert TextStream(decode, prompt_tokens=prompt).push(the) == " the"
    assert TextStream(decode, prompt_tokens=[1]).push(the) == "the"


def test_a_replacement_character_of_bytes_is_text(sentencepiece):
    decode = decoder(sentencepiece)
    stream = TextStream(decode, prompt_tokens=[1])
    assert [stream.push(3 + byte) for byte in "\ufffd".encode() * 2] == ["", "", "\ufffd"] * 2
    check_continuation(decode, [1], [3 + byte for byte in ("\ufffd" * 20 + "日").encode()])


def test_byte_fallback_behind_a_character_of_bytes(sentencepiece):
    decode = decoder(sentencepiece)
    in_bytes = [3 + byte for byte in "日本語".encode()]
    for at in range(1, len(in_bytes)):
        check_continuation(decode, in_bytes[:at], in_bytes[at:])


def test_what_was_shown_stays_when_later_bytes_spoil_the_run(sentencepiece):
    stream = TextStream(decoder(sentencepiece), prompt_tokens=sentencepiece.encode("a"))
    text = stream_all(
        stream, [*(3 + byte for byte in "日".encode()), 3 + 0xFF, sentencepiece.convert_tokens_to_ids("x")]
    )
    assert text.startswith("日\ufffd")
    assert text.endswith("x")


@pytest.mark.parametrize("token", [0x61, 0xC3, 0xFF, 271])
def test_the_window_stays_short(byte_level, token):
    longest = 0

    def decode(tokens):
        nonlocal longest
        longest = max(longest, len(tokens))
        return decoder(byte_level)(tokens)

    stream_all(TextStream(decode, prompt_tokens=[0x61]), [token] * 200)
    assert longest <= 16


def first_stop(text, stops, begin):
    """Where the text ends, and at which stop text; the whole text and None where it has none."""
    found = [(text.find(s, begin) + len(s), text.find(s, begin), s) for s in stops if s in text[begin:]]
    return min(found)[1:] if found else (len(text), None)


@given(text=TEXTS, filler=TEXTS, minimum=st.integers(0, 6), data=st.data())
def test_text_ends_before_the_first_stop(smollm2, text, filler, minimum, data):
    decode = decoder(smollm2)
    text = (text + filler).replace("\ufffd", "")
    prompt, answer = smollm2.encode("x"), smollm2.encode(text)
    whole = decode(answer)
    spans = st.tuples(st.integers(0, len(whole)), st.integers(1, 6)).map(lambda span: whole[span[0] : sum(span)])
    stops = data.draw(
        st.lists(spans | st.sampled_from(["ab", "aab", "he"]), max_size=3).map(lambda s: [x for x in s if x])
    )
    begin = len(decode(answer[:minimum]).rstrip("\ufffd"))
    end, stop = first_stop(whole, stops, begin)

    stream = TextStream(decode, prompt_tokens=prompt, stop=stops, min_new_tokens=minimum)
    assert stream_all(stream, answer) == whole[:end]
    assert stream.stop_text == stop


@given(
    text=st.text("ab", max_size=20),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    include=st.booleans(),
    data=st.data(),
)
def test_the_result_does_not_depend_on_the_cut_into_tokens(text, stops, include, data):
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]

    def decode(tokens):
        return "".join(["prompt", *pieces][token] for token in tokens)

    stream = TextStream(decode, prompt_tokens=[0], stop=stops, include_stop=include)
    end, stop = first_stop(text, stops, 0)
    assert stream_all(stream, range(1, len(pieces) + 1)) == text[:end] + (stop if include and stop else "")
    assert stream.stop_text == stop


def test_only_what_may_begin_a_stop_text_is_held_back():
    texts = ["prompt", "see <", "/", "i> <", "/en", "d>", "more"]
    stream = TextStream(lambda tokens: "".join(texts[t] for t in tokens), prompt_tokens=[0], stop=["</end>"])
    assert [stream.push(token) for token in range(1, 7)] == ["see ", "", "</i> ", "", "", ""]
    assert stream.stop_text == "</end>"
    assert stream.finish() == ""


def test_a_stop_text_counts_only_behind_the_protected_tokens():
    texts = ["prompt", "stop", "st", "op", "stop"]
    stream = TextStream(
        lambda tokens: "".join(texts[t] for t in tokens), prompt_tokens=[0], stop=["stop"], min_new_tokens=2
    )
    assert [stream.push(token) for token in (1, 2, 3, 4)] == ["stop", "st", "op", ""]
    assert stream.stop_text == "stop"


def before_stop(pieces, stops):
    """The answer's text before the first stop text, character by character: in it, or in it with its special tokens."""
    shown, seen = [], ""  # where, in what was seen, the answer's characters are
    for text, is_special in pieces:
        for character in text:
            seen += character
            if not is_special:
                shown.append(len(seen) - 1)
            answer = "".join(seen[place] for place in shown)
            begins = [(len(seen) - len(stop), stop) for stop in stops if seen.endswith(stop)]
            if not is_special:
                begins += [(shown[len(shown) - len(stop)], stop) for stop in stops if answer.endswith(stop)]
            if begins:
                begin, stop = min(begins)
                return "".join(seen[place] for place in shown if place < begin), stop
    return "".join(seen[place] for place in shown), None


@given(
    pieces=st.lists(st.tuples(st.text("ab<", min_size=1, max_size=3), st.booleans()), max_size=12),
    stops=st.lists(st.text("ab<", min_size=1, max_size=5), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_stop_texts_may_name_special_tokens(pieces, stops, include):
    texts, special = ["prompt", *(text for text, _ in pieces)], {i: t for i, (t, s) in enumerate(pieces, 1) if s}
    stream = TextStream(
        lambda tokens: "".join(texts[token] for token in tokens if token not in special),
        prompt_tokens=[0],
        stop=stops,
        special_texts=special,
        include_stop=include,
    )
    found = stream_all(stream, range(1, len(texts)))
    text, stop = before_stop(pieces, stops)
    assert (found, stream.stop_text) == (text + (stop if include and stop else ""), stop)
