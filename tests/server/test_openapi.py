"""Requests made up from the server's own description of itself, as it wants them and otherwise: none breaks it."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

pytestmark = pytest.mark.slow

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
NUM_EXAMPLES = 30  # of each address and kind


@pytest.mark.parametrize("kind", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_breaks_the_server(server, kind):
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/health"} <= {one.path for one in operations}
    for operation in operations:
        if kind is GenerationMode.NEGATIVE and operation.method != "post":
            continue  # nothing in it could be wrong

        @settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=kind))
        def ask(case):
            case.validate_response(case.call(timeout=60), checks=CHECKS)

        ask()
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "the", "max_tokens": 2, "temperature": 0})
    assert answer.status_code == 200
