"""Requests that come and go in a loop are answered as by calls, and leave nothing behind."""

import time

import pytest

from pipezoo_core.errors import InvalidRequestError, PromptTooLongError
from pipezoo_core.request import TextGenerationOutput, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

SETTINGS = {"max_new_tokens": 9, "seed": 3, "ignore_eos": True}


def request(llm, prompt, request_id, **changes):
    params = llm.sampling_params.updated(**{**SETTINGS, **changes})
    return TextGenerationRequest(prompt=prompt, sampling_params=params, request_id=request_id)


def drive(driver, steps=10**6):
    outputs = []
    for _ in range(steps):
        if driver.is_idle:
            break
        outputs += driver.step()
    return outputs


def text_of(outputs, request_id, index=0):
    pieces = [output for output in outputs if (output.request_id, output.index) == (request_id, index)]
    return TextGenerationOutput.joined(pieces).text


def test_requests_that_come_at_any_time(load_tiny):
    llm = load_tiny()
    expected = [output.text for output in llm.generate(["he", "she says", "we"], **SETTINGS)]
    driver = llm.driver()
    driver.begin(driver.prepare(request(llm, "he", "a")))
    outputs = drive(driver, steps=3)
    driver.begin(driver.prepare(request(llm, "she says", "b")))
    outputs += drive(driver, steps=2)
    driver.begin(driver.prepare(request(llm, "we", "c")))
    outputs += drive(driver)
    assert [text_of(outputs, each) for each in "abc"] == expected
    assert driver.is_idle


def test_several_answers(load_tiny):
    llm = load_tiny()
    [expected] = llm.generate("he", n=3, **SETTINGS)
    driver = llm.driver()
    driver.begin(driver.prepare(request(llm, "he", "a", n=3)))
    outputs = drive(driver)
    assert {output.request_id for output in outputs} == {"a"}
    assert [text_of(outputs, "a", index) for index in range(3)] == [answer.text for answer in expected.answers]


def test_one_that_is_cancelled_gives_its_pages_back_at_once(load_tiny):
    llm = load_tiny()
    driver = llm.driver()
    for each in "ab":
        driver.begin(driver.prepare(request(llm, "he says", each, n=2)))
    drive(driver, steps=2)
    driver.cancel("a")
    assert llm.scheduler.num_running == 2
    driver.cancel("a")
    driver.cancel("nobody")
    outputs = drive(driver)
    assert {output.request_id for output in outputs} == {"b"}


def test_what_cannot_begin_is_an_output(load_tiny):
    llm = load_tiny()
    driver = llm.driver()
    driver.begin(driver.prepare(request(llm, [1] * 300, "long")))
    driver.begin(driver.prepare(request(llm, "he", "fine")))
    outputs = drive(driver)
    [failed] = [output for output in outputs if output.request_id == "long"]
    assert isinstance(failed.error, PromptTooLongError)
    assert text_of(outputs, "fine") == llm.generate("he", **SETTINGS)[0].text
    driver.begin(driver.prepare(request(llm, [10**9], "unknown")))
    [failed] = drive(driver)
    assert isinstance(failed.error, InvalidRequestError)


def test_what_fails_a_step_fails_its_requests(load_tiny, monkeypatch):
    llm = load_tiny()
    driver = llm.driver()
    driver.begin(driver.prepare(request(llm, "he", "a")))
    driver.begin(driver.prepare(request(llm, "she", "b", n=2)))

    def fail():
        raise RuntimeError("the scheduler is broken")

    with monkeypatch.context() as patch:
        patch.setattr(llm.scheduler, "schedule", fail)
        outputs = driver.step()
    assert sorted((output.request_id, output.index) for output in outputs) == [("a", 0), ("b", 0), ("b", 1)]
    assert all("broken" in str(output.error) for output in outputs)
    assert driver.is_idle
    driver.begin(driver.prepare(request(llm, "he", "a")))
    assert text_of(drive(driver), "a") == llm.generate("he", **SETTINGS)[0].text


def test_times_count_from_when_the_client_asked(load_tiny):
    llm = load_tiny()
    driver = llm.driver()
    driver.begin(driver.prepare(request(llm, "he", "a"), time.monotonic() - 100))
    *_, last = drive(driver)
    assert 100 < last.timing.queue <= last.timing.first_token <= last.timing.total < 200


def test_the_prompts_tokens_are_answered_like_its_text(load_tiny):
    llm = load_tiny()
    params = SamplingParams(max_new_tokens=5, truncate_prompt_tokens=4)
    asked = TextGenerationRequest(messages=[{"role": "user", "content": "he says hello"}])
    tokens = llm.tokenizer.prompt_tokens(asked, params)
    assert (
        tokens
        == llm.tokenizer.new_context(TextGenerationRequest(messages=asked.messages, sampling_params=params)).tokens
    )
    assert len(tokens) == 4
    with pytest.raises(PromptTooLongError):
        llm.tokenizer.prompt_tokens(TextGenerationRequest(prompt="a" * 10_000), SamplingParams())
