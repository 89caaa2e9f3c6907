"""Finding a model's files: on a stand-in of the Hub, on disk, and in an installed package.

The Hub's client reads its settings when it is imported, so that each Hub test runs it in a process of its own.
"""

import json
import os
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from registry.hub_stand_in import Repository, serving

import pipezoo_core.errors
from pipezoo.files.hub import ModelSource, download, locate, read_config
from pipezoo_core.errors import (
    CorruptCheckpointError,
    DownloadError,
    GatedModelError,
    HubUnreachableError,
    InvalidSettingError,
    MissingShardError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    UnsupportedCheckpointError,
)

pytestmark = pytest.mark.slow

CONFIG = b'{"model_type": "llama"}'
SINGLE = {"config.json": CONFIG, "model.safetensors": b"weights", "tokenizer.json": b"{}"}
SHARDED = {  # no two with the same bytes: the client would download them once
    "config.json": CONFIG,
    "generation_config.json": b"{} ",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "spiece.model": b"pieces",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}   ",
}
UNWANTED = {
    "README.md": b"x",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"again",
    "consolidated.00.pth": b"pickle",
    "modeling_llama.py": b"code",
    "onnx/config.json": b"{}",
    "onnx/model.safetensors": b"x",
    "training_args.bin": b"pickle",
}

PROGRAM = """
import json, sys
from pipezoo.files.hub import download, locate
from pipezoo_core.errors import PipezooError
source, revision, depth, files = json.loads(sys.argv[1])
try:
    found = locate(source, revision=revision)
    if depth == "download":
        found = download(found, files)
    answer = {"name": found.name, "path": str(found.path), "commit": found.commit}
except PipezooError as error:
    answer = {"error": type(error).__name__, "message": str(error), "cause": type(error.__cause__).__name__}
print(json.dumps(answer))
"""


@pytest.fixture
def hub():
    with serving() as stand_in:
        yield stand_in


@pytest.fixture
def ask(hub, tmp_path):
    """Returns a function that locates a model in a process of its own, and downloads it unless told otherwise."""

    def ask(source, revision=None, *, depth="download", files=(), preexec=None, **settings):
        environment = {**hub.client_environment(tmp_path / "cache"), **settings}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps([source, revision, depth, files])]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path, preexec_fn=preexec
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            raise getattr(pipezoo_core.errors, answer["error"])(answer["message"], found=answer["cause"])
        return ModelSource(answer["name"], Path(answer["path"]), answer["commit"])

    return ask


def test_files_that_the_plugin_asks_for(hub, ask):
    others = {"qwen.tiktoken": b"words", "other.tiktoken": b"more words", "deep/qwen.tiktoken": b"deep"}
    hub.repositories["org/tiny"] = Repository({**SINGLE, **UNWANTED, **others})
    ask("org/tiny", files=["qwen.*"])
    assert hub.downloads() == sorted([*SINGLE, "qwen.tiktoken"])


LOAD = """
from pipezoo import registry
llm = registry.load("org/tiny", dtype="float32", device="cpu", kv_cache_memory="4MiB")
print(llm.generate("hello", max_new_tokens=8, temperature=0.0, ignore_eos=True)[0].tokens)
"""


def test_load_from_the_hub_answers_as_from_the_folder(hub, tiny_folder, tmp_path):
    hub.repositories["org/tiny"] = Repository({path.name: path.read_bytes() for path in tiny_folder.iterdir()})
    environment = hub.client_environment(tmp_path / "cache")
    answers = []
    for program in (LOAD, LOAD, LOAD.replace("org/tiny", str(tiny_folder))):
        command = [sys.executable, "-c", program]
        answers.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        environment["HF_HUB_OFFLINE"] = "1"  # the second time from the cache
    assert answers[0] == answers[1] == answers[2] != ""


def names(source):
    return sorted(path.name for path in source.path.iterdir())


