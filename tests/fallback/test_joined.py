"""Which parts of transformers' modules become core's, and that what only looks like one of them does not."""

import pytest
import torch
from fallback.served import assert_equal_logits, load_served, make_reference
from fallback.tiny_configs import tiny_config
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaForCausalLM, LlamaMLP, LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from pipezoo_core.layers import ACTIVATIONS, Estimable, MergedLinear
from pipezoo_transformers import angles, followed_step, outline
from pipezoo_transformers.angles import AngleWatch, RowsRotary, angles_like
from pipezoo_transformers.config import TransformersConfig, read_huggingface_config
from pipezoo_transformers.gates import RowsGatedMLP, gated_like
from pipezoo_transformers.interface import register
from pipezoo_transformers.layers import layers_of
from pipezoo_transformers.merged_layers import merge
from pipezoo_transformers.rotations import RotationWatch
from pipezoo_transformers.watched_linear import LinearWatch

ATTENTION = tuple(f"model.layers.{layer}.self_attn" for layer in range(2))
QKV = tuple(tuple(f"{name}.{part}_proj" for part in "qkv") for name in ATTENTION)
apply_rotary_pos_emb = modeling_llama.apply_rotary_pos_emb


def layers(model_type="llama", **changes):
    register()
    return layers_of(read_huggingface_config(tiny_config(model_type, **changes).to_dict()), 256)


# --- linear layers that read the same numbers ---


class ThreeLayers(nn.Module):
    """Calls its layers in some order, any number of times."""

    def __init__(self, order="abc"):
        super().__init__()
        self.order = order
        for name in "abc":
            self.add_module(name, nn.Linear(6, 4 + "abc".index(name)))

    def forward(self, x):
        return [self._modules[name](x) for name in self.order]


def merged_like(module):
    """Returns its layers merged, with the same numbers."""
    twin = ThreeLayers(module.order)
    merge(twin, "abc")
    merged = twin.get_submodule("a+b+c")
    for name, rows in merged.slots().items():
        rows.copy_(module.get_parameter(name).detach())
    return twin


@pytest.mark.parametrize("order", ["abc", "cab", "aabbcc", "abab", "ca"])
def test_merged_layers_in_any_order(order):
    module = ThreeLayers(order)
    twin = merged_like(module)
    for x in (torch.randn(1, 5, 6), torch.randn(2, 6)):
        for _ in range(2):
            for found, expected in zip(twin(x), module(x), strict=True):
                torch.testing.assert_close(found, expected)


def test_merged_layers_keep_nothing_when_all_are_taken():
    twin = merged_like(ThreeLayers())
    twin(torch.randn(1, 5, 6))
    merged = twin.get_submodule("a+b+c")
    assert isinstance(merged, MergedLinear)
    assert merged._given is None
    assert merged._left == (None, None, None)


def alike(forward):
    module = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    watch = LinearWatch(module)
    with torch.no_grad():
        forward(module, torch.zeros(2, 4))
    names = {layer: name for name, layer in module.items()}
    return [[names[layer] for layer in group] for group in watch.alike()]


def written_between(m, x):
    m["a"](x)
    m["b"](x.add_(1))


def asked_for_its_weight(m, x):
    m["a"](x) + m["b"](x) @ m["b"].weight


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: [m[name](x) for name in "acb"], [["a", "c", "b"]]),
        (lambda m, x: [m["a"](x), m["b"](x.clone())], []),
        (lambda m, x: [m["a"](x), m["b"](x), m["b"](x)], []),
        (lambda m, x: m["b"](m["a"](x)), []),
        (written_between, []),
        (asked_for_its_weight, []),
    ],
)
def test_which_layers_read_the_same(forward, expected):
    assert alike(forward) == expected


def test_layers_of_other_modules_are_not_merged():
    """A shared expert's layers read what the router and its own gate do."""
    found = layers("qwen2_moe", decoder_sparse_step=1).merged
    assert set(QKV) <= set(found)
    assert all(len({name.rpartition(".")[0] for name in group}) == 1 for group in found)


# --- gated feed-forward layers ---


class LlamaLike(LlamaMLP):
    def __init__(self, activation="silu", **changes):
        super().__init__(tiny_config("llama", hidden_act=activation, **changes))
        self.eval()


class UpThenGate(LlamaLike):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


class Scaled(LlamaLike):
    def forward(self, x):
        return 1.01 * super().forward(x)


class Clamped(LlamaLike):
    limit = 7

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=self.limit) * self.up_proj(x))


class ClampedFarOut(Clamped):
    limit = 100


class ClampedForFloat16(LlamaLike):
    def forward(self, x):
        return super().forward(x).clamp(-60000, 60000)


