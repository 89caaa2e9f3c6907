"""The checks as a test class: subclass it, and give it tiny configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pipezoo_core.testing.catalogue import CHECKS
from pipezoo_core.testing.failures import ConformanceError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["PluginConformance", "overrides_check"]

Method = TypeVar("Method", bound=Callable[..., Any])
Runner = Callable[[str], None]

_REASON = "__overrides_check_because__"


def overrides_check(reason: str) -> Callable[[Method], Method]:
    """Marks a method that takes the place of a check, and says why: `@overrides_check("its router is random")`."""

    def mark(method: Method) -> Method:
        setattr(method, _REASON, reason)
        return method

    return mark


class PluginConformance:
    """Every check that a plugin has to pass. A subclass has the fixture `configs`:

        class TestSeedOss(PluginConformance):
            @pytest.fixture
            def configs(self):
                return {"plain": {"model_type": "seed_oss", "hidden_size": 64, ...}, "tied": {...}}

    It returns what config.json says, by names for messages; `tiny_configs` makes some. Each config is compared with the
    reference implementation. What a plugin does not do it says in `SupportedArchitecture.not_claimed`,
    `supported_encodings` and `config_from_gguf`; checks of that are skipped by name. A method that takes the place of a
    check is marked with `overrides_check` and a reason.

    Attributes:
        distribution: the plugin's; None for the only one that claims the type of the configs.
        reference: the class of the reference implementation, an `nn.Module` that is made of a config and returns
            logits, or what has them as `logits`; None for transformers'.
        write_gguf: a method that writes the reference, an argument, into a GGUF file, another: as llama.cpp's converter
            does. None for the kit's own writer, which knows the converters of many architectures.
    """  # noqa: D415 - the first paragraph ends in an example

    distribution: ClassVar[str | None] = None
    reference: ClassVar[Callable[[Any], nn.Module] | None] = None
    write_gguf: Callable[[nn.Module, Path], None] | None = None

    def test_overrides(self) -> None:
        """No check was put out of action without a reason."""
        for name in ("overrides", *(check.name for check in CHECKS)):
            method = getattr(type(self), f"test_{name}")
            is_ours = method is getattr(PluginConformance, f"test_{name}")
            reason = getattr(method, _REASON, "")
            if not is_ours and (name == "overrides" or not str(reason).strip()):
                raise ConformanceError(
                    f"{type(self).__name__} overrides the check {name!r} without a reason",
                    cure="Mark the method with @overrides_check(reason), or take it away. What the plugin does not do "
                    "is said in SupportedArchitecture.not_claimed.",
                )

    def test_discovery(self, conformance: Runner) -> None:
        """See `check_discovery`."""
        conformance("discovery")

    def test_rediscovery(self, conformance: Runner) -> None:
        """See `check_rediscovery`."""
        conformance("rediscovery")

    def test_spec(self, conformance: Runner) -> None:
        """See `check_spec`."""
        conformance("spec")

    def test_weights(self, conformance: Runner) -> None:
        """See `check_weights`."""
        conformance("weights")

    def test_causality(self, conformance: Runner) -> None:
        """See `check_causality`."""
        conformance("causality")

    def test_log_probabilities(self, conformance: Runner) -> None:
        """See `check_log_probabilities`."""
        conformance("log_probabilities")

    def test_backends(self, conformance: Runner) -> None:
        """See `check_backends`."""
        conformance("backends")

    def test_chunks(self, conformance: Runner) -> None:
        """See `check_chunks`."""
        conformance("chunks")

    def test_batch(self, conformance: Runner) -> None:
        """See `check_batch`."""
        conformance("batch")

    def test_several_steps(self, conformance: Runner) -> None:
        """See `check_several_steps`."""
        conformance("several_steps")

    def test_preemption(self, conformance: Runner) -> None:
        """See `check_preemption`."""
        conformance("preemption")

    def test_prefix_hit(self, conformance: Runner) -> None:
        """See `check_prefix_hit`."""
        conformance("prefix_hit")

    def test_abort(self, conformance: Runner) -> None:
        """See `check_abort`."""
        conformance("abort")

    def test_echo(self, conformance: Runner) -> None:
        """See `check_echo`."""
        conformance("echo")

    def test_saved_in_shards(self, conformance: Runner) -> None:
        """See `check_saved_in_shards`."""
        conformance("saved_in_shards")

    def test_lora(self, conformance: Runner) -> None:
        """See `check_lora`."""
        conformance("lora")

    def test_int8(self, conformance: Runner) -> None:
        """See `check_int8`."""
        conformance("int8")

    def test_int4(self, conformance: Runner) -> None:
        """See `check_int4`."""
        conformance("int4")

    def test_two_ranks(self, conformance: Runner) -> None:
        """See `check_two_ranks`."""
        conformance("two_ranks")

    def test_replay(self, conformance: Runner) -> None:
        """See `check_replay`."""
        conformance("replay")

    def test_memory_plan(self, conformance: Runner) -> None:
        """See `check_memory_plan`."""
        conformance("memory_plan")

    def test_gguf(self, conformance: Runner) -> None:
        """See `check_gguf`."""
        conformance("gguf")
