"""One list of file names, one rule for names on the Hub."""

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipezoo.files import hub
from pipezoo_core.errors import UnsafeCheckpointError
from pipezoo_core.file_names import TOKENIZER_FILES, is_gguf, is_hub_id, pickles_among
from pipezoo_core.lora import open_adapter
from pipezoo_core.weights import find_safetensors

PICKLES = ["pytorch_model.bin", "consolidated.00.pth", "model.PT", "x.ckpt", "model.pkl", "weights.pickle"]


def the_hubs_client_accepts(text):
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


@pytest.mark.parametrize(
    "text",
    [
        *("org/name", "a/b", "Org_1/name-2.5", "_a/b_", "0/0", "org/x.gi", "a.b/c.d", "a" * 96 + "/" + "b" * 96),
        *("", "name", "org/", "/name", "a/b/c", "org/na me", "-org/name", "org-/name", "org/.name", "org/name."),
        *("org/na--me", "o--rg/name", "org/na..me", "o..g/name", "org/name.git", "org/git", "org/ünicode", "org/n\n"),
        *("a" * 97 + "/b", "b/" + "a" * 97, "https://huggingface.co/org/name", "~/name", "../name", "org\\name"),
    ],
)
def test_a_name_of_the_hub_is_what_its_client_accepts(text):
    assert is_hub_id(text) == the_hubs_client_accepts(text)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_by_every_reader(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert pickles_among([name, "README.md", "model.safetensors", "model.gguf"]) == [name]
    for read in (find_safetensors, lambda folder: open_adapter(str(folder))):
        with pytest.raises(UnsafeCheckpointError, match=name):
            read(tmp_path)


def test_gguf_in_any_spelling():
    assert [is_gguf(name) for name in ("a.gguf", "A.GGUF", "a.gguf.txt", "gguf")] == [True, True, False, False]


def test_the_download_brings_every_file_that_a_tokenizer_is_read_from():
    from fnmatch import fnmatchcase

    assert all(any(fnmatchcase(name, pattern) for pattern in hub.DOWNLOADED) for name in TOKENIZER_FILES)
