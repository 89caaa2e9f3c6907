"""What an operation of torch does with its tensors, and whether it can be run again on others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipezoo_core.native.foreign_call import each_of

__all__ = ["is_view", "why_not_run_again", "written_by"]

_VIEW_CHANGES = {"detach_", "unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_"}
_OF_NUMBERS = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_BY_MASK = (torch.bool, torch.uint8)
_VIEWS_LIKE_ANOTHER = {
    torch.ops.aten.expand_as.default,
    torch.ops.aten.reshape_as.default,
    torch.ops.aten.type_as.default,
    torch.ops.aten.view_as.default,
}
_INDEXING = {torch.ops.aten.index.Tensor}  # of a shape that depends on numbers where it is by a mask


def is_view(function: Any, result: Any, args: tuple[Any, ...]) -> bool:
    """Whether the results lie where a tensor lies that the operation is given: nothing is computed."""
    if function._schema.is_mutable:
        return _changes_the_view(function)
    results = result if isinstance(result, tuple | list) else (result,)
    given = [*each_of(Tensor, args)]
    where = {x.untyped_storage().data_ptr() for x in given}
    if len(given) > 1 and function not in _VIEWS_LIKE_ANOTHER:
        return False  # where they lie may depend on numbers of the other
    return bool(results) and all(isinstance(x, Tensor) and x.untyped_storage().data_ptr() in where for x in results)


def written_by(function: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Returns the tensors whose numbers an operation writes."""
    if not function._schema.is_mutable or _changes_the_view(function):
        return []
    parameters = zip(function._schema.arguments, args, strict=False)
    return [x for parameter, given in parameters if parameter.is_write for x in each_of(Tensor, given)]


def why_not_run_again(function: Any, result: Any, args: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    """Returns what keeps an operation from being run again with other numbers at other places; None where nothing does.

    Args:
        function: the overload.
        result: what it has returned.
        args: what it was given.
        named: likewise, by name.
    """
    is_by_index = function in _INDEXING and not any(x.dtype in _BY_MASK for x in each_of(Tensor, args[1:]))
    if any(tag in function.tags for tag in _OF_NUMBERS) and not is_by_index:
        return str(function)
    results = result if isinstance(result, tuple | list) else (result,)
    if not results or not all(isinstance(x, Tensor) for x in results):
        return str(function)  # what it returns is read on the host
    tensors = [*each_of(Tensor, (args, tuple(named.values()))), *results]
    if not all(map(_is_plain, tensors)):
        return f"{function} of a tensor that is empty, or not plain memory of the CPU"
    if any(stride == 0 and size > 1 for x in results for size, stride in zip(x.shape, x.stride(), strict=True)):
        return f"{function}, whose result lies over itself"
    where = [x.untyped_storage().data_ptr() for x in tensors]
    given, returned = set(where[: -len(results)]), set(where[-len(results) :])
    if function._schema.is_mutable:
        writes_by_name = any(parameter.is_write and parameter.kwarg_only for parameter in function._schema.arguments)
        is_in_place = torch.Tag.inplace_view not in function.tags and not writes_by_name and returned <= given
        return None if is_in_place else str(function)
    shares = given & returned or len(returned) < len(results)
    return f"{function}, whose results share memory" if shares else None


def _changes_the_view(function: Any) -> bool:
    return function._schema.name.removeprefix("aten::") in _VIEW_CHANGES


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is what an address, a shape, strides and a dtype say."""
    return (
        type(x) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and x.is_cpu
        and x.layout is torch.strided
        and not (x.is_quantized or x.is_conj() or x.is_neg())
        and x.numel() > 0
    )
