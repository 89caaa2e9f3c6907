"""A module whose linear layers add what adapters say, and the slots that it is read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipezoo_core.config import LoRAConfig
from pipezoo_core.distributed import DistributedGroup, Message, TensorParallelGroup
from pipezoo_core.errors import InvalidSettingError, RankLostError
from pipezoo_core.layers import Experts, LatentHeads
from pipezoo_core.layers.experts import UngatedExpert
from pipezoo_core.lora.latent_heads import adapt_latent_heads
from pipezoo_core.lora.layers import LoRABatch, LoRALayer, LoRATarget, adaptable_layers, group_rows

__all__ = ["AdaptedModule", "lora_memory"]


class _Filling(NamedTuple):
    """What rank 0 sends of an adapter before its numbers.

    Attributes:
        slot: that it goes to, by itself.
        targets: the layers that it changes, by their places among all targets.
        ranks: of its A and B in each of these.
    """

    slot: Sequence[int]
    targets: Sequence[int]
    ranks: Sequence[int]


class AdaptedModule:
    """Owns the slots of a module. On several ranks each has its part of every adapter, as of the layers.

    Args:
        module: loaded, and its layers' products chosen; its linear layers are made to add what the adapters say.
        config: how many slots, of which rank; resolved.
        device: where the module computes.
        dtype: of its activations, and of A and B.
        group: the ranks that compute the module together.

    Attributes:
        dtype: of A and B.
        targets: the layers that an adapter may change, by their names in the module.
        has_experts: whether experts are among them.
        gated_experts: whether these have gates.

    Raises:
        InvalidSettingError: experts are to be changed, and the ranks of a group divide them.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoRAConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        group: TensorParallelGroup,
    ) -> None:
        assert config.max_num_loras is not None
        assert config.max_lora_rank is not None
        self._device = device
        self.dtype = dtype
        self._group = group
        self._batch = LoRABatch()
        self.targets: dict[str, LoRATarget] = {}
        self._layers: dict[str, LoRALayer] = {}
        if config.lora_experts and isinstance(group, DistributedGroup):
            raise InvalidSettingError(
                "adapters of experts are not computed on several devices",
                found="setting 'lora_experts', or such an adapter in lora_paths",
                cure="Load the model on one device, or merge the adapter into it.",
            )
        self.has_experts = bool(config.lora_experts)
        self.gated_experts = not any(isinstance(part, UngatedExpert) for part in module.modules())
        if self.has_experts:
            for mixture in [mixture for mixture in module.modules() if isinstance(mixture, Experts)]:
                mixture.tell_rows(self._batch.of_rows)
        for layer, targets in adaptable_layers(module, experts=self.has_experts):
            adapted = LoRALayer(
                self._batch,
                layer.in_features,
                {name: target.out_features for name, target in targets.items()},
                num_slots=config.max_num_loras,
                max_rank=config.max_lora_rank,
                device=device,
                dtype=dtype,
            )
            if isinstance(layer, LatentHeads):
                adapt_latent_heads(layer, adapted)
            else:
                layer.add_to_product(adapted.add)
            self.targets |= targets
            self._layers |= dict.fromkeys(targets, adapted)

    def fill(self, slot: int, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Puts an adapter into a slot, in place of another; on several ranks into that of all, as rank 0.

        Where another rank is gone, this does nothing: the next step says so, to those whom it concerns.

        Args:
            slot: of which no running request has the adapter.
            layers: by the names of targets, A [R, in_features] and B [out_features, R], the latter times the scaling,
                in the module's dtype.
        """
        if not isinstance(self._group, DistributedGroup):
            self._fill(slot, layers.items())
            return
        numbers = {name: number for number, name in enumerate(self.targets)}
        with suppress(RankLostError), self._group.step():
            ranks = [len(a) for a, _ in layers.values()]
            self._group.send(Message.fill_slot, _Filling([slot], [numbers[name] for name in layers], ranks))
            self._fill(slot, self._shared(layers.items()))

    def fill_as_told(self, lists: Sequence[Sequence[int]]) -> None:
        """Puts an adapter into a slot, as another rank that `Message.fill_slot` was sent to.

        Raises:
            RankLostError: another rank is gone.
        """
        filling = _Filling(*lists)
        names = list(self.targets)

        def layers() -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
            for number, rank in zip(filling.targets, filling.ranks, strict=True):
                out_features, in_features = self.targets[names[number]].shape
                shapes = (rank, in_features), (out_features, rank)
                a, b = (torch.empty(shape, dtype=self.dtype, device="cpu") for shape in shapes)
                yield names[number], (a, b)

        self._fill(filling.slot[0], self._shared(layers()))

    def _shared(
        self, layers: Iterable[tuple[str, tuple[Tensor, Tensor]]]
    ) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        """Yields layers when they have rank 0's numbers, one by one: no rank has all of an adapter but rank 0."""
        assert isinstance(self._group, DistributedGroup)
        for name, pair in layers:
            for x in pair:
                self._group.broadcast(x)
            yield name, pair

    def _fill(self, slot: int, layers: Iterable[tuple[str, tuple[Tensor, Tensor]]]) -> None:
        for layer in self._layers.values():
            layer.empty(slot)
        for name, (a, b) in layers:
            self._layers[name].fill(slot, name, *self.targets[name].part(a, b))

    @contextmanager
    def applied(self, lora_ids: Sequence[int], lora_ranks: Sequence[int], row_offsets: Sequence[int]) -> Iterator[None]:
        """Makes the layers add the adapters of one step, as long as the context lasts.

        Args:
            lora_ids: of each request its adapter's slot, or `NO_LORA`.
            lora_ranks: of each request its adapter's rank.
            row_offsets: where each request's rows begin, and the last one's end.
        """
        self._batch.groups = group_rows(lora_ids, lora_ranks, row_offsets, self._device)
        self._batch.num_rows = row_offsets[-1]
        try:
            yield
        finally:
            self._batch.groups = ()


def lora_memory(config: LoRAConfig, module: nn.Module, device: torch.device) -> int:
    """Returns the bytes of all slots, and on a CPU of the adapters that are loaded at once.

    Args:
        config: resolved.
        module: in the run's precision, on the meta device.
        device: where it will be.
    """
    assert config.max_num_loras is not None
    assert config.max_lora_rank is not None
    num_loaded = len(config.lora_paths) if device.type == "cpu" else 0
    size = 0
    for layer, targets in adaptable_layers(module, experts=bool(config.lora_experts)):
        in_slots = len(targets) * (layer.in_features + layer.out_features)
        loaded = sum(sum(target.shape) for target in targets.values())
        size += (config.max_num_loras * in_slots + num_loaded * loaded) * layer.weight.dtype.itemsize
    return config.max_lora_rank * size
