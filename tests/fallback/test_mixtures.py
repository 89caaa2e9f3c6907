"""Which mixtures of experts become core's, where their weights come from, and what they have of core then."""

import pytest
import torch
from fallback.served import PROMPTS, assert_equal_logits, load_served, make_reference
from fallback.tiny_configs import tiny_config
from gguf_files import TOKENS
from kernels_here import needs_kernels
from lora.peft_adapters import merged, save_adapter
from quantized_files import edit_config
from tiny_models import logits_of
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.olmoe.modeling_olmoe import OlmoeForCausalLM, OlmoeSparseMoeBlock

from pipezoo import registry
from pipezoo_core.config import LoRAConfig
from pipezoo_core.errors import CheckpointMismatchError, UnsupportedAdapterError
from pipezoo_core.layers import ACTIVATIONS, ClampedGate, Experts
from pipezoo_core.weights import LazyTensor
from pipezoo_transformers import outline
from pipezoo_transformers.config import read_huggingface_config
from pipezoo_transformers.expert_weights import one_by_one
from pipezoo_transformers.interface import register
from pipezoo_transformers.layers import layers_of
from pipezoo_transformers.mixtures import mixture_like
from pipezoo_transformers.weight_adapter import adapt_safetensors

EXPERTS, HIDDEN, INNER, CHOSEN = 5, 64, 32, 2
PLACE = "layers.0.experts"
STACKED = ["experts.gate_up_proj", "experts.down_proj"]


class Stacked(nn.Module):
    """A mixture as transformers' classes compute it, an expert after the other."""

    def __init__(self, config, activation="silu", inner=INNER):
        super().__init__()
        self.act_fn = ACT2FN[activation]
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * inner, HIDDEN) / 8)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, inner) / 8)
        self.requires_grad_(False)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique():
            rows, places = torch.where(top_k_index == expert)
            product = self.expert(expert, hidden_states[rows], top_k_weights[rows, places, None])
            y.index_add_(0, rows, product.to(y.dtype))
        return y

    def expert(self, expert, x, weights):
        return self.down(expert, self.inside(self.gate_up(expert, x))) * weights

    def gate_up(self, expert, x):
        return x @ self.gate_up_proj[expert].T

    def inside(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def down(self, expert, x):
        return x @ self.down_proj[expert].T


class Biased(Stacked):
    def __init__(self, config, **settings):
        super().__init__(config, **settings)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(EXPERTS, 2 * INNER), requires_grad=False)
        self.down_proj_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN), requires_grad=False)

    def gate_up(self, expert, x):
        return super().gate_up(expert, x) + self.gate_up_proj_bias[expert]

    def down(self, expert, x):
        return super().down(expert, x) + self.down_proj_bias[expert]


class Transposed(Biased):
    def __init__(self, config, **settings):
        super().__init__(config, **settings)
        for name in ("gate_up_proj", "down_proj"):
            stack = self._parameters[name].transpose(1, 2).contiguous()
            self._parameters[name] = nn.Parameter(stack, requires_grad=False)

    def gate_up(self, expert, x):
        return x @ self.gate_up_proj[expert] + self.gate_up_proj_bias[expert]

    def down(self, expert, x):
        return x @ self.down_proj[expert] + self.down_proj_bias[expert]


class InTurn(Transposed):
    def inside(self, gate_up):
        return self.act_fn(gate_up[..., ::2]) * gate_up[..., 1::2]


class Clamped(Stacked):
    def inside(self, gate_up):
        return ClampedGate()(*gate_up.chunk(2, dim=-1))


def made(kind, form=(), **settings):
    torch.manual_seed(0)
    of_interface = type(kind.__name__, (kind,), {"forward": kind.forward})
    return use_experts_implementation(of_interface, **dict(form))(None, **settings)


def computed(mixture, module, step):
    """Returns what core's layer computes, with weights that went through the weight adapter."""
    stacks = {f"{PLACE}.{name}": _lazy(stack.detach()) for name, stack in module.named_parameters()}
    weights = one_by_one(stacks, {PLACE: mixture})
    layer = mixture.made().to_empty(device="cpu")
    slots = {f"{number}.{name}": slot for number, expert in layer.named_children() for name, slot in _slots(expert)}
    assert weights.keys() == {f"{PLACE}.{name}" for name in slots}
    for name, slot in slots.items():
        weights[f"{PLACE}.{name}"].copy_to(slot)
    return layer(*step)


def _slots(expert):
    yield from expert.gate_up_proj.slots().items()
    yield from ((f"down_proj.{name}", parameter.detach()) for name, parameter in expert.down_proj.named_parameters())


def _lazy(x):
    return LazyTensor(tuple(x.shape), x.dtype, lambda rows: x[rows])


def random_step(num_rows):
    chosen = torch.rand(num_rows, EXPERTS).argsort()[:, :CHOSEN]
    return torch.randn(num_rows, HIDDEN), chosen, torch.rand(num_rows, CHOSEN)