def test_only_the_config_is_fetched_at_first(hub, ask):
    hub.repositories["org/model"] = Repository({**SHARDED, **UNWANTED})
    source = ask("org/model", depth="locate")
    assert source.name == "org/model"
    assert source.path.name == source.commit == hub.repositories["org/model"].commit("main")
    assert names(source) == hub.downloads() == ["config.json", "generation_config.json"]
    assert read_config(source.path) == {"model_type": "llama"}


def test_everything_is_fetched_by_an_allow_list(hub, ask):
    hub.repositories["org/model"] = Repository({**SHARDED, **UNWANTED})
    source = ask("org/model")
    assert names(source) == hub.downloads() == sorted(SHARDED)
    assert not hub.asked() & set(UNWANTED)
    assert (source.path / "model-00002-of-00002.safetensors").read_bytes() == b"two"


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, ask):
    older = {**SINGLE, "model.safetensors": b"older"}
    hub.repositories["org/model"] = Repository(SINGLE, revisions={"v1": older, "refs/pr/2": SHARDED})
    commit = hub.repositories["org/model"].commit("v1")
    for revision in ("v1", commit):
        source = ask("org/model", revision)
        assert source.commit == commit
        assert (source.path / "model.safetensors").read_bytes() == b"older"
    assert names(ask("org/model", "refs/pr/2")) == sorted(SHARDED)
    assert (ask("org/model").path / "model.safetensors").read_bytes() == b"weights"


def test_what_is_cached_is_not_downloaded_again(hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE)
    first = ask("org/model")
    hub.requests.clear()
    assert ask("org/model") == first
    assert hub.downloads() == []


@pytest.mark.parametrize(
    "away", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "unreachable"]
)
def test_a_cached_model_needs_no_connection(hub, ask, away):
    hub.repositories["org/model"] = Repository(SHARDED, revisions={"v1": SINGLE})
    first, tagged = ask("org/model"), ask("org/model", "v1")
    hub.requests.clear()
    assert ask("org/model", **away) == first
    assert ask("org/model", "v1", **away) == tagged
    assert hub.requests == []


def test_offline_without_the_files_says_how_to_get_them(hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE)
    with pytest.raises(
        HubUnreachableError, match=r"'org/model' is not .* cached.*HF_HUB_OFFLINE.*Load it once without"
    ):
        ask("org/model", HF_HUB_OFFLINE="1")
    assert hub.requests == []


def test_offline_with_only_the_config_is_not_enough(hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE)
    source = ask("org/model", depth="locate")
    assert ask("org/model", depth="locate", HF_HUB_OFFLINE="1") == source
    with pytest.raises(HubUnreachableError, match="not completely cached"):
        ask("org/model", HF_HUB_OFFLINE="1")


