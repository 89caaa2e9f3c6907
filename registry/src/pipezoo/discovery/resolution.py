"""Finds the plugin and the architecture that serve a raw config.json, and tells why for every installed plugin.

Works on the parsed JSON alone: nothing of it becomes an attribute or a class before a plugin is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pipezoo.discovery.choice import AskedName, PluginChoice, choose_plugin, not_found
from pipezoo.discovery.index import PluginIndex, PluginInfo, PluginState
from pipezoo.discovery.published import ANY, how_to_mend
from pipezoo_core.errors import BrokenPluginError, PluginError, UnsupportedModelError

if TYPE_CHECKING:
    from pipezoo_core.architecture import SupportedArchitecture

__all__ = ["Candidate", "Resolution", "resolve"]


class Candidate(NamedTuple):
    """One installed plugin, whether it was taken, and why or why not.

    Attributes:
        plugin: under one of the names that it claims.
        taken: whether it was.
        is_asked: whether the config asks for this name, or the plugin takes any, or the caller asks for the plugin.
        reason: why, or why not.
    """

    plugin: PluginInfo
    taken: bool
    is_asked: bool
    reason: str

    def __str__(self) -> str:
        mark = "taken   " if self.taken else "rejected"
        return f"{mark}  {self.plugin.name} ({self.plugin.distribution} {self.plugin.version}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What was chosen for a config, and why.

    Its `str` is the explanation: a line for each candidate that came into question, and one for all others.

    Attributes:
        model_type: what the config names, None where it names none.
        architectures: what the config names, possibly nothing.
        plugin: the chosen plugin, loaded.
        architecture: what the plugin runs the model with.
        candidates: every installed plugin, exactly one of them taken.
    """

    model_type: str | None
    architectures: tuple[str, ...]
    plugin: PluginInfo
    architecture: SupportedArchitecture
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        asked = f"model_type {self.model_type!r}, architectures {', '.join(self.architectures) or 'not given'}"
        chosen = f"{self.architecture.name} of {self.plugin.distribution} {self.plugin.version}"
        return "\n".join([f"{asked}: {chosen}", *_lines(self.candidates)])


def resolve(index: PluginIndex, config: Mapping[str, Any], plugin: str | None = None) -> Resolution:
    """Chooses and loads the plugin that serves a config, and its architecture.

    Every error below carries one note, in `__notes__`: the reasons for and against each installed plugin.

    Args:
        index: the installed plugins; the chosen one is loaded.
        config: the parsed config.json, or its equivalent. It is not changed.
        plugin: the distribution that must serve it, whatever else is installed or pinned.

    Raises:
        PluginNotFoundError: none serves it, or the one asked for is not there or is disabled.
        PluginConflictError: several serve it and none is pinned.
        IncompatiblePluginError: the chosen one was made for another version of pipezoo-core.
        BrokenPluginError: the chosen one raised; the cause is chained.
        UnsupportedModelError: the config names no model, or the chosen plugin refuses it.
    """
    asked = _asked_names(config)
    choice: PluginChoice | None = None
    try:
        choice = choose_plugin(index, asked, plugin)
        architecture = _pick(index.load(choice.plugin), choice, asked)
        refusal = _refusal(architecture, choice, config)
        if refusal is not None and choice.plugin.name == ANY and plugin is None:
            raise not_found(index, asked, f"{choice.plugin.distribution} cannot serve it: {refusal}")
        if refusal is not None:
            raise UnsupportedModelError(f"plugin {choice.plugin.distribution!r} refuses this model", found=refusal)
    except PluginError as error:
        reasons = _candidates(index, asked, choice, failure=str(error))
        error.add_note("\n".join(_lines(reasons)) or "No plugin is installed.")
        raise
    candidates = _candidates(index, asked, choice)
    return Resolution(
        model_type=_text(config.get("model_type")),
        architectures=_texts(config.get("architectures")),
        plugin=next(candidate.plugin for candidate in candidates if candidate.taken),
        architecture=architecture,
        candidates=candidates,
    )


