"""DeepSeek-V2 and V3 against transformers on the same weights, for everything that their configs can express."""

import pytest
import torch
from deepseek.tiny_deepseek import CLASSES, make, saved
from eights_files import floats, fp8_config, fp8_parts
from families import (
    NATIVE,
    PROMPTS,
    assert_equal_greedy_tokens,
    assert_equal_logits,
    assert_equal_on_ranks,
    assert_matters,
    assert_near_logits,
    expected_logits,
    save,
    why_not_replayed,
)
from kernels_here import needs_kernels
from lora.peft_adapters import merged, save_adapter
from quantized_files import write_quantized
from safetensors.torch import load_file, save_file
from tiny_models import load_model, logits_of

from pipezoo import registry
from pipezoo_core.config import LoRAConfig, SupportedEncoding
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedCheckpointError
from pipezoo_core.native import NativeKernels
from pipezoo_core.request import TextGenerationRequest

pytestmark = pytest.mark.matrix

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 3.5],
    "original_max_position_embeddings": 32,
}
BOTH = {
    "default": {},
    "queries_without_latent": {"q_lora_rank": None},
    "biases": {"attention_bias": True},
    "biases_without_latent": {"attention_bias": True, "q_lora_rank": None},
    "head_dims": {"qk_nope_head_dim": 6, "v_head_dim": 24, "qk_rope_head_dim": 4},
    "tied": {"tie_word_embeddings": True},
    "activation": {"hidden_act": "gelu_pytorch_tanh"},
    "eps": {"rms_norm_eps": 0.1},
    "scale": {"routed_scaling_factor": 0.3},
    "one_shared_expert": {"n_shared_experts": 1},
    "one_expert": {"num_experts_per_tok": 1},
    "no_dense_layer": {"first_k_dense_replace": 0},
    "dense_layers": {"first_k_dense_replace": 3},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {
        "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
    "longrope": {"max_position_embeddings": 64, "rope_parameters": LONGROPE},
    "yarn": {"rope_parameters": YARN},
    "yarn_mscale": {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}},
    "yarn_mscale_of_all": {"rope_parameters": {**YARN, "mscale_all_dim": 1.0, "beta_fast": 16.0}},
}
OWN = {
    "deepseek_v2": {
        "groups": {"topk_method": "group_limited_greedy"},
        "one_group": {"topk_method": "group_limited_greedy", "topk_group": 1, "num_experts_per_tok": 2},
        "greedy": {"n_group": None, "topk_group": None},
        "mlp_bias": {"mlp_bias": True},
    },
    "deepseek_v3": {
        "halves": {"rope_interleave": False},
        "not_normalized": {"norm_topk_prob": False},
        "one_of_groups": {"topk_group": 1, "num_experts_per_tok": 2},
        "without_groups": {"n_group": 1, "topk_group": 1},
    },
}
CONFIGS = {
    f"{family}-{name}": (family, changes) for family in CLASSES for name, changes in {**BOTH, **OWN[family]}.items()
}
HAS_KERNELS = NativeKernels(torch.device("cpu"), torch.float32).obstacle is None
WIDE = {  # what the kernels take
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 64,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
PAGE = 8 * 3 * 28 * 4  # 8 tokens: a vector of 28 numbers in 3 layers


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, tmp_path):
    family, changes = CONFIGS[name]
    reference = make(family, **changes)
    assert_equal_logits(reference, load_model(*saved(reference, tmp_path)))


@pytest.mark.parametrize("family", CLASSES)
def test_plain_torch(family, tmp_path):
    reference = make(family)
    model = load_model(*saved(reference, tmp_path), attention="reference", linear="torch")
    assert_equal_logits(reference, model, chunks=(7,))


@needs_kernels
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None, "num_attention_heads": 8, "num_key_value_heads": 8}])
def test_native_kernels(family, changes, tmp_path):
    """All of a step is replayed, and its logits are, bit for bit, those of one that is not."""
    reference = make(family, **{**WIDE, **changes})
    model = saved(reference, tmp_path)
    replayed = load_model(*model, **NATIVE)
    assert_equal_logits(reference, replayed)
    assert why_not_replayed(tmp_path, dtype="float32") is None
    as_it_is = load_model(*model, **NATIVE, enforce_eager=True)
    for chunk in (None, 7):
        pairs = zip(logits_of(replayed, PROMPTS, chunk), logits_of(as_it_is, PROMPTS, chunk), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)