class OtherwiseWithManyRows(LlamaLike):
    def forward(self, x):
        return super().forward(x) * (2 if x.shape[-2] >= 64 else 1)


class WithResidual(LlamaLike):
    def forward(self, x):
        return x + super().forward(x)


class WithNorm(LlamaLike):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(96)


class OtherActivation(nn.Module):
    def forward(self, x):
        return nn.functional.silu(x) + 1e-3 * x


def other_activation():
    module = LlamaLike()
    module.act_fn = OtherActivation()
    return module


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [LlamaLike, UpThenGate])
def test_gates(activation, bias, kind):
    torch.manual_seed(0)
    module = kind(activation, mlp_bias=bias)
    found = gated_like(module)
    assert isinstance(found, RowsGatedMLP)
    assert found.activation is ACTIVATIONS[activation]
    slots = found.gate_up_proj.slots() | {
        f"down_proj.{name}": parameter.detach() for name, parameter in found.down_proj.named_parameters()
    }
    assert slots.keys() == {name for name, _ in module.named_parameters()}
    for name, slot in slots.items():
        slot.copy_(module.get_parameter(name).detach())
    x = torch.randn(1, 3, 64)
    torch.testing.assert_close(found(x), module(x))


def test_gates_in_one_layer():
    found = gated_like(Phi3MLP(tiny_config("phi3")).eval())
    assert list(found.gate_up_proj.slots()) == ["gate_up_proj.weight"]


def test_the_memory_of_gate_and_up_is_planned():
    """They are one product of twice as many numbers."""
    for model_type in ("llama", "phi3"):
        found = read_huggingface_config(tiny_config(model_type, intermediate_size=192).to_dict())
        assert TransformersConfig.from_huggingface(found).intermediate_size == 384


def test_the_memory_of_a_layer_is_not_that_of_its_gate():
    """A shared expert is small beside what transformers computes of the others."""
    assert not isinstance(gated_like(LlamaLike()), Estimable)


@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        Clamped,
        ClampedFarOut,
        ClampedForFloat16,
        OtherwiseWithManyRows,
        WithResidual,
        WithNorm,
        other_activation,
        lambda: nn.Linear(4, 4),
    ],
)
def test_what_is_no_gate_stays(make):
    assert gated_like(make()) is None


# --- rotations ---


class LikeLlama(LlamaForCausalLM):
    """A llama whose attention is another class."""

    attention = LlamaAttention

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.__class__ = self.attention


def rotations_with(monkeypatch, attention):
    """Returns the rotations that are left to attention of a llama with this class of attention."""
    monkeypatch.setattr(LikeLlama, "attention", attention)
    monkeypatch.setattr(outline, "class_of", lambda config: LikeLlama)
    return layers().rotations


def attention_with(rotate):
    """Returns llama's attention with something else in place of its rotation."""
    names = {**LlamaAttention.forward.__globals__, "apply_rotary_pos_emb": rotate}
    forward = type(rotate)(LlamaAttention.forward.__code__, names, "forward", LlamaAttention.forward.__defaults__)
    return type("Other", (LlamaAttention,), {"forward": forward})


def interleaved(q, k, cos, sin):
    def rotated(x):
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)

    return rotated(q), rotated(k)


def scaled(q, k, cos, sin):
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    return q * 1.01, k


def backwards(q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, -sin)


def queries_alone(q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, sin)[0], k + 0


def twice(q, k, cos, sin):
    return apply_rotary_pos_emb(*apply_rotary_pos_emb(q, k, cos, sin), cos, sin)


def without_numbers_alone(q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, sin) if q.is_meta else None


def as_it_is(q, k, cos, sin):
    return apply_rotary_pos_emb(q, k, cos, sin)


def test_rotations_are_left_to_attention(monkeypatch):
    expected = dict.fromkeys(ATTENTION, "apply_rotary_pos_emb")
    assert layers().rotations == expected
    assert rotations_with(monkeypatch, attention_with(as_it_is)) == expected


@pytest.mark.parametrize("rotate", [interleaved, scaled, backwards, queries_alone, twice, without_numbers_alone])
def test_other_rotations_stay(rotate, monkeypatch):
    assert rotations_with(monkeypatch, attention_with(rotate)) == {}


class Plain(LlamaAttention):
    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        return attended(self, q, k, v)


class ScaledAfterwards(LlamaAttention):
    """Hands on something else than the function returned."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        return attended(self, q * 1.0, k, v)


class WrittenTo(LlamaAttention):
    """Hands on what the function returned, with other numbers in it."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        k.mul_(2.0)
        return attended(self, q, k, v)


