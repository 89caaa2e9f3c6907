"""Requests made up from a server's own description of itself, as it wants them and otherwise."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

__all__ = ["CHECKS", "ask_all"]

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
PATHS = {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/health"}


def ask_all(url: str, *, is_valid: bool, num_examples: int, from_seed: int | None = None) -> int:
    """Sends requests to all addresses of a server, and returns how many.

    Args:
        url: of the server.
        is_valid: whether they are as the description wants them.
        num_examples: most requests of each address.
        from_seed: None for the same requests each time.

    Raises:
        Exception: an answer is not as the description promises, or an error of the server.
    """
    kind = GenerationMode.POSITIVE if is_valid else GenerationMode.NEGATIVE
    operations = [found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    if missing := PATHS - {one.path for one in operations}:
        raise LookupError(f"the description lacks {missing}")
    return sum(
        _ask(operation.as_strategy(generation_mode=kind), num_examples, from_seed)
        for operation in operations
        if is_valid or operation.method == "post"  # in the others nothing could be wrong
    )


def _ask(strategy: Any, num_examples: int, from_seed: int | None) -> int:
    count = 0

    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=from_seed is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def ask(case: Any) -> None:
        nonlocal count
        count += 1
        case.validate_response(case.call(timeout=60), checks=CHECKS)

    (ask if from_seed is None else seed(from_seed)(ask))()
    return count