@pytest.mark.parametrize(
    ("kind", "form", "activation"),
    [
        *((Stacked, {}, name) for name in ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu")),
        (Clamped, {}, None),
        (Biased, {"has_bias": True}, "silu"),
        (Transposed, {"has_bias": True, "is_transposed": True}, "silu"),
        (InTurn, {"has_bias": True, "is_transposed": True, "is_concatenated": False}, "silu"),
    ],
)
def test_mixtures(kind, form, activation):
    module = made(kind, form, activation=activation or "silu")
    mixture = mixture_like(module, CHOSEN)
    assert mixture is not None
    if activation is not None:
        assert ACTIVATIONS[mixture.activation] is ACTIVATIONS[activation]
    step = random_step(9)
    torch.testing.assert_close(computed(mixture, module, step), type(module).forward.__wrapped__(module, *step))


@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_mixtures_of_few_experts(num_experts):
    """As of two models that were merged."""
    config = tiny_config("mixtral", num_local_experts=num_experts, num_experts_per_tok=1)
    mixture = mixture_like(MixtralExperts(config), 1)
    assert mixture is not None
    assert mixture.num_experts == num_experts


class WeightsFirst(Stacked):
    """As Llama 4: what is weighted is what an expert reads."""

    def expert(self, expert, x, weights):
        return self.down(expert, self.inside(self.gate_up(expert, x * weights)))


class Scaled(Stacked):
    def expert(self, expert, x, weights):
        return 1.01 * super().expert(expert, x, weights)


class UpThenGate(Stacked):
    def inside(self, gate_up):
        up, gate = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class ClampedFarOut(Stacked):
    def inside(self, gate_up):
        return super().inside(gate_up.clamp(max=100))


class OtherLimit(Stacked):
    def inside(self, gate_up):
        return ClampedGate(limit=9.0)(*gate_up.chunk(2, dim=-1))


class WithResidual(Stacked):
    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states + super().forward(hidden_states, top_k_index, top_k_weights)


class WithNorm(Stacked):
    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.LayerNorm(HIDDEN)


class WithMore(Stacked):
    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(EXPERTS))


class WithBuffer(Stacked):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("scale", torch.ones(EXPERTS))


OTHERS = (WeightsFirst, Scaled, UpThenGate, ClampedFarOut, OtherLimit, WithResidual, WithNorm, WithMore, WithBuffer)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_another_mixture_stays(kind):
    assert mixture_like(made(kind), CHOSEN) is None


@pytest.mark.parametrize("settings", [{"activation": "mish"}, {"inner": 40}], ids=str)
def test_what_has_no_kernel_stays(settings):
    """One by one, core reads on the host which experts have rows."""
    assert mixture_like(made(Stacked, **settings), CHOSEN) is None


def test_what_is_not_of_the_interface_stays():
    assert mixture_like(Stacked(None), CHOSEN) is None
    assert mixture_like(nn.Linear(4, 4), CHOSEN) is None


class LikeOlmoe(OlmoeForCausalLM):
    """An olmoe whose blocks with experts are of another class."""

    block = OlmoeSparseMoeBlock

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.__class__ = self.block


class AsksForAStack(OlmoeSparseMoeBlock):
    def forward(self, hidden_states):
        assert self.experts.gate_up_proj.dim() == 3
        return super().forward(hidden_states)


class ChoosesOneMore(OlmoeSparseMoeBlock):
    """Asks its experts twice, for other numbers of them."""

    def forward(self, hidden_states):
        rows = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(rows)
        return super().forward(hidden_states) + self.experts(rows, chosen[:, :1], weights[:, :1])


@pytest.mark.parametrize(("block", "num_found"), [(OlmoeSparseMoeBlock, 2), (AsksForAStack, 0), (ChoosesOneMore, 0)])
def test_no_mixture_is_replaced_where_the_model_fails_over_it(block, num_found, monkeypatch):
    monkeypatch.setattr(LikeOlmoe, "block", block)
    monkeypatch.setattr(outline, "class_of", lambda config: LikeOlmoe)
    found = layers_of(config_of("olmoe"), 256)
    assert len(found.mixtures) == num_found
    assert found.in_experts == 0 if num_found else found.in_experts > 0
    assert len(found.merged) == 2, "queries, keys and values of each layer"
    assert len(found.rotations) == 2
    assert found.angles


class SharesExperts(LikeOlmoe):
    """Its layers have one mixture together."""

    def __init__(self, config):
        super().__init__(config)
        first, second = self.model.layers
        second.mlp.experts = first.mlp.experts


def test_a_mixture_that_layers_share_stays(monkeypatch):
    monkeypatch.setattr(outline, "class_of", lambda config: SharesExperts)
    found = layers_of(config_of("olmoe"), 256)
    assert not found.mixtures
    assert found.merged


def test_more_experts_than_a_file_can_have_are_refused_before_they_are_made(tmp_path):
    make_reference("olmoe").save_pretrained(tmp_path)
    edit_config(tmp_path, num_experts=10**5)
    with pytest.raises(CheckpointMismatchError, match=r"num_experts: at most \d+ -> 100000"):
        registry.plan(tmp_path, plugin="pipezoo-transformers", device="cpu")


def config_of(model_type):
    register()
    return read_huggingface_config(tiny_config(model_type).to_dict())


