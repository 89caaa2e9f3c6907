"""The text part of a Gemma 3 that also sees: weights of either name, adapters, chats."""

import json
import shutil

import pytest
import torch
from families import PROMPTS, assert_equal_logits, expected_logits
from gemma.tiny_gemma import MIXED
from gguf_files import TOKENS
from lora.peft_adapters import merged, save_adapter
from safetensors.torch import load_file, save_file
from tiny_models import TINY_LLAMA, load_model, logits_of, randomize
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import CheckpointMismatchError, InvalidRequestError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_gemma.huggingface_config import text_part
from pipezoo_gemma.model import GemmaPipelineModel
from pipezoo_gemma.weight_adapters import adapt_text_part

VISION = {
    "hidden_size": 16,
    "image_size": 32,
    "intermediate_size": 24,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 8,
}
TEXT = {**TINY_LLAMA, "vocab_size": len(TOKENS), "head_dim": 16, "sliding_window": 12, "layer_types": MIXED}
# What Gemma's templates do: `model` for the assistant, turns in order, the system's text before the user's first.
TEMPLATE = """\
{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
{{- first if loop.first else '' }}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ part['text'] | trim }}{%- endif -%}
{%- endfor -%}{%- endif -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""


@pytest.fixture(scope="module")
def reference():
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=98)
    model = Gemma3ForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    randomize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.sub_(1)  # Gemma's norms add the 1
    return model


@pytest.fixture(scope="module")
def folder(reference, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma3")
    reference.save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def of_text(reference, folder):
    """What `load_model` takes."""
    raw = json.loads((folder / "config.json").read_text())
    return GemmaPipelineModel, folder, text_part(raw), adapt_text_part


def with_names(folder, target, rename):
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    shutil.copytree(folder, target, dirs_exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def old_name(name):
    return name.replace("model.language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")


def new_name(name):
    if not name.startswith(("language_model.", "vision_tower.", "multi_modal_projector.")):
        return name
    return f"model.{name.replace('language_model.model.', 'language_model.')}"


@pytest.mark.parametrize("rename", [str, old_name, new_name], ids=["saved", "old", "new"])
def test_logits_equal_transformers(rename, reference, folder, tmp_path):
    assert_equal_logits(reference, load_model(*of_text(reference, with_names(folder, tmp_path, rename))))


def test_the_names_that_are_tried_differ(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert {new_name(name) for name in names} != {old_name(name) for name in names}
    assert any("vision_tower" in name for name in names)


def test_a_tensor_that_is_neither_is_reported(reference, folder, tmp_path):
    def rename(name):
        return name.replace("vision_tower", "audio_tower")

    with pytest.raises(CheckpointMismatchError, match="audio_tower"):
        load_model(*of_text(reference, with_names(folder, tmp_path, rename)))


def test_a_null_of_the_whole_leaves_what_the_text_part_says():
    raw = {"eos_token_id": None, "bos_token_id": 3, "text_config": {"eos_token_id": 7, "bos_token_id": 1}}
    found = text_part(raw)
    assert (found.eos_token_id, found.bos_token_id) == (7, 3)


def test_an_adapter_of_the_text_part_equals_the_merged_model(reference, folder, tmp_path):
    save_adapter(reference, tmp_path, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    adapted = merged(reference, tmp_path)
    loras = LoRAConfig(lora_paths=[f"one={tmp_path}"])
    found = logits_of(load_model(*of_text(reference, folder), lora=loras), PROMPTS[:2], loras=["one", None])
    for logits, model, prompt in zip(found, (adapted, reference), PROMPTS, strict=False):
        assert (logits - expected_logits(model, prompt)).abs().max() < 1e-4
    assert (expected_logits(adapted, PROMPTS[0]) - expected_logits(reference, PROMPTS[0])).abs().max() > 0.1


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " hello "},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "What is it?"},
]


@pytest.fixture(scope="module")
def llm(folder):
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        yield llm


@pytest.mark.parametrize("messages", [CHAT[:2], CHAT, CHAT[1:]], ids=["first", "later", "no_system"])
def test_chats_render_as_transformers_renders_them(llm, messages, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert llm.tokenizer.apply_chat_template(messages) == expected
    assert ("Be brief." in expected) == (messages[0]["role"] == "system")


def test_images_are_refused(llm):
    text = {"type": "text", "text": "What is it?"}
    chat = [{"role": "user", "content": [text]}]
    assert llm.tokenizer.apply_chat_template(chat) == llm.tokenizer.apply_chat_template(CHAT[3:])
    for image in ({"type": "image", "url": "cat.png"}, {"type": "image_url", "image_url": {"url": "cat.png"}}):
        with pytest.raises(InvalidRequestError, match="image"):
            llm.tokenizer.apply_chat_template([{"role": "user", "content": [image, text]}])


def test_it_is_loaded_as_it_lies(llm, reference):
    request = TextGenerationRequest(prompt=PROMPTS[0])
    (output,) = llm.generate(request, max_new_tokens=1, temperature=0.0, ignore_eos=True)
    assert output.tokens == [expected_logits(reference, PROMPTS[0])[-1].argmax().item()]