@needs_kernels
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(("encoding", "most"), [("bfloat16", 0.12), ("int8", 0.18)])
def test_lower_precision_is_near(family, encoding, most, tmp_path):
    """With latents of the size that DeepSeek's have, and all experts, of which rounding can choose no others."""
    sizes = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "intermediate_size": 64}
    experts = {"num_experts_per_tok": 8, "topk_group": 4}
    reference = make(family, **{**WIDE, **sizes, **experts})
    model = load_model(*saved(reference, tmp_path), **NATIVE, encoding=SupportedEncoding(encoding))
    assert_near_logits(reference, model, most)


SWITCHES = ["activation", "eps", "scale", "one_expert", "theta", "linear", "yarn", "yarn_mscale", "yarn_mscale_of_all"]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, name) for family in CLASSES for name in SWITCHES),
        ("deepseek_v2", "one_group"),
        ("deepseek_v2", "groups"),
        ("deepseek_v3", "halves"),
        ("deepseek_v3", "not_normalized"),
        ("deepseek_v3", "without_groups"),
    ],
)
def test_switches_matter(family, name):
    assert_matters(make(family), make(family, **{**BOTH, **OWN[family]}[name]))


def test_the_correction_matters():
    reference, other = make("deepseek_v3"), make("deepseek_v3")
    for buffer in (layer.mlp.gate.e_score_correction_bias for layer in other.model.layers[1:]):
        buffer.zero_()
    difference = expected_logits(reference, [5, 9, 2, 7]) - expected_logits(other, [5, 9, 2, 7])
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_tokens_equal_transformers(family, tiny_folder, tmp_path):
    reference = make(family)
    assert_equal_greedy_tokens(reference, save(reference, tmp_path, tiny_folder), few_pages=16 * PAGE)


@pytest.mark.parametrize("family", CLASSES)
def test_the_cache_holds_one_vector_per_token(family, tmp_path):
    model = load_model(*saved(make(family), tmp_path))
    (pages,) = model.kv_manager.params.page_bytes
    assert pages == PAGE


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_equal_transformers(family, num_ranks, tmp_path):
    reference = make(family, attention_bias=True)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, num_ranks)


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_ranks_with_kernels_equal_transformers(family, tmp_path):
    reference = make(family, **WIDE)
    assert_equal_on_ranks(reference, saved(reference, tmp_path / "model"), tmp_path, **NATIVE)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("rank", [None, 12], ids=["queries", "latent_queries"])
def test_adapters_equal_merged_models(family, rank, tmp_path):
    """Rows that are rotated are reordered in adapters, too."""
    reference = make(family, q_lora_rank=rank)
    queries = ["q_proj"] if rank is None else ["q_a_proj", "q_b_proj"]
    save_adapter(reference, tmp_path / "one", target_modules=[*queries, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])
    lora = LoRAConfig(lora_paths=[f"one={tmp_path / 'one'}"], max_num_loras=1)
    loaded = load_model(*saved(reference, tmp_path / "model"), lora=lora)
    adapted = merged(reference, tmp_path / "one")
    plain, found = logits_of(loaded, [PROMPTS[1]] * 2, 7, [None, "one"])
    assert (plain - expected_logits(reference, PROMPTS[1])).abs().max() < 1e-4
    assert (found - expected_logits(adapted, PROMPTS[1])).abs().max() < 1e-4
    assert (plain - found).abs().max() > 0.1


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("changes", [{}, pytest.param(WIDE, marks=needs_kernels)], ids=["plain", "kernels"])
def test_adapters_of_the_latents_matrices_equal_merged_models(family, changes, tmp_path):
    """Two adapters, one of which changes nothing else, in a batch with a request without one."""
    reference = make(family, **changes)
    settings = NATIVE if changes else {}
    targets = ["kv_b_proj", "o_proj"]
    save_adapter(reference, tmp_path / "one", r=5, target_modules=targets[:1])
    save_adapter(reference, tmp_path / "two", r=3, seed=1, target_modules=targets)
    paths = [f"{name}={tmp_path / name}" for name in ("one", "two")]
    loaded = load_model(
        *saved(reference, tmp_path / "model"), lora=LoRAConfig(lora_paths=paths, max_num_loras=2), **settings
    )
    names = ["one", None, "two", "one"]
    references = {None: reference, **{name: merged(reference, tmp_path / name) for name in ("one", "two")}}
    for chunk in (None, 7):
        for prompt, name, found in zip(PROMPTS, names, logits_of(loaded, PROMPTS, chunk, names), strict=True):
            assert (found - expected_logits(references[name], prompt)).abs().max() < 1e-4
    difference = expected_logits(references["one"], PROMPTS[1]) - expected_logits(reference, PROMPTS[1])
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_it_answers(family, dtype, tiny_folder, tmp_path):
    folder = save(make(family, **WIDE, intermediate_size=64), tmp_path, tiny_folder)
    with registry.load(folder, dtype=dtype, device="cpu", kv_cache_memory="4MiB") as llm:
        (output,) = llm.generate(TextGenerationRequest(prompt="hello"), max_new_tokens=5, ignore_eos=True)
        assert len(output.tokens) == 5
    assert not HAS_KERNELS or why_not_replayed(folder, dtype=dtype) is None