def _asked_names(config: Mapping[str, Any]) -> tuple[AskedName, ...]:
    asked: list[AskedName] = []
    for prefix, part in (("", config), ("text_config.", config.get("text_config"))):
        if isinstance(part, Mapping):
            if model_type := _text(part.get("model_type")):
                asked.append(AskedName(f"{prefix}model_type", model_type))
            asked += [AskedName(f"{prefix}architectures[0]", name) for name in _texts(part.get("architectures"))[:1]]
    if not asked:
        error = UnsupportedModelError(
            "config.json names neither a model_type nor architectures",
            found=sorted(map(str, config)),
            cure="Check that this is the config.json of a language model in the Hugging Face layout.",
        )
        error.add_note("No plugin was considered.")
        raise error
    return tuple(asked)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str) and item) if isinstance(value, list | tuple) else ()


def _pick(
    architectures: Sequence[SupportedArchitecture], choice: PluginChoice, asked: Sequence[AskedName]
) -> SupportedArchitecture:
    if choice.plugin.name == ANY:
        return architectures[0]
    wanted = next((name for name in asked if name.where.endswith("architectures[0]")), None)
    if wanted is not None:
        for architecture in architectures:
            if wanted.name in architecture.names:
                return architecture
        raise UnsupportedModelError(
            f"plugin {choice.plugin.distribution!r} does not serve this architecture",
            found=wanted.name,
            allowed=[name for architecture in architectures for name in architecture.names],
        )
    serving = [architecture for architecture in architectures if choice.asked.name in architecture.model_types]
    if len(serving) == 1:
        return serving[0]
    raise UnsupportedModelError(
        f"plugin {choice.plugin.distribution!r} cannot tell which architecture {choice.asked} means",
        found=[architecture.name for architecture in serving],
        allowed=[architecture.name for architecture in architectures],
        cure="Name one of the allowed in `architectures` of config.json.",
    )


def _refusal(architecture: SupportedArchitecture, choice: PluginChoice, config: Mapping[str, Any]) -> str | None:
    try:
        return architecture.probe(config)
    except Exception as error:  # a plugin's own code may fail in any way
        raise BrokenPluginError(
            f"plugin {choice.plugin.distribution!r} failed while it looked at config.json",
            found=f"{type(error).__name__}: {error}",
            cure=how_to_mend(choice.plugin.distribution),
        ) from error


def _candidates(
    index: PluginIndex, asked: Sequence[AskedName], choice: PluginChoice | None, failure: str | None = None
) -> tuple[Candidate, ...]:
    names = {ANY, *(name.name for name in asked)}

    def judged(info: PluginInfo) -> Candidate:
        if choice is None or (info.name, info.distribution) != (choice.plugin.name, choice.plugin.distribution):
            return Candidate(info, False, info.name in names, _rejection(info, asked, choice))
        return Candidate(info, failure is None, True, choice.reason + (f", but: {failure}" if failure else ""))

    return tuple(judged(info) for info in index.plugins())


def _lines(candidates: Sequence[Candidate]) -> list[str]:
    """Returns a line for each candidate that came into question, the taken one first, and the number of others."""
    asked = sorted((one for one in candidates if one.is_asked), key=lambda one: not one.taken)
    num_others = len({one.plugin.distribution for one in candidates} - {one.plugin.distribution for one in asked})
    others = f"rejected  plugins that serve others: {num_others}; `pipezoo plugins` lists them"
    return [*map(str, asked), *([others] if num_others else [])]


def _rejection(info: PluginInfo, asked: Sequence[AskedName], choice: PluginChoice | None) -> str:
    if info.name == ANY and choice is not None:
        return f"serves what no other plugin does, but {choice.plugin.distribution!r} is taken: {choice.reason}"
    claimed = next((name for name in asked if name.name == info.name), None)
    if claimed is None:
        return f"serves {info.name!r}, not {' or '.join(map(str, asked))}"
    if info.state in (PluginState.disabled, PluginState.shadowed, PluginState.incompatible):
        return str(info.reason)
    if choice is None:
        return f"serves {claimed}, but no choice could be made"
    return f"serves {claimed}, but {choice.plugin.distribution!r} is taken: {choice.reason}"
