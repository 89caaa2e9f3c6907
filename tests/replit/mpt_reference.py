"""MPT in NumPy and float64, one head and one query at a time, from llm-foundry's config and weight names.

Written from the formulas, without pipezoo and without torch. Knows what transformers' model leaves out.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)


def slopes(num_heads, bias_max, is_replit):
    """ALiBi's, in the order of MPT's code; Replit's first code has one sequence for any number of heads."""
    if is_replit:
        return [2 ** (-bias_max * (i + 1) / num_heads) for i in range(num_heads)]
    power = 1
    while power < num_heads:
        power *= 2
    all_slopes = [2 ** (-bias_max * (i + 1) / power) for i in range(power)]
    if power > num_heads:
        all_slopes = [s for i, s in enumerate(all_slopes) if i % 2] + [s for i, s in enumerate(all_slopes) if not i % 2]
    return all_slopes[:num_heads]


class Reference:
    """The model of a config in MPT's nested spelling, every setting given that differs from transformers' defaults."""

    def __init__(self, config, seed=0):
        attention = config.get("attn_config") or {}
        self.num_heads, self.num_layers = config["n_heads"], config["n_layers"]
        self.size = config["d_model"]
        self.head_dim = self.size // self.num_heads
        self.num_kv_heads = attention.get("kv_n_heads") or self.num_heads
        if attention.get("attn_type") == "multiquery_attention":
            self.num_kv_heads = 1
        self.inner = int(config.get("expansion_ratio", 4) * self.size)
        self.has_bias = not config.get("no_bias", True)
        self.eps = config.get("layer_norm_epsilon", config.get("norm_eps", 1e-5))
        self.clip = attention.get("clip_qkv")
        self.qk_ln = attention.get("qk_ln", False)
        scale = attention.get("softmax_scale")
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.has_alibi = attention.get("alibi", True)
        self.has_positions = not self.has_alibi and config.get("learned_pos_emb", True)
        self.slopes = slopes(
            self.num_heads, attention.get("alibi_bias_max", 8), config.get("model_type") == "replit_lm"
        )
        logit_scale = config.get("logit_scale")
        self.logit_scale = self.size**-0.5 if logit_scale == "inv_sqrt_d_model" else logit_scale
        self.is_tied = config.get("tie_word_embeddings", True)
        random = np.random.default_rng(seed)
        self.weights = {
            name: 0.2 * random.standard_normal(shape) + (1 if len(shape) == 1 and name.endswith("weight") else 0)
            for name, shape in self.shapes(config["vocab_size"], config["max_seq_len"]).items()
        }

    def shapes(self, vocab_size, max_seq_len):
        size, kv_size = self.size, self.num_kv_heads * self.head_dim
        shapes = {"transformer.wte.weight": (vocab_size, size)}
        if self.has_positions:
            shapes["transformer.wpe.weight"] = (max_seq_len, size)
        for i in range(self.num_layers):
            block = {"norm_1": (size,), "norm_2": (size,)}
            block |= {"attn.Wqkv": (size + 2 * kv_size, size), "attn.out_proj": (size, size)}
            block |= {"attn.q_ln": (size,), "attn.k_ln": (kv_size,)} if self.qk_ln else {}
            block |= {"ffn.up_proj": (self.inner, size), "ffn.down_proj": (size, self.inner)}
            shapes |= self.layers(f"transformer.blocks.{i}.", block)
        shapes |= self.layers("transformer.", {"norm_f": (size,)})
        if not self.is_tied:
            shapes["lm_head.weight"] = (vocab_size, size)
        return shapes

    def layers(self, prefix, shapes):
        weights = {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}
        biases = {f"{prefix}{name}.bias": shape[:1] for name, shape in shapes.items()} if self.has_bias else {}
        return weights | biases

    def linear(self, name, x):
        bias = self.weights.get(f"{name}.bias")
        return x @ self.weights[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(self, name, x):
        bias = self.weights.get(f"{name}.bias")
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return normal * self.weights[f"{name}.weight"] + (0 if bias is None else bias)

    def attention(self, name, x):
        qkv = self.linear(f"{name}.Wqkv", x)
        if self.clip:
            qkv = np.clip(qkv, -self.clip, self.clip)
        kv_size = self.num_kv_heads * self.head_dim
        q, k, v = qkv[:, : self.size], qkv[:, self.size : -kv_size], qkv[:, -kv_size:]
        if self.qk_ln:
            q, k = self.norm(f"{name}.q_ln", q), self.norm(f"{name}.k_ln", k)
        out = np.empty_like(q)
        for head in range(self.num_heads):
            of_head = slice(head * self.head_dim, (head + 1) * self.head_dim)
            kv_head = head // (self.num_heads // self.num_kv_heads)
            of_kv_head = slice(kv_head * self.head_dim, (kv_head + 1) * self.head_dim)
            for i in range(len(x)):
                scores = self.scale * (k[: i + 1, of_kv_head] @ q[i, of_head])
                if self.has_alibi:
                    scores = scores - self.slopes[head] * (i - np.arange(i + 1))
                weights = np.exp(scores - scores.max())
                out[i, of_head] = weights / weights.sum() @ v[: i + 1, of_kv_head]
        return self.linear(f"{name}.out_proj", out)

    def logits(self, tokens):
        """Maps a list of S tokens to logits [S, V]."""
        x = self.weights["transformer.wte.weight"][tokens]
        if self.has_positions:
            x = x + self.weights["transformer.wpe.weight"][: len(tokens)]
        for i in range(self.num_layers):
            block = f"transformer.blocks.{i}"
            x = x + self.attention(f"{block}.attn", self.norm(f"{block}.norm_1", x))
            inner = self.linear(f"{block}.ffn.up_proj", self.norm(f"{block}.norm_2", x))
            x = x + self.linear(f"{block}.ffn.down_proj", inner * (1 + erf(inner / math.sqrt(2))) / 2)
        x = self.norm("transformer.norm_f", x)
        logits = x @ self.weights["transformer.wte.weight" if self.is_tied else "lm_head.weight"].T
        return logits if self.logit_scale is None else logits * self.logit_scale

    def greedy(self, tokens, num_tokens):
        tokens = list(tokens)
        for _ in range(num_tokens):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[-num_tokens:]