def test_fp8_as_published_equals_transformers_on_the_numbers_of_the_file(tmp_path):
    """All matrices of layers but the router's, in blocks that heads and latents divide."""
    made = make("deepseek_v3", **WIDE, intermediate_size=96)
    model_class, folder, config, adapt = saved(made, tmp_path / "model")
    numbers = write_quantized(folder, fp8_config([32, 32]), fp8_parts, lambda name, values: floats(values, (32, 32)))
    assert {name.rpartition(".layers.1.")[2] for name in numbers} >= {
        "self_attn.kv_a_proj_with_mqa.weight", "self_attn.q_b_proj.weight", "mlp.experts.7.down_proj.weight",
    }  # fmt: skip
    made.save_pretrained(tmp_path / "dequantized")
    path = tmp_path / "dequantized" / "model.safetensors"
    save_file(load_file(path) | numbers, path, metadata={"format": "pt"})
    reference = type(made).from_pretrained(tmp_path / "dequantized", attn_implementation="eager").eval()
    assert_equal_logits(reference, load_model(model_class, folder, config, adapt))


@needs_kernels
def test_fp8_kept_packed_is_as_near_as_bfloat16(tmp_path):
    """A token meets all experts: which ones it chooses may change with any rounding."""
    made = make("deepseek_v3", **WIDE, intermediate_size=96, num_experts_per_tok=8, n_group=1, topk_group=1)
    assert made.config.n_routed_experts == 8
    parts = saved(made, tmp_path)
    write_quantized(tmp_path, fp8_config([32, 32]), fp8_parts, lambda name, values: floats(values, (32, 32)))
    exact, rounded, packed = (
        logits_of(load_model(*parts, encoding=SupportedEncoding(name), linear="auto"), PROMPTS)
        for name in ("float32", "bfloat16", "packed")
    )
    errors = [max((a - b).abs().max() for a, b in zip(found, exact, strict=True)) for found in (packed, rounded)]
    assert errors[0] < 2 * errors[1]


def test_scales_without_a_word_in_the_config_are_refused(tmp_path):
    model_class, folder, config, adapt = saved(make("deepseek_v3"), tmp_path)

    def scaled(tensors, config):
        name = "model.layers.0.self_attn.o_proj.weight"
        return adapt({**tensors, f"{name}_scale_inv": tensors[name]}, config)

    with pytest.raises(UnsupportedCheckpointError, match=r"scales of weights.*does not say"):
        load_model(model_class, folder, config, scaled)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    reference = make("deepseek_v3")
    model_class, folder, config, adapt = saved(reference, tmp_path)

    def longer(tensors, config):
        name = "model.layers.0.self_attn.o_proj.weight"
        return adapt(
            {**tensors, name.replace("0", "3", 1): tensors[name], "model.layers.3.eh_proj.weight": tensors[name]},
            config,
        )

    assert_equal_logits(reference, load_model(model_class, folder, config, longer), chunks=(7,))


def test_layers_that_the_config_does_not_count_are_left_over(tmp_path):
    model_class, folder, config, adapt = saved(make("deepseek_v3"), tmp_path)
    config.num_hidden_layers = 2
    with pytest.raises(CheckpointMismatchError, match=r"model\.layers\.2\."):
        load_model(model_class, folder, config, adapt)
