"""The mistakes that authors make, each one line of a shipped plugin."""

from testing.planting import Bug

LLAMA, QWEN, GEMMA, GPT, PHI = "pipezoo_llama", "pipezoo_qwen", "pipezoo_gemma", "pipezoo_gpt", "pipezoo_phi"
RETURNED = "return self.o_proj(self.attention(q, k, v, kv, rotation))"
NOT_CAUSAL = """from torch.nn.functional import scaled_dot_product_attention as sdpa
        y = self.attention(q, k, v, kv, rotation)
        if len(q) > 1:
            heads = (x.unflatten(-1, (-1, 32)).transpose(0, 1)[None] for x in (q, k, v))
            y = sdpa(*heads, enable_gqa=True)[0].transpose(0, 1).flatten(1)
        return self.o_proj(y)"""
FED = """module_class = QwenForCausalLM

    def prepare_initial_token_inputs(self, context_batch, kv_cache_inputs=None, return_n_logits=1):
        inputs = super().prepare_initial_token_inputs(context_batch, kv_cache_inputs, return_n_logits)
        for context, row in zip(context_batch, inputs.input_row_offsets.tolist(), strict=False):
            first = getattr(context, "fed", context.cache_length)
            inputs.tokens[row] = context.tokens[min(first, len(context.tokens) - 1)]
            context.fed = context.cache_length + context.active_length
        return inputs"""
RENAMED = "return without_redundant(tensors, config)\n\n\ndef adapt_gguf"

