"""The clients of lm-eval, unmodified: over HTTP they compute what the pipeline gives, to the last digit."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers

from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.slow

ITEMS = [
    {"question": "the cat sat on the", "choices": [" mat", " hat he had", " the"], "answer": 0},
    {"question": "once upon a", "choices": [" time", " cat"], "answer": 1},
    {"question": "he said that", "choices": [" he", " she", " it was", " all"], "answer": 2},
]


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    os.environ.setdefault("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    return pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def task(items, **settings):
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(
        config={
            "task": "items",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(items)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "num_fewshot": 0,
            **settings,
        }
    )


def client(name, url, folder, **settings):
    from lm_eval.api.registry import get_model

    settings = {"tokenizer": str(folder), "tokenizer_backend": "huggingface", "max_length": 200, **settings}
    return get_model(name)(base_url=url, model="tiny", num_concurrent=2, **settings)


def evaluate(lm_eval, lm, asked):
    found = lm_eval.simple_evaluate(model=lm, tasks=[asked], log_samples=True, bootstrap_iters=0, verbosity="ERROR")
    return sorted(found["samples"]["items"], key=lambda sample: sample["doc_id"])


def log_likelihood(llm, context, continuation):
    """The sum of the continuation's log probabilities, and whether each of its tokens is the likeliest."""
    settings = {"max_new_tokens": 1, "temperature": 0.0, "log_probabilities": 1, "echo": True, "ignore_eos": True}
    [output] = llm.generate([TextGenerationRequest(prompt=context + continuation)], **settings)
    echoed = output.log_probabilities[0]  # the prompt's tokens from the second on, and the new one
    asked = slice(len(context) - 1, len(context) - 1 + len(continuation))
    chosen = echoed.token_log_probabilities[asked]
    best = [max(top.values()) for top in echoed.top_log_probabilities[asked]]
    return sum(chosen), chosen == best


@pytest.fixture
def _engines_threads():
    """As many threads as a new process has, the engine's too: more or fewer may add up in another order."""
    before = torch.get_num_threads()
    asked = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    torch.set_num_threads(int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_engines_threads")
def test_log_likelihoods(lm_eval, items, server, llm, tiny_folder):
    asked = task(
        items,
        output_type="multiple_choice",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        target_delimiter="",
    )
    lm = client("local-completions", f"{server.url}/v1/completions", tiny_folder)
    samples = evaluate(lm_eval, lm, asked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    assert len(samples) == len(ITEMS)
    for sample, item in zip(samples, ITEMS, strict=True):
        for [found], choice in zip(sample["resps"], item["choices"], strict=True):
            context = tokenizer.encode(item["question"], add_special_tokens=False)
            whole = tokenizer.encode(item["question"] + choice, add_special_tokens=False)
            assert found == log_likelihood(llm, context, whole[len(context) :])


def test_generated_text(lm_eval, items, server, llm, tiny_folder):
    asked = task(
        items,
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 12, "temperature": 0.0},
    )
    lm = client("local-completions", f"{server.url}/v1/completions", tiny_folder)
    found = [sample["resps"][0][0] for sample in evaluate(lm_eval, lm, asked)]
    questions = [item["question"] for item in ITEMS]
    expected = llm.generate(questions, max_new_tokens=12, temperature=0.0, stop="\n\n")
    assert found == [output.text for output in expected]


def test_generated_text_of_chats(lm_eval, items, server, llm, tiny_folder):
    asked = task(
        items,
        output_type="generate_until",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 12, "temperature": 0.0},
    )
    lm = client("local-chat-completions", f"{server.url}/v1/chat/completions", tiny_folder)
    found = lm_eval.simple_evaluate(
        model=lm, tasks=[asked], log_samples=True, bootstrap_iters=0, apply_chat_template=True, verbosity="ERROR"
    )
    samples = sorted(found["samples"]["items"], key=lambda sample: sample["doc_id"])
    chats = [[{"role": "user", "content": item["question"]}] for item in ITEMS]
    expected = [llm.chat(chat, max_new_tokens=12, temperature=0.0, stop="\n\n").text for chat in chats]
    assert [sample["resps"][0][0] for sample in samples] == expected