def test_no_connection_says_so(ask):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(HubUnreachableError, match=r"cannot be reached.*Check the connection"):
            ask("org/model", HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_an_outage_of_the_hub_is_no_missing_model(hub, ask):
    hub.outage = True
    with pytest.raises(HubUnreachableError, match="503"):
        ask("org/model")


def test_a_missing_repository_is_not_found(ask):
    with pytest.raises(ModelNotFoundError, match=r"no repository 'org/modle', or it is private\. Check the spelling"):
        ask("org/modle")


def test_a_missing_revision_is_not_found(hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE)
    with pytest.raises(ModelNotFoundError, match=r"'org/model' has no revision 'v9' \(allowed: a branch, a tag"):
        ask("org/model", "v9")


def test_a_gated_repository_says_how_to_get_in(hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE, gated=True)
    with pytest.raises(GatedModelError, match=r"'org/model' is gated.*Ask for access.*hf auth login"):
        ask("org/model")


def test_pickle_weights_are_refused_and_never_asked_for(hub, ask):
    files = {"config.json": CONFIG, "pytorch_model.bin": b"pickle", "tokenizer.json": b"{}"}
    hub.repositories["org/model"] = Repository(files)
    with pytest.raises(UnsafeCheckpointError, match=r"only pickle weights.*found: pytorch_model.bin"):
        ask("org/model")
    assert "pytorch_model.bin" not in hub.asked()


@pytest.mark.parametrize("name", ["model.Q4_0.gguf", "Model.Q4_0.GGUF"])
@pytest.mark.parametrize("more", [{}, {"config.json": CONFIG}], ids=["alone", "with a config"])
def test_a_single_gguf_file_is_taken(hub, ask, more, name):
    hub.repositories["org/model"] = Repository({"README.md": b"x", name: b"GGUF", **more})
    source = ask("org/model")
    assert source.path.name == name
    assert source.path.read_bytes() == b"GGUF"
    assert ask("org/model", HF_HUB_OFFLINE="1") == source


@pytest.mark.parametrize("more", [{}, {"config.json": CONFIG}], ids=["alone", "with a config"])
def test_several_gguf_files_are_listed(hub, ask, more):
    hub.repositories["org/model"] = Repository({"a.Q4_0.gguf": b"GGUF", "a.Q8_0.gguf": b"GGUF", **more})
    with pytest.raises(UnsupportedCheckpointError, match=r"found: a\.Q4_0\.gguf, a\.Q8_0\.gguf\)\. Download one"):
        ask("org/model")
    assert not [name for name in hub.asked() if name.endswith(".gguf")]


def test_a_repository_without_weights_says_what_it_has(hub, ask):
    hub.repositories["org/model"] = Repository({"config.json": CONFIG, "flax_model.msgpack": b"x"})
    with pytest.raises(UnsupportedCheckpointError, match=r"found: config.json, flax_model.msgpack"):
        ask("org/model")


PAGE = b"<!DOCTYPE html><html><body>Please log in to the network</body></html>"


@pytest.mark.parametrize("gated", ["all", "files", "api"])
def test_a_page_of_the_network_is_no_answer_of_the_hub(hub, ask, gated):
    hub.repositories["org/model"] = Repository(SINGLE)
    hub.gate, hub.gated = PAGE, gated
    with pytest.raises((HubUnreachableError, DownloadError), match="'org/model'"):
        ask("org/model")
    hub.gate = None
    assert names(ask("org/model")) == sorted(SINGLE)  # nothing of the page is in the cache


@pytest.mark.parametrize("gated", ["all", "files", "api"])
def test_a_cached_model_needs_no_login_to_the_network(hub, ask, gated):
    hub.repositories["org/model"] = Repository(SHARDED)
    first = ask("org/model")
    hub.gate, hub.gated = PAGE, gated
    assert ask("org/model") == first


@pytest.mark.parametrize("wrong", ["cut", "understated"])
def test_a_file_that_does_not_arrive_whole(hub, ask, wrong):
    files = {**SINGLE, "model.safetensors": b"weights" * 1000}
    hub.repositories["org/model"] = Repository(files)
    source = ask("org/model", depth="locate")
    hub.cut, hub.understated = (3000, False) if wrong == "cut" else (None, True)
    with pytest.raises((HubUnreachableError, DownloadError), match="'org/model'"):
        ask("org/model")
    hub.cut, hub.understated = None, False
    whole = ask("org/model")
    assert whole == source
    assert (whole.path / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_cache_that_cannot_be_made(hub, ask, tmp_path):
    (tmp_path / "file").touch()
    hub.repositories["org/model"] = Repository(SINGLE)
    with pytest.raises(DownloadError, match=r"'org/model' cannot be stored.*set HF_HOME"):
        ask("org/model", HF_HOME=str(tmp_path / "file" / "cache"))


def test_a_disk_that_is_full(hub, ask):
    """A limit to the size of files stands for it: the system refuses to write on."""
    hub.repositories["org/model"] = Repository({**SINGLE, "model.safetensors": b"w" * 10**6})
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10**5, 10**5))
    with pytest.raises(DownloadError, match=r"'org/model' cannot be stored.*Free space"):
        ask("org/model", preexec=limit)
    assert len((ask("org/model").path / "model.safetensors").read_bytes()) == 10**6


def index_of(*names):
    return json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}}).encode()


INDEX = "model.safetensors.index.json"
OTHER_NAMES = ("weights[1]-of-2.safetensors", "weights[2]-of-2.safetensors")