class UsedAfterwards(LlamaAttention):
    """Computes with what the function returned when attention has had it."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        result, _ = attended(self, q, k, v)
        return result * q.mean(), None


class AnglesOfItsOwn(LlamaAttention):
    """Changes the angles before they are used."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        cos, sin = position_embeddings
        q, k = apply_rotary_pos_emb(q, k, cos * 1.0, sin)
        return attended(self, q, k, v)


class Overwritten(LlamaAttention):
    """Writes to what the function was given when it is done with it."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        rotated = apply_rotary_pos_emb(q, k, *position_embeddings)
        q.zero_()
        return attended(self, *rotated, v)


class KeysOfTheFirstLayer(LlamaAttention):
    """Attends to keys that another layer has rotated, which attends to them too."""

    rotated = None

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if self.layer_idx == 0:
            KeysOfTheFirstLayer.rotated = k
        return attended(self, q, KeysOfTheFirstLayer.rotated, v)


class KeysAreValues(LlamaAttention):
    """Attends to keys that are the values too."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, _ = projected(self, hidden_states)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        return attended(self, q, k, k)


def one_way(q, k, cos, sin, sign):
    return apply_rotary_pos_emb(q, k, cos, sign * sin)


class BackwardsToo(LlamaAttention):
    """Attends twice, and rotates backwards the second time."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        forwards, _ = attended(self, *one_way(q, k, *position_embeddings, 1), v)
        backwards, _ = attended(self, *one_way(q, k, *position_embeddings, -1), v)
        return forwards + backwards, None


class OtherAnglesToo(LlamaAttention):
    """Attends twice, the second time by angles of its own."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        cos, sin = position_embeddings
        one, _ = attended(self, *one_way(q, k, cos, sin, 1), v)
        other, _ = attended(self, *one_way(q, k, cos * 1.0, sin, 1), v)
        return one + other, None


class Twice(LlamaAttention):
    """Attends twice, and rotates each time."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        one, _ = attended(self, *one_way(q, k, *position_embeddings, 1), v)
        other, _ = attended(self, *one_way(q, k, *position_embeddings, 1), v)
        return one + other, None


class TwiceAhead(LlamaAttention):
    """Rotates twice before it attends twice."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        q, k, v = projected(self, hidden_states)
        one, other = one_way(q, k, *position_embeddings, 1), one_way(q, k, *position_embeddings, 1)
        return attended(self, *one, v)[0] + attended(self, *other, v)[0], None


def projected(self, hidden_states):
    shape = (*hidden_states.shape[:-1], -1, self.head_dim)
    return [p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]


def attended(self, q, k, v):
    interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
    result, _ = interface(self, q, k, v, None, scaling=self.scaling)
    return self.o_proj(result.flatten(-2)), None


def test_rotations_of_other_code(monkeypatch):
    assert rotations_with(monkeypatch, Plain) == dict.fromkeys(ATTENTION, "apply_rotary_pos_emb")
    assert rotations_with(monkeypatch, Twice) == dict.fromkeys(ATTENTION, "one_way")


@pytest.mark.parametrize(
    "other",
    [
        ScaledAfterwards,
        WrittenTo,
        UsedAfterwards,
        AnglesOfItsOwn,
        Overwritten,
        KeysOfTheFirstLayer,
        KeysAreValues,
        BackwardsToo,
        OtherAnglesToo,
        TwiceAhead,
    ],
)
def test_what_is_done_beside_a_rotation_keeps_it(other, monkeypatch):
    assert rotations_with(monkeypatch, other) == {}


def test_a_forward_of_a_modules_own_is_not_exchanged():
    module = LlamaAttention(tiny_config("llama"), 0)
    module.forward = lambda x: x + 1
    RotationWatch([module])
    assert module.forward(1) == 2


def test_transformers_own_code_is_not_changed(tmp_path):
    """A model of transformers computes after one of ours has been loaded as it did before."""
    reference = make_reference("llama")
    before = (LlamaAttention.forward, modeling_llama.apply_rotary_pos_emb)
    model = load_served(reference, tmp_path)
    assert (LlamaAttention.forward, modeling_llama.apply_rotary_pos_emb) == before
    assert "forward" in vars(model.module.get_submodule(ATTENTION[0]))
    assert_equal_logits(reference, model)


def test_partly_rotated_heads(tmp_path):
    """The rotation of a part of each head, by a function that leaves the rest as it is."""
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
    reference = make_reference("gpt_neox", **changes)
    assert_equal_logits(reference, load_served(reference, tmp_path))


# --- angles ---


