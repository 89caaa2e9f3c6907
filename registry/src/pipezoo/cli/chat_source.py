"""Where `pipezoo chat` gets what it talks to: it loads a model, or asks a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipezoo.cli.options import LORA_NAME
from pipezoo_core.errors import InvalidSettingError

if TYPE_CHECKING:
    from pipezoo.cli.chat_model import ChatModel

__all__ = ["loaded_model", "served_model"]

_UNSET = (None, "auto")
_OPTIONS = {"lora_paths": "lora"}


def loaded_model(model: str | None, settings: Mapping[str, Any]) -> ChatModel:
    """Loads a model, with settings of `registry.load`, and raises what that raises."""
    from pipezoo.cli.chat_model import LoadedModel
    from pipezoo.cli.loading import load_model

    assert model is not None, "without a server there is a name"
    llm = load_model(model, **settings)
    return LoadedModel(llm, lora=LORA_NAME if "lora_paths" in settings else None)


def served_model(url: str, name: str | None, settings: Mapping[str, Any]) -> ChatModel:
    """Returns what a server has under a name; without one, its first model.

    Raises:
        InvalidSettingError: the address is none, or one of the settings is what only who loads a model can say.
        ServerUnreachableError: nobody answers at the address.
        ServerRefusedError: the server does not take the API key.
        ServerFailedError: what answers there is no server of models, or one that has failed.
        InvalidRequestError: it has nothing of this name.
    """
    from pipezoo.cli.served_model import ServedModel
    from pipezoo.cli.server_connection import API_KEY, ServerConnection

    for setting, value in settings.items():
        if value not in _UNSET:
            option = _OPTIONS.get(setting, setting).replace("_", "-")
            raise InvalidSettingError(
                f"--{option} does not go with --url: the server has loaded its model",
                cure="Name an adapter of the server in place of the model." if option == "lora" else None,
            )
    return ServedModel(ServerConnection(url, key=os.environ.get(API_KEY)), name=name)
