"""The checks without a test file: on tiny configs of every type that a distribution serves."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipezoo_core.errors import PipezooError, PluginError
from pipezoo_core.testing.bench import Bench
from pipezoo_core.testing.catalogue import CHECKS, Check
from pipezoo_core.testing.failures import ConformanceError, NotCheckedError, UnknownModelTypeError
from pipezoo_core.testing.plugin_under_test import PluginUnderTest
from pipezoo_core.testing.subject import Subject
from pipezoo_core.testing.tiny_configs import tiny_configs

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Answer", "Outcome", "check_distribution"]

_PLAIN = "plain"


class Answer(enum.StrEnum):
    """How a check ended."""

    passed = "passed"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check.

    Attributes:
        model_type: on whose configs.
        check: its name; `configs` for the configs themselves.
        answer: how it ended.
        message: why, where it did not pass.
    """

    model_type: str
    check: str
    answer: Answer
    message: str = ""


def check_distribution(
    distribution: str,
    folder: Path,
    *,
    reference: Callable[[Any], nn.Module] | None = None,
    only: Collection[str] = (),
    model_types: Collection[str] = (),
) -> Iterator[Outcome]:
    """Runs the checks on a plugin's model types, and yields what comes of each.

    Args:
        distribution: of the plugin.
        folder: an empty one.
        reference: the class of the reference implementation; None for transformers'.
        only: names of checks; none for all.
        model_types: on whose configs; none for all that the plugin claims. One that serves any has to be told.

    Raises:
        ConformanceError: the distribution is not installed, serves nothing, or does not say what it serves.
    """
    plugin = PluginUnderTest.of_distribution(distribution)
    checks = [check for check in CHECKS if not only or check.name in only]
    for number, model_type in enumerate(model_types or _model_types(plugin)):
        bench = Bench(folder / str(number), distribution, reference)
        subjects: list[Subject] = []
        for check in checks:
            if not check.is_of_models:
                yield _outcome(check, model_type, plugin, subjects)
        try:
            for name, config in tiny_configs(model_type, _config_class(plugin, model_type, reference)).items():
                try:
                    (subject,) = bench.subjects({name: config})
                    _ = subject.layers  # which reads the config
                    subjects.append(subject)
                except Exception as error:  # a plugin's own code may fail in any way
                    if name == _PLAIN:
                        raise
                    is_refused = isinstance(error, PluginError | ConformanceError)
                    answer = Answer.skipped if is_refused else Answer.failed
                    yield Outcome(model_type, "configs", answer, f"{name}: {_said(error)}")
        except UnknownModelTypeError as error:
            yield Outcome(model_type, "configs", Answer.skipped, str(error))
            continue
        except Exception as error:  # a plugin's own code may fail in any way
            yield Outcome(model_type, "configs", Answer.failed, _said(error))
            continue
        for check in checks:
            if check.is_of_models:
                yield _outcome(check, model_type, plugin, subjects)


def _outcome(check: Check, model_type: str, plugin: PluginUnderTest, subjects: list[Subject]) -> Outcome:
    try:
        check.run(plugin, subjects)
    except NotCheckedError as error:
        return Outcome(model_type, check.name, Answer.skipped, str(error))
    except Exception as error:  # a plugin's own code may fail in any way
        return Outcome(model_type, check.name, Answer.failed, _said(error))
    return Outcome(model_type, check.name, Answer.passed)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, PipezooError) else f"{type(error).__name__}: {error}"


def _model_types(plugin: PluginUnderTest) -> list[str]:
    """Returns the claims that are types of an architecture: others are names of architectures, or any type."""
    served = {kind for name in plugin.claims for each in plugin.architectures(name) for kind in each.model_types}
    found = sorted(served & plugin.claims.keys())
    if not found:
        raise ConformanceError(
            f"{plugin.distribution} claims no model_type that its architectures serve",
            found=sorted(plugin.claims),
            allowed=sorted(served),
            cure="An entry point's name is a model_type, and one of its architectures has that in model_types.",
        )
    return found


def _config_class(plugin: PluginUnderTest, model_type: str, reference: Callable[[Any], nn.Module] | None) -> Any:
    """Returns whose fields tiny configs have: the reference's class, or the plugin's; None for transformers'."""
    if reference is None:
        return None
    named = getattr(reference, "config_class", None)
    makes = plugin.architecture({"model_type": model_type}).huggingface_config
    own = makes.__self__ if inspect.ismethod(makes) and inspect.isclass(makes.__self__) else None
    return named or own
