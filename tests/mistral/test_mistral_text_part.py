"""The text part of a Mistral 3 that also sees, a Mistral or a Ministral 3: weights of either name, adapters."""

import json
import shutil

import pytest
from families import PROMPTS, assert_equal_logits, expected_logits
from gguf_files import TOKENS
from lora.peft_adapters import merged, save_adapter
from mistral.test_ministral3 import ROPE
from safetensors.torch import load_file, save_file
from tiny_models import TINY_LLAMA, load_model, logits_of, randomize
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import CheckpointMismatchError, InvalidRequestError, UnsupportedModelError
from pipezoo_core.request import TextGenerationRequest
from pipezoo_mistral.config import MistralConfig
from pipezoo_mistral.huggingface_config import text_part
from pipezoo_mistral.model import MistralPipelineModel
from pipezoo_mistral.weight_adapters import adapt_text_part

VISION = {
    "head_dim": 8,
    "hidden_size": 16,
    "image_size": 32,
    "intermediate_size": 24,
    "model_type": "pixtral",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 8,
}
SIZES = {**TINY_LLAMA, "vocab_size": len(TOKENS), "head_dim": 16}
TEXTS = {
    "mistral": {**SIZES, "model_type": "mistral", "sliding_window": None, "rms_norm_eps": 1e-3},
    "ministral3": {**SIZES, "model_type": "ministral3", "rope_parameters": dict(ROPE)},
}
CASES = {"mistral": ("mistral", False), "ministral3": ("ministral3", False), "tied": ("ministral3", True)}


@pytest.fixture(scope="module", params=CASES)
def reference(request):
    kind, tied = CASES[request.param]
    config = Mistral3Config(
        text_config=dict(TEXTS[kind]), vision_config=VISION, image_token_index=98, tie_word_embeddings=tied
    )
    model = Mistral3ForConditionalGeneration(config)
    model.set_attn_implementation("eager")
    return randomize(model)


@pytest.fixture(scope="module")
def folder(reference, tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistral3")
    reference.save_pretrained(folder)
    for path in tiny_folder.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def of_text(folder):
    """What `load_model` takes."""
    raw = json.loads((folder / "config.json").read_text())
    return MistralPipelineModel, folder, text_part(raw), adapt_text_part


def with_names(folder, target, rename):
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    shutil.copytree(folder, target, dirs_exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def new_name(name):
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return f"model.{name.replace('language_model.model.', 'language_model.')}"


@pytest.mark.parametrize("rename", [str, new_name], ids=["saved", "new"])
def test_logits_equal_transformers(rename, reference, folder, tmp_path):
    assert_equal_logits(reference, load_model(*of_text(with_names(folder, tmp_path, rename))))


def test_the_names_that_are_tried_differ(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert not names & {new_name(name) for name in names}
    assert any("vision_tower" in name for name in names)


def test_a_tensor_that_is_neither_is_reported(folder, tmp_path):
    def rename(name):
        return name.replace("vision_tower", "audio_tower")

    with pytest.raises(CheckpointMismatchError, match="audio_tower"):
        load_model(*of_text(with_names(folder, tmp_path, rename)))


def test_an_adapter_of_the_text_part_equals_the_merged_model(reference, folder, tmp_path):
    save_adapter(reference, tmp_path, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    adapted = merged(reference, tmp_path)
    loras = LoRAConfig(lora_paths=[f"one={tmp_path}"])
    found = logits_of(load_model(*of_text(folder), lora=loras), PROMPTS[:2], loras=["one", None])
    for logits, model, prompt in zip(found, (adapted, reference), PROMPTS, strict=False):
        assert (logits - expected_logits(model, prompt)).abs().max() < 1e-4
    assert (expected_logits(adapted, PROMPTS[0]) - expected_logits(reference, PROMPTS[0])).abs().max() > 0.1


def test_it_is_loaded_as_it_lies(reference, folder):
    with registry.load(folder, dtype="float32", device="cpu", kv_cache_memory="4MiB") as llm:
        request = TextGenerationRequest(prompt=PROMPTS[0])
        (output,) = llm.generate(request, max_new_tokens=1, temperature=0.0, ignore_eos=True)
        assert output.tokens == [expected_logits(reference, PROMPTS[0])[-1].argmax().item()]
        image = {"type": "image", "url": "cat.png"}
        with pytest.raises(InvalidRequestError, match="image"):
            llm.tokenizer.apply_chat_template([{"role": "user", "content": [image]}])


def test_says_what_transformers_says(reference, folder):
    found = MistralConfig.from_huggingface(of_text(folder)[2])
    theirs = reference.config.text_config
    theirs.tie_word_embeddings = reference.config.tie_word_embeddings
    assert found == MistralConfig.from_huggingface(theirs)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "text part is not described"),
        ({"model_type": "mistral4"}, "text part is a 'mistral4'"),
        ({"num_local_experts": 4}, "mixture of experts"),
        ({"model_type": "ministral3", "sliding_window": 0}, "sliding_window of 0"),
    ],
    ids=str,
)
def test_refused(text, why, tmp_path):
    raw = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(UnsupportedModelError, match=why):
        registry.resolve(tmp_path)
