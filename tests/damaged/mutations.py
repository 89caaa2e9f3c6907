"""One damaged copy of a model's files per number: JSON entries of other types and sizes, and bytes that differ."""

import json
import random

VALUES = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**9, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "__class__", "\ud800", [], {}, [[]], {"a": 1}, "x" * 5000, [0] * 5000,
)  # fmt: skip
NAMES = ("num_labels", "torch_dtype", "dtype", "to_dict", "get_text_config", "__class__", "rope_scaling", "\ud800")


def mutated(data: bytes, name: str, number: int) -> bytes:
    """Returns a damaged copy of a file; the same one for the same name and number."""
    choose = random.Random(f"{name} {number}")
    if name.endswith(".json") and choose.random() < 0.8:
        return _json(data, choose)
    return _bytes(data, choose)


def _json(data, choose):
    root = json.loads(data)
    place = root
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = choose.choice(list(keys) or [0])
        inner = place[key] if keys else None
        if not isinstance(inner, dict | list) or not inner or choose.random() < 0.3:
            break
        place = inner
    if not keys or (isinstance(place, dict) and choose.random() < 0.15):
        key = choose.choice(NAMES)
    if isinstance(place, dict):
        if choose.random() < 0.15:
            place.pop(key, None)
        else:
            place[key] = choose.choice(VALUES)
    else:
        place[key if keys and isinstance(key, int) else slice(0, 0)] = choose.choice(VALUES) if keys else []
    text = json.dumps(root)
    return (text.replace("{", '{"a": 1, "a": 2, ', 1) if choose.random() < 0.03 else text).encode()


def _bytes(data, choose):
    changed = bytearray(data)
    header = min(len(changed), choose.choice((64, 1000, 20_000)))
    for _ in range(choose.choice((1, 1, 1, 4))):
        at = choose.randrange(header)
        kind = choose.randrange(4)
        if kind == 0:
            changed[at] = choose.randrange(256)
        elif kind == 1:
            changed[at : at + 8] = choose.choice((2**63, 2**64 - 1, 0, 10**9)).to_bytes(8, "little")
        elif kind == 2:
            del changed[at : at + choose.choice((1, 8, 100))]
        else:
            del changed[choose.randrange(len(changed)) :]
        if not changed:
            break
        header = min(header, len(changed))
    return bytes(changed)