@pytest.mark.parametrize(
    ("model_type", "names"), [("glm4_moe", ("gate_proj", "up_proj", "down_proj")), ("minimax_m2", ("w1", "w3", "w2"))]
)
def test_a_list_of_experts_is_read_as_it_lies(model_type, names):
    """Not one of its tensors is put into a stack, and an adapter of a single expert is one of its layers."""
    place = "model.layers.1.mlp.experts"
    tensors = {f"{place}.{i}.{name}.weight": _lazy(torch.randn(3, 2)) for i in (2, 10) for name in names}
    found = adapt_safetensors(tensors, config_of(model_type))
    ours = dict(zip(names, ("gate_proj", "up_proj", "down_proj"), strict=True))
    assert found.keys() == {f"{place}.{i}.{name}.weight" for i in (2, 10) for name in ours.values()}
    for i in (2, 10):
        for theirs, name in ours.items():
            assert found[f"{place}.{i}.{name}.weight"] is tensors[f"{place}.{i}.{theirs}.weight"]


def test_a_stack_of_another_shape_is_left_as_it_is():
    """So that it is reported as left over, whatever is wrong with it."""
    config = config_of("granitemoe")
    name = "model.layers.0.block_sparse_moe.experts.down_proj"
    for shape in ((4, 64), (4, 96, 64), (5, 64, 96)):
        assert adapt_safetensors({name: _lazy(torch.zeros(shape))}, config).keys() == {name}


@pytest.mark.parametrize("linear", ["torch", "auto"])
@pytest.mark.parametrize("model_type", ["glm4_moe", "gpt_oss"])
def test_adapters_of_experts_equal_merged(model_type, linear, tmp_path):
    reference = make_reference(model_type)
    save_adapter(reference, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=STACKED, r=3)
    lora = LoRAConfig(lora_paths=[f"one={tmp_path / 'adapter'}"])
    model = load_served(reference, tmp_path, lora=lora, linear=linear)
    with_adapter = merged(reference, tmp_path / "adapter")
    loras = ["one", None, "one", None]
    for prompt, name, logits in zip(PROMPTS, loras, logits_of(model, PROMPTS, 7, loras), strict=True):
        with torch.no_grad():
            expected = (with_adapter if name else reference)(input_ids=torch.tensor([prompt])).logits[0]
        assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_model_without_room_for_adapters_of_experts_says_so(tmp_path):
    reference = make_reference("glm4_moe")
    save_adapter(reference, tmp_path / "adapter", target_modules=[], target_parameters=STACKED, r=3)
    model = load_served(reference, tmp_path, lora=LoRAConfig(max_num_loras=1))
    with pytest.raises(UnsupportedAdapterError, match=r"changes experts, for which .* lora_experts=True"):
        model.lora_manager.load_adapter(str(tmp_path / "adapter"))


def planned(reference, folder, **settings):
    """Returns the plan, and what is foretold of a step."""
    reference.save_pretrained(folder)
    settings = {"device": "cpu", "page_size": 32, "kv_cache_memory": "4MiB", **settings}
    plan = registry.plan(folder, plugin="pipezoo-transformers", **settings)
    model = plan.architecture.pipeline_model
    return plan, model.step_outlook(plan.pipeline_config, plan.files.huggingface_config)


def with_heads_for_kernels(**changes):
    return make_reference("olmoe", vocab_size=len(TOKENS), hidden_size=128, **changes)


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 16), ("int8", 8 + 16 / 32), ("int4", 4 + 16 / 32)])
def test_experts_are_planned_as_they_are_computed(dtype, bits, tmp_path):
    """In groups of 32 there are two more bytes each, and in 4 bits eight more in each row."""

    def planned_weights(num_experts):
        reference = with_heads_for_kernels(num_experts=num_experts, num_hidden_layers=1)
        return planned(reference, tmp_path / str(num_experts), dtype=dtype, linear="torch")[0].memory.weights

    numbers, rows, router = 3 * 96 * 128, 2 * 96 + 128, 2 * 128
    of_an_expert = numbers * bits / 8 + (8 * rows if dtype == "int4" else 0) + router
    assert planned_weights(16) - planned_weights(4) == 12 * of_an_expert


@needs_kernels
def test_a_kernel_computes_them_in_a_replayed_step(tmp_path):
    for dtype in ("float32", "bfloat16", "int8"):
        _, told = planned(with_heads_for_kernels(), tmp_path, dtype=dtype)
        assert told.obstacle is None
        assert not [name for name in told.operations if "pipezoo" in name]


@needs_kernels
def test_without_a_kernel_transformers_computes_them_as_one_operation(tmp_path):
    reference = with_heads_for_kernels(hidden_act="mish")
    _, told = planned(reference, tmp_path / "planned", dtype="float32")
    assert told.obstacle is None
    assert [name for name in told.operations if "pipezoo" in name] == 2 * ["pipezoo_transformers.experts.default"]
    model = load_served(reference, tmp_path / "loaded")
    assert not [module for module in model.module.modules() if isinstance(module, Experts)]
    assert_equal_logits(reference, model, prompts=PROMPTS[:2])