def test_the_index_names_the_weights_whatever_they_are_called(hub, ask):
    files = {"config.json": CONFIG, INDEX: index_of(*OTHER_NAMES), **{name: name.encode() for name in OTHER_NAMES}}
    hub.repositories["org/model"] = Repository({**files, **UNWANTED, "weights1-of-2.safetensors": b"another"})
    source = ask("org/model")
    assert names(source) == sorted(files)
    assert (source.path / OTHER_NAMES[1]).read_bytes() == OTHER_NAMES[1].encode()
    assert ask("org/model", HF_HUB_OFFLINE="1") == source


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (PAGE, CorruptCheckpointError),
        (b"{}", CorruptCheckpointError),
        (index_of("../../secret.safetensors"), UnsafeCheckpointError),
        (index_of("/etc/passwd"), UnsafeCheckpointError),
        (index_of("pytorch_model.bin"), UnsafeCheckpointError),
    ],
)
def test_an_index_that_cannot_be_followed(hub, ask, index, error):
    hub.repositories["org/model"] = Repository({"config.json": CONFIG, INDEX: index, **UNWANTED})
    with pytest.raises(error):
        ask("org/model")
    assert not hub.asked() & set(UNWANTED)


PARTS = {f"m-Q4_0-0000{number}-of-00003.gguf": b"GGUF" + bytes([number]) for number in (1, 2, 3)}


@pytest.mark.parametrize("more", [{}, {"config.json": CONFIG}], ids=["alone", "with a config"])
def test_all_parts_of_a_gguf_model_are_fetched(hub, ask, more):
    hub.repositories["org/model"] = Repository({"README.md": b"x", **PARTS, **more})
    source = ask("org/model")
    assert source.path.name == min(PARTS)
    assert names(ModelSource("", source.path.parent)) == sorted([*PARTS, *more])
    assert [(source.path.parent / name).read_bytes() for name in PARTS] == list(PARTS.values())
    assert ask("org/model", HF_HUB_OFFLINE="1") == source


def test_parts_of_two_gguf_models_are_listed(hub, ask):
    others = {name.replace("Q4_0", "Q8_0"): data + b"8" for name, data in PARTS.items()}
    hub.repositories["org/model"] = Repository({**PARTS, **others})
    with pytest.raises(UnsupportedCheckpointError, match="several GGUF files"):
        ask("org/model")
    assert not [name for name in hub.asked() if name.endswith(".gguf")]


def test_a_part_that_is_missing_is_named(hub, ask):
    hub.repositories["org/model"] = Repository(dict(list(PARTS.items())[:2]))
    with pytest.raises(MissingShardError, match=r"m-Q4_0-00003-of-00003\.gguf"):
        ask("org/model")
    assert not [name for name in hub.asked() if name.endswith(".gguf")]


@pytest.mark.parametrize("name", ["org/mo--del", "org/model.git", "-org/model"])
def test_a_name_the_hub_cannot_have_is_not_asked_for(hub, ask, name):
    with pytest.raises(ModelNotFoundError, match="neither on disk nor a name on the Hub"):
        ask(name)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "model", "org/mo del", "org", 3, None, b"org/model", ["org/model"]])
def test_a_malformed_name_lists_the_forms(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r'allowed: a Hub id "org/name", a folder, a .gguf file'):
        locate(name)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "https://huggingface.co/org/model",
            "https://huggingface.co/org/model/",
            "http://www.huggingface.co/org/model",
        ),
        "https://hf.co/org/model",
    ],
)
def test_the_address_of_a_page_is_the_name_on_it(address, hub, ask):
    hub.repositories["org/model"] = Repository(SINGLE)
    assert ask(address) == ask("org/model")


