"""llama.cpp through `llama-cpp-python`'s binding of its C interface: sequences side by side in one `llama_decode`.

What the prompts begin with is computed once and given to all sequences, as llama.cpp's own batched benchmark does.
"""

from __future__ import annotations

from pathlib import Path

from peers import FILE_TYPES, NUM_THREADS, Prompts

WEIGHTS = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0", **FILE_TYPES}
CONTEXT, BATCH, MAX_SEQUENCES = 8192, 2048, 32


class Engine:
    def __init__(self, path: Path, dtype: str) -> None:  # noqa: ARG002 - the file has one
        import llama_cpp
        import numpy

        self.cpp, self.numpy = llama_cpp, numpy
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = CONTEXT, BATCH, MAX_SEQUENCES
        settings.n_threads = settings.n_threads_batch = NUM_THREADS
        settings.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.num_logits = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def generate(self, prompts: Prompts, num_tokens: int) -> list[list[int]]:
        self.cpp.llama_memory_clear(self.memory, False)
        shared = next((i for i, tokens in enumerate(zip(*prompts, strict=True)) if len(set(tokens)) > 1), 0)
        self._feed([prompts[0][:shared]], 0)
        for sequence in range(1, len(prompts) if shared else 0):
            self.cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        tokens = self._feed([prompt[shared:] for prompt in prompts], shared)
        answers = [[token] for token in tokens]
        for position in range(len(prompts[0]), len(prompts[0]) + num_tokens - 1):
            tokens = self._feed([[token] for token in tokens], position)
            for answer, token in zip(answers, tokens, strict=True):
                answer.append(token)
        return answers

    def _feed(self, pieces: Prompts, position: int) -> list[int]:
        """Adds a piece to each sequence, from a position on, and returns each one's most likely next token."""
        rows = [
            (token, position + i, sequence, i == len(piece) - 1)
            for sequence, piece in enumerate(pieces)
            for i, token in enumerate(piece)
        ]
        next_tokens = []
        for start in range(0, len(rows), BATCH):
            chunk = rows[start : start + BATCH]
            self.batch.n_tokens = len(chunk)
            for i, (token, at, sequence, is_last) in enumerate(chunk):
                self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, at, is_last
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            if code := self.cpp.llama_decode(self.context, self.batch):
                raise RuntimeError(f"llama_decode returned {code}")
            for i, (_, _, _, is_last) in enumerate(chunk):
                if is_last:
                    logits = self.cpp.llama_get_logits_ith(self.context, i)
                    logits = self.numpy.ctypeslib.as_array(logits, (self.num_logits,))
                    next_tokens.append(int(logits.argmax()))
        return next_tokens