BUGS = [
    Bug(
        "wrong RoPE base", LLAMA, "config.py", "rope_parameters=rope,",
        'rope_parameters={**rope, "rope_theta": 10000.0},',
        "llama", "plain", "log_probabilities", r"layer 0.*RoPE base is wrong.*base 700",
    ),
    Bug(
        "interleaved rotation", GPT, "gptj/weight_adapters.py",
        "tensor.then(in_halves, num_rows=head_dim) if _ROTATED.fullmatch(name) else tensor", "tensor",
        "gptj", "plain", "log_probabilities", r"neighbours \(interleaved pairs\), and the plugin halves",
    ),
    Bug(
        "half-split rotation", LLAMA, "weight_adapters.py", RENAMED,
        "change = {'q_proj': in_halves(config.num_attention_heads), 'k_proj': in_halves(config.num_key_value_heads)}\n"
        "    tensors = {n: change.get(n.split('.')[-2], lambda t: t)(t) for n, t in tensors.items()}\n    " + RENAMED,
        "llama", "plain", "log_probabilities", r"reorders their rows from neighbours to halves, and the checkpoint "
        "has them in halves",
    ),
    Bug(
        "missing scale", GEMMA, "config.py", "scale=self.attention_scale,", "scale=1.0,",
        "gemma2", "plain", "log_probabilities", r"another scale: .*query_pre_attn_scalar.* 1 in the plugin",
    ),
    Bug(
        "position off by one", GPT, "gpt2/model.py", "self.wpe(kv.positions)",
        "self.wpe((kv.positions + 1).clamp(max=255))",
        "gpt2", "plain", "log_probabilities", r"positions are off by 1",
    ),
    Bug(
        "unscaled embedding", GEMMA, "model.py", "config.hidden_size, scale=scale)", "config.hidden_size)",
        "gemma", "plain", "log_probabilities", r"embedding is scaled otherwise: .* 8 times.*√64",
    ),
    Bug(
        "norm offset", GEMMA, "model.py",
        "(size, config.rms_norm_eps, offset=1.0)", "(size, config.rms_norm_eps, offset=0.0)",
        "gemma", "plain", "log_probabilities", r"norm .* norm's offset: 1 is added to its weight",
    ),
    Bug(
        "dropped weight", QWEN, "weight_adapters.py", "    return without_redundant(",
        '    tensors = {n: t for n, t in tensors.items() if "k_norm" not in n}\n    return without_redundant(',
        "qwen3", "plain", "weights", r"drops weights.*k_norm",
    ),
    Bug(
        "transposed weight", GPT, "gpt2/weight_adapters.py", "(?:c_attn|c_fc|c_proj)",
        "(?:c_attn|c_fc|c_proj(?<=mlp.c_proj))",
        "gpt2", "plain", "log_probabilities", r"weight of transformer.h.0.attn.c_proj is transposed",
    ),
    Bug(
        "transposed matrix", GPT, "gpt2/weight_adapters.py", "(?:c_attn|c_fc|c_proj)", "(?:c_attn|c_proj)",
        "gpt2", "plain", "weights", r"stored the other way round",
    ),
    Bug(
        "window off by one", QWEN, "config.py", "replace(self.attention, sliding_window=window)",
        "replace(self.attention, sliding_window=window and window + 1)",
        "qwen2", "layer_types", "log_probabilities", r"layer 0.*window is wrong.*a window of 12 tokens.*of 13 in "
        "the plugin",
    ),
    Bug(
        "wrong layer's window", QWEN, "config.py", "for window in self.sliding_windows)",
        "for window in self.sliding_windows[1:] + self.sliding_windows[:1])",
        "qwen2", "layer_types", "log_probabilities", r"layer 0.*window is wrong.*sees a window of 12.*all tokens in "
        "the plugin",
    ),
    Bug(
        "KV heads mixed", LLAMA, "model.py", RETURNED,
        "k, v = (x.unflatten(-1, (2, -1)).flip(1).flatten(1) for x in (k, v))\n        " + RETURNED,
        "llama", "plain", "log_probabilities", r"key/value heads are mixed up",
    ),
    Bug(
        "non-causal prefill", LLAMA, "model.py", RETURNED, NOT_CAUSAL,
        "llama", "plain", "causality", r"depend on the tokens behind it.*not causal in a prefill",
    ),
    Bug(
        "stale cache after preemption", QWEN, "model.py", "module_class = QwenForCausalLM", FED,
        "qwen2", "plain", "preemption", r"after preemption.*cache of its own",
    ),
    Bug(
        "soft cap of scores missing", GEMMA, "config.py", "softcap=self.attention_softcap,", "softcap=None,",
        "gemma2", "plain", "log_probabilities", r"soft cap of 50 in the reference and None in the plugin",
    ),
    Bug(
        "soft cap of logits missing", GEMMA, "config.py",
        'logit_softcap=None if is_first else _softcap(config, "final_logit_softcapping")', "logit_softcap=None",
        "gemma2", "plain", "log_probabilities", r"logits have a soft cap of 30 in the reference",
    ),
    Bug(
        "router in the wrong order", "pipezoo_gpt_oss", "config.py", 'scores="softmax_of_chosen"', 'scores="softmax"',
        "gpt_oss", "plain", "log_probabilities", r"routing .*softmax after the choice gives",
    ),
    Bug(
        "softmax after the choice", QWEN, "config.py", "num_experts=config.num_experts, top_k",
        'scores="softmax_of_chosen", num_experts=config.num_experts, top_k',
        "qwen3_moe", "plain", "log_probabilities", r"scores='softmax', .* in the plugin: the router's order is wrong",
    ),
    Bug(
        "expert weights unnormalised", "pipezoo_mistral", "config.py", "normalize=True", "normalize=False",
        "mixtral", "plain", "log_probabilities", r"normalize=True: a token's expert weights are divided",
    ),
    Bug(
        "wrong LoRA order", PHI, "weight_adapters.py", "divided(name, tensor, layer, fused[layer])",
        "divided(name, tensor, layer, fused[layer] if len(tensors) > 1 else dict(reversed(fused[layer].items())))",
        "phi3", "plain", "lora", r"LoRA adapter other logits.*order of the parts of a fused layer",
    ),
    Bug(
        "tied head untied", LLAMA, "model.py", "if config.tie_word_embeddings:", "if False:",
        "llama", "tie_word_embeddings", "weights", r"tie_word_embeddings=True: most likely the module does not go "
        "by it",
    ),
    Bug(
        "untied head tied", LLAMA, "model.py", "if config.tie_word_embeddings:", "if True:",
        "llama", "plain", "weights", r"tie_word_embeddings=False: most likely the module does not go by it",
    ),
    Bug(
        "bias dropped", QWEN, "weight_adapters.py", "    return without_redundant(",
        '    zero = {n: t.then(lambda rows: rows * 0, 1) for n, t in tensors.items() if n.endswith("k_proj.bias")}\n'
        "    tensors = {**tensors, **zero}\n    return without_redundant(",
        "qwen2", "plain", "log_probabilities", r"bias of model.layers.0.self_attn.k_proj is wrong",
    ),
    Bug(
        "layer without its bias", QWEN, "model.py", "bias=config.qkv_bias", "bias=False",
        "qwen2", "plain", "weights", r"has biases, and the module's layers have none",
    ),
    Bug(
        "wrong eps", LLAMA, "config.py", "rms_norm_eps=config.rms_norm_eps", "rms_norm_eps=1e-6",
        "llama", "plain", "log_probabilities", r"norm .*its eps is 0.03, rms_norm_eps in the config, and 1e-06",
    ),
    Bug(
        "wrong activation", LLAMA, "config.py", "known_activation(config.hidden_act)", '"gelu"',
        "llama", "plain", "log_probabilities", r"activation in model.layers.0.mlp is another one.*'silu' of gate_proj",
    ),
    Bug(
        "positions counted by rows", LLAMA, "model.py", "self.rotary(kv.positions,",
        "self.rotary(__import__('torch').arange(len(tokens_T)),",
        "llama", "plain", "chunks", r"in chunks of 7 tokens other logits.*kv.positions",
    ),
    Bug(
        "outputs that ranks divide", LLAMA, "model.py",
        "self.o_proj = RowParallelLinear(queries, config.hidden_size,",
        "from pipezoo_core.layers import Linear\n"
        "        self.o_proj = Linear(config.num_heads * config.head_dim, config.hidden_size,",
        "llama", "plain", "two_ranks", r"RowParallelLinear|two ranks",
    ),
    Bug(
        "decides by values", LLAMA, "model.py", "x_TH = self.embed_tokens(tokens_T)",
        "x_TH = self.embed_tokens(tokens_T) * (1.0 if int(tokens_T[0]) >= 0 else 2.0)",
        "llama", "plain", "replay", r"steps are not replayed|replayed steps have other logits",
    ),
    Bug(
        "tensors that no plan counts", LLAMA, "model.py", RETURNED,
        "copies = [q.repeat(1, 4) for _ in range(8)]\n        q = copies[0][:, : q.shape[1]]\n        " + RETURNED,
        "llama", "plain", "memory_plan", r"takes more memory than is planned",
    ),
    Bug(
        "config that changes", QWEN, "config.py", "rope, is_qwen3 =",
        "config.rms_norm_eps *= 2\n        rope, is_qwen3 =",
        "qwen2", "plain", "spec", r"something else the second time",
    ),
]  # fmt: skip
