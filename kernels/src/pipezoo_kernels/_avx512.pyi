from collections.abc import Callable

attend_bfloat16: Callable[..., None]
attend_float32: Callable[..., None]
linear_bfloat16: Callable[..., None]
linear_float32: Callable[..., None]
pack_bfloat16: Callable[..., None]
pack_float32: Callable[..., None]
rms_norm_bfloat16: Callable[..., None]
rms_norm_float32: Callable[..., None]
silu_multiply_bfloat16: Callable[..., None]
silu_multiply_float32: Callable[..., None]