def test_a_folder_may_be_called_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "https:/huggingface.co/org/model"
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(CONFIG)
    assert locate("https://huggingface.co/org/model").path.samefile(path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://huggingface.co/org/model/tree/v1", 'Write "org/model", with revision="v1"'),
        ("https://huggingface.co/org/model/blob/main/a.gguf", 'Write "org/model", with revision="main"'),
        ("https://huggingface.co/org", "not the page of a model"),
        ("https://huggingface.co/spaces/org/model", "not the page of a model"),
        ("https://example.com/org/model", "not the page of a model"),
        ("file:///org/model", "not the page of a model"),
    ],
)
def test_other_addresses_are_refused_with_what_to_write(address, message):
    with pytest.raises(ModelNotFoundError, match=message):
        locate(address)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "org" / "model"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def checkpoint(folder):
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").touch()
    return folder


def test_a_folder_is_found_in_every_spelling(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent.parent)
    monkeypatch.setenv("HOME", str(checkpoint.parent.parent))
    for source in (str(checkpoint), checkpoint, "org/model", "./org/model", Path("org/model"), "~/org/model"):
        found = locate(source)
        assert found.path.samefile(checkpoint)
        assert (found.name, found.commit) == (str(source), None)
        assert download(found) is found


@pytest.mark.parametrize("name", ["model.gguf", "Model.GGUF"])
def test_a_gguf_file_is_found_by_its_path_or_alone_in_its_folder(folder, name):
    (folder / name).touch()
    assert locate(str(folder / name)).path == locate(folder).path == folder / name
    (folder / "config.json").write_bytes(CONFIG)
    assert locate(folder).path == folder / name
    (folder / "model.safetensors").touch()
    assert locate(folder).path == folder


def test_several_gguf_files_in_a_folder_are_listed(folder):
    for name in ("b.gguf", "a.gguf"):
        (folder / name).touch()
    with pytest.raises(UnsupportedCheckpointError, match=r"found: a\.gguf, b\.gguf"):
        locate(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("./missing", "/missing/model", "~/missing", "model.gguf", Path("org/missing"), "a/b/c", "org/model/"),
        *("C:\\models\\llama", "org/model.safetensors", "llama/config.json"),
    ],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        locate(name)


def test_a_file_of_another_kind_is_refused(checkpoint):
    with pytest.raises(UnsupportedCheckpointError, match="not a model by itself"):
        locate(str(checkpoint / "model.safetensors"))
    with pytest.raises(UnsupportedCheckpointError, match="not a model by itself"):
        locate(os.devnull)


def test_an_empty_folder_is_no_model(folder):
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        locate(folder)


def test_a_local_model_has_no_revision(checkpoint):
    with pytest.raises(InvalidSettingError, match="revision='v1'"):
        locate(checkpoint, revision="v1")


@pytest.mark.parametrize("files", [["model.gguf"], ["config.json"]])
def test_a_package_with_weights_is_found_without_importing_it(tmp_path, monkeypatch, files):
    package = tmp_path / f"package_with_{files[0].replace('.', '_')}"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError")
    for name in files:
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = locate(f"pkg:{package.name}")
    assert found.path == (package if files == ["config.json"] else package / "model.gguf")
    assert found.name == f"pkg:{package.name}"
    assert package.name not in sys.modules


@pytest.mark.parametrize(
    "name", ["pkg:", "pkg:not_installed_anywhere", "pkg:json.decoder", "pkg:../up", "pkg:__main__"]
)
def test_a_package_that_is_not_installed_is_not_found(name):
    with pytest.raises(ModelNotFoundError, match=r"is installed.*without dots"):
        locate(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfa", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b" " * (8 << 20) + b"{}", "is too large"),
    ],
    ids=["truncated", "no text", "nested", "a list", "large"],
)
def test_a_damaged_config_is_refused(folder, text, message):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CorruptCheckpointError, match=message):
        read_config(folder)


def test_a_missing_config_is_not_found(folder):
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        read_config(folder)


def test_using_local_files_never_imports_the_client_of_the_hub(checkpoint):
    program = (
        f"import sys; from pipezoo.files.hub import locate; locate({str(checkpoint)!r}); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"huggingface_hub", "torch", "transformers"} & set(json.loads(done.stdout.replace("'", '"')))
