"""The kit writes GGUF files itself: shipped plugins read them, mistakes in what is undone are named."""

import re
from dataclasses import replace

import pytest
from gguf_files import TOKENS, write_llama_gguf
from testing.planting import Bug, forget, plant
from testing.test_kit import PlainLlama

from pipezoo_core.testing import ConformanceError, NotCheckedError, tiny_configs
from pipezoo_core.testing.bench import Bench
from pipezoo_core.testing.checked_distribution import Answer, check_distribution
from pipezoo_core.testing.gguf_checks import check_gguf

READ = {  # by shipped plugins
    "pipezoo-deepseek": {"deepseek_v2", "deepseek_v3"},
    "pipezoo-gemma": {"gemma", "gemma2", "gemma3", "gemma3_text"},
    "pipezoo-gpt": {"bloom", "falcon", "gpt2", "gpt_neox"},
    "pipezoo-gpt-oss": {"gpt_oss"},
    "pipezoo-granite": {"granitemoehybrid"},
    "pipezoo-lfm2": {"lfm2", "lfm2_moe"},
    "pipezoo-llama": {"llama"},
    "pipezoo-mistral": {"mixtral"},
    "pipezoo-nemotron": {"nemotron_h"},
    "pipezoo-olmo": {"olmo", "olmo2", "olmo3"},
    "pipezoo-phi": {"phi", "phi3"},
    "pipezoo-qwen": {
        "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
        "qwen3_next",
    },
}  # fmt: skip
NORMS = "dict.fromkeys(_ALL_GGUF_NORMS, _without_the_one)"
BUGS = [
    Bug(
        "rows not put back", "pipezoo_llama", "weight_adapters.py", "renamed_from_gguf(tensors, changes)",
        "renamed_from_gguf(tensors)", "llama", "plain", "", "the weight adapter does not undo .* q's and k's rows",
    ),
    Bug(
        "the one left in norms", "pipezoo_gemma", "weight_adapters.py", NORMS, "{}",
        "gemma2", "plain", "", "the weight adapter does not undo .* added to the weights of norms",
    ),
    Bug(
        "parts mixed up", "pipezoo_gpt", "fused_heads.py",
        'parts = {"q_proj": heads.queries.size, "k_proj": heads.keys.size, "v_proj": heads.keys.size}',
        'parts = {"k_proj": heads.keys.size, "q_proj": heads.queries.size, "v_proj": heads.keys.size}',
        "bloom", "plain", "", "the weight adapter does not undo .* a fused layer's rows",
    ),
    Bug(
        "soft cap left out", "pipezoo_gemma", "config.py",
        'file.metadata.get("gemma2.final_logit_softcapping", 30.0)', "0.5",
        "gemma2", "plain", "", "config_from_gguf leaves an entry out.* of the file, logit_softcap of",
    ),
    Bug(
        "bias left out", "pipezoo_llama", "config.py", '"blk.0.attn_q.bias" in file.weights', "False",
        "llama", "attention_bias", "", "weights do not fit",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, id=bug.name, marks=pytest.mark.slow if number else ()) for number, bug in enumerate(BUGS)]
)
def test_what_is_wrong_with_a_file_is_named(bug, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    distribution = plant(bug, site)
    configs = {bug.config: tiny_configs(bug.model_type)[bug.config]}
    bench = Bench(tmp_path / "bench", distribution)
    try:
        with pytest.raises(Exception, match=re.compile(bug.cause, re.DOTALL)):
            check_gguf(bench.plugin(configs), bench.subjects(configs))
    finally:
        forget(distribution)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", READ)
def test_shipped_plugins_read_what_the_kit_writes(distribution, tmp_path):
    outcomes = [each for each in check_distribution(distribution, tmp_path, only=["gguf"]) if each.check == "gguf"]
    assert [each.message for each in outcomes if each.answer is Answer.failed] == []
    assert {each.model_type for each in outcomes if each.answer is Answer.passed} == READ[distribution]


def test_a_file_of_the_authors_own_is_taken(tmp_path):
    written = []

    def write(reference, path):
        written.append(path)
        write_llama_gguf(path, reference)

    configs = {"plain": {**tiny_configs("llama")["plain"], "vocab_size": len(TOKENS)}}
    bench = Bench(tmp_path, write_gguf=write)
    (subject,) = bench.subjects(configs)
    check_gguf(bench.plugin(configs), [subject])
    assert written == [subject.gguf_file]
    subject.reference.lm_head.weight.data.neg_()  # behind the file's back
    subject._expected.clear()
    with pytest.raises(ConformanceError, match="a GGUF file of the reference has other logits"):
        check_gguf(bench.plugin(configs), bench.subjects(configs))


def test_what_the_kit_cannot_write_is_skipped_with_the_reason(tmp_path):
    configs = {"plain": tiny_configs("llama")["plain"]}
    bench = Bench(tmp_path, reference=PlainLlama)
    (subject,) = bench.subjects(configs)
    with pytest.raises(NotCheckedError, match="the reference has no config of transformers'"):
        check_gguf(bench.plugin(configs), [subject])
    configs = {"plain": tiny_configs("mpt")["plain"]}
    bench = Bench(tmp_path / "mpt")
    (subject,) = bench.subjects(configs)
    subject.architecture = replace(
        subject.architecture,
        config_from_gguf=dict,
        weight_adapters=dict.fromkeys(("gguf", *subject.architecture.weight_adapters)),
    )
    subject.reference.config.model_type = "nobodys"
    with pytest.raises(NotCheckedError, match="has no architecture 'nobodys'"):
        check_gguf(bench.plugin(configs), [subject])
