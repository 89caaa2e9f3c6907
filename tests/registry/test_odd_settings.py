"""Whatever `registry.load` is given has a plan or an error of ours, in a few words; nothing of it is looked for."""

from pathlib import Path

import pytest

from pipezoo import registry
from pipezoo.loading.settings import LoadSettings
from pipezoo_core.errors import InvalidSettingError, ModelNotFoundError, PipezooError, PluginNotFoundError
from pipezoo_core.hub_download import download_files

OF_OTHER_KINDS = [
    7, -1, 0, 2**31, 10**19, -(10**19), 10**400, 10**5000, 1e300, float("nan"), float("inf"), True, b"x", ["x"], [],
    ["\ud800"], [7], [None], {"a": 1}, {1, 2}, object(), iter("ab"), print, ("a", 2),
]  # fmt: skip
NO_NAMES = [
    "", " ", "\0", "a\0b", "~\0", "\ud800", "a\udc80b", "x" * 10**6, "./" + "x" * 10**6, "x/" + "y" * 10**6, "[", "*/*",
    "..", "../..", "/", "/dev/zero", "/proc/self/mem", "a\nb/c", "-", "--help", "9" * 10**5, "cuda:" + "9" * 99,
]  # fmt: skip
TEXTS = [*NO_NAMES, "😀", "1e400", "9" * 400 + "GiB"]
PATHS = [Path("a\0b"), Path("\ud800"), Path("x" * 10**5), Path("/dev/null"), Path("/proc")]
SETTINGS = sorted(LoadSettings.model_fields)


def is_planned(source, **settings):
    """Whether there is a plan; otherwise the error is one of ours, and short."""
    values = {"dtype": "float32", "device": "cpu", "page_size": 8, "kv_cache_memory": "4MiB", **settings}
    if "devices" in settings:
        del values["device"]
    message = ""
    try:
        registry.plan(source, **values)
    except PipezooError as error:
        message = str(error)
    assert len(message.encode(errors="surrogatepass")) < 1000
    return not message


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_any_kind(tiny_gguf, name, offline):
    for value in [*OF_OTHER_KINDS, *TEXTS, *PATHS]:
        is_planned(tiny_gguf, **{name: value})
    assert is_planned(tiny_gguf)


def test_a_number_is_as_large_as_something_can_be(tiny_gguf):
    numbers = (
        "data_parallel_degree",
        "max_batch_size",
        "max_batch_tokens",
        "max_length",
        "max_lora_rank",
        "max_num_loras",
    )
    for name in (*numbers, "page_size", "kv_cache_memory", "rank_timeout"):
        for value in (10**19, 10**400, 10**5000, 1e300):
            with pytest.raises(InvalidSettingError):
                registry.plan(tiny_gguf, **{name: value})
        is_planned(tiny_gguf, **{name: 2**31 - 1})


def test_a_model_of_any_name(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in [*OF_OTHER_KINDS, *TEXTS, *PATHS, *(f"pkg:{text}" for text in TEXTS)]:
        assert not is_planned(value)
        with pytest.raises(PipezooError):
            registry.resolve(value)


def test_an_adapter_of_any_name(tiny_gguf, offline):
    for text in TEXTS:
        for path in (text, f"name={text}", f"{text}=name"):
            assert not is_planned(tiny_gguf, lora_paths=[path])


def test_a_plugin_of_any_name(tiny_gguf):
    for value in [*OF_OTHER_KINDS, *TEXTS, *PATHS]:
        with pytest.raises(PluginNotFoundError):
            registry.resolve(tiny_gguf, plugin=value)


def test_a_revision_of_any_name_is_no_path():
    """The Hub's client keeps the commit of a revision in a file of that name: `/dev/zero` would never end."""
    further = ["a/../../b", "a//b", "/etc/hostname", "a/", "a.", "a b", "a^", "@{u}"]
    for value in [*OF_OTHER_KINDS, *NO_NAMES, *PATHS, *further]:
        with pytest.raises(ModelNotFoundError, match="has no revision"):
            download_files("org/model", value, ["*"])