def rotary(**rope):
    parameters = {"rope_type": "default", "rope_theta": 10000.0, **rope}
    return LlamaRotaryEmbedding(tiny_config("llama", rope_parameters=parameters))


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("rope", [{}, {"rope_theta": 500.0}, YARN, LLAMA3])
def test_angles(rope):
    module = rotary(**rope)
    positions = torch.tensor([[0, 3, 250, 17]])
    found = RowsRotary({None: angles_like(module)})(torch.zeros(1, 4, 1), positions)
    torch.testing.assert_close(found, module(torch.zeros(1, 4, 1), positions))


class Longer(LlamaRotaryEmbedding):
    """Its positions are other ones."""

    def forward(self, x, position_ids):
        return super().forward(x, position_ids + 1)


class Interleaved(LlamaRotaryEmbedding):
    """Each angle twice side by side."""

    def forward(self, x, position_ids):
        return tuple(y.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for y in super().forward(x, position_ids))


class OtherSines(LlamaRotaryEmbedding):
    def forward(self, x, position_ids):
        cos, sin = super().forward(x, position_ids)
        return cos, -sin


class NoAngles(LlamaRotaryEmbedding):
    """Returns something else."""

    returned: object = None

    def forward(self, x, position_ids):
        return self.returned, self.returned


class Empty(NoAngles):
    returned = torch.zeros(0)


class Numbers(NoAngles):
    returned = 1.0


class Complex(NoAngles):
    returned = torch.ones(1, 7, 16, dtype=torch.complex64)


class Scalars(NoAngles):
    returned = torch.tensor(1.0)


class WithoutNumbers(NoAngles):
    returned = torch.zeros(1, 7, 16, device="meta")


@pytest.mark.parametrize("kind", [Longer, Interleaved, OtherSines, Empty, Numbers, Complex, Scalars, WithoutNumbers])
def test_other_angles_stay(kind):
    module = rotary()
    module.__class__ = kind
    assert angles_like(module) is None


class WithMore(LlamaRotaryEmbedding):
    def forward(self, x, position_ids, more=0):
        return super().forward(x, position_ids)


def known_after(*calls):
    """Returns what is known of the angles of a module that is called with these keywords."""
    module = rotary()
    module.__class__ = WithMore
    watch = AngleWatch(module)
    for call in calls:
        module(torch.zeros(1, 3, 1), **call)
    return watch.known()


def test_angles_are_known_of_all_calls():
    plain = {"position_ids": torch.tensor([[0, 1, 2]])}
    assert len(known_after(plain, plain)) == 1
    assert known_after(plain, plain | {"more": 1}) == known_after(plain | {"more": 1}, plain) == {}


def test_a_module_is_tried_once(monkeypatch):
    """However many layers it gives angles to."""
    tried = []
    monkeypatch.setattr(angles, "angles_like", lambda *given: tried.append(given) or angles_like(*given))
    assert layers("qwen3", num_hidden_layers=4).angles
    assert len(tried) == 1


def test_what_is_computed_by_core():
    found = layers("qwen3")
    assert set(QKV) <= set(found.merged)
    assert list(found.rotations) == list(ATTENTION)
    assert list(found.angles) == ["model.rotary_emb"]
    assert list(found.angles["model.rotary_emb"]) == [None]


def test_what_is_computed_by_core_is_the_same_in_inference_mode():
    with torch.inference_mode():
        assert layers("qwen3") == layers("qwen3")
        assert layers("qwen3").merged


def test_a_step_is_followed_without_numbers(monkeypatch):
    """On the CPU it would take as long as a step of the model does."""
    devices = []

    def noting(body, device, begin):
        devices.append(device)
        return calls(body, device, begin)

    calls = followed_step._calls
    monkeypatch.setattr(followed_step, "_calls", noting)
    assert layers("qwen3").angles
    assert devices == ["meta"] * 3


class AskedForItsSize(LlamaAttention):
    """Asks a linear layer for what a part of a merged one has not."""

    def forward(self, *args, **kwargs):
        assert self.q_proj.out_features == 64
        return super().forward(*args, **kwargs)


def test_nothing_is_joined_where_the_model_fails_over_it(monkeypatch):
    monkeypatch.setattr(LikeLlama, "attention", AskedForItsSize)
    monkeypatch.setattr(outline, "class_of", lambda config: LikeLlama)
    found = layers()
    assert found.merged is None
    assert (found.rotations, found.angles) == ({}, {})


def test_nothing_is_joined_where_what_is_tried_fails(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(angles, "angles_like", fail)
    found = layers()
    assert found.merged is None
    assert (found.rotations, found.angles) == ({}, {})
