"""Requests made up from the server's own description of itself, as it wants them and otherwise: none breaks it."""

import httpx
import pytest
from serving import described

pytestmark = pytest.mark.slow

NUM_EXAMPLES = 30  # of each address and kind


@pytest.mark.parametrize("is_valid", [True, False], ids=["valid", "invalid"])
def test_no_request_breaks_the_server(server, is_valid):
    assert described.ask_all(server.url, is_valid=is_valid, num_examples=NUM_EXAMPLES) > NUM_EXAMPLES
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "the", "max_tokens": 2, "temperature": 0})
    assert answer.status_code == 200
