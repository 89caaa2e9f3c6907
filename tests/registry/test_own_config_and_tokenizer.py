"""A third party's plugin for a model type that transformers does not know, with a tokenizer file of its own."""

import json
import shutil

import pytest
from registry.plugin_distributions import install

from pipezoo import registry
from pipezoo_core.errors import UnsupportedModelError, UnsupportedTokenizerError

PLUGIN = """
from pipezoo_core.architecture import SupportedArchitecture
from pipezoo_core.config import WeightsFormat
from pipezoo_core.hookspecs import hookimpl

API_VERSION = 1


def read_words(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = folder / "words.model"
    if not path.is_file():
        return None
    words = path.read_text().split()
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0])


@hookimpl
def pipezoo_architectures():
    from transformers import LlamaConfig

    from pipezoo_llama.model import LlamaPipelineModel
    from pipezoo_llama.weight_adapters import adapt_safetensors

    class ParrotConfig(LlamaConfig):
        model_type = "parrot"

    def read_config(raw):
        return ParrotConfig(hidden_size=raw["width"], num_hidden_layers=raw["depth"], **raw["rest"])

    return [
        SupportedArchitecture(
            name="ParrotForCausalLM",
            aliases=("OldParrotModel",),
            model_types=("parrot", "parrot_2"),
            pipeline_model=LlamaPipelineModel,
            huggingface_config=read_config,
            weight_adapters={WeightsFormat.safetensors: adapt_safetensors},
            tokenizer=read_words,
        )
    ]
"""
SETTINGS = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB"}
WORDS = "? the parrot says what you say"


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    """A folder of such a model, the plugin being installed."""
    site, model = tmp_path / "site", tmp_path / "model"
    install(site, "parrots", "parrot", "parrot_2", source=PLUGIN)
    monkeypatch.syspath_prepend(site)
    registry.refresh()
    model.mkdir()
    shutil.copy(tiny_folder / "model.safetensors", model)
    config = json.loads((tiny_folder / "config.json").read_text())
    rest = {key: config[key] for key in ("vocab_size", "intermediate_size", "num_attention_heads")}
    rest |= {key: config[key] for key in ("num_key_value_heads", "max_position_embeddings")}
    raw = {"model_type": "parrot", "width": config["hidden_size"], "depth": config["num_hidden_layers"], "rest": rest}
    raw["auto_map"] = {"AutoConfig": "parrot.ParrotConfig", "AutoModelForCausalLM": "parrot.Parrot"}
    (model / "config.json").write_text(json.dumps(raw))
    (model / "words.model").write_text(WORDS)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "ParrotTokenizer"}')
    (model / "parrot.py").write_text("raise AssertionError('remote code was run')")
    yield model
    monkeypatch.undo()
    registry.refresh()


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("changes", [{}, {"model_type": "parrot_2"}, {"architectures": ["OldParrotModel"]}])
def test_it_answers(folder, changes, greedy):
    edit_config(folder, **changes)
    llm = registry.load(folder, **SETTINGS)
    output = llm.generate("what the parrot says", temperature=0.0, ignore_eos=True, max_new_tokens=8)[0]
    assert output.tokens == greedy([4, 1, 2, 3], 8)


def test_a_config_that_its_class_cannot_read_is_refused(folder):
    edit_config(folder, rest="nothing")
    with pytest.raises(UnsupportedModelError, match="the config is not one of ParrotForCausalLM"):
        registry.load(folder, **SETTINGS)


def test_what_its_tokenizer_raises_is_the_cause_of_ours(folder):
    (folder / "words.model").write_text("")
    with pytest.raises(UnsupportedTokenizerError, match="cannot be read") as caught:
        registry.load(folder, **SETTINGS)
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_folder_that_it_leaves_to_transformers(folder, tiny_folder, greedy):
    (folder / "words.model").unlink()
    with pytest.raises(UnsupportedTokenizerError, match="has no tokenizer"):
        registry.load(folder, **SETTINGS)
    shutil.copy(tiny_folder / "tokenizer.json", folder)
    llm = registry.load(folder, **SETTINGS)
    tokens = llm.tokenizer.encode("hello").tolist()
    output = llm.generate("hello", temperature=0.0, ignore_eos=True, max_new_tokens=8)[0]
    assert output.tokens == greedy(tokens, 8)
