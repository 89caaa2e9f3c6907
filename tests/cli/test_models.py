"""`pipezoo models`: what is in a Hub cache, laid out as the Hub's own client does it."""

import json
import os
import re
import shutil

import pytest
from typer.testing import CliRunner

from pipezoo.cli.main import app


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts a folder's files into a cache as a revision of a repository."""
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(folder, repository, commit, kind="models"):
        root = tmp_path / "hub" / f"{kind}--{repository.replace('/', '--')}"
        snapshot = root / "snapshots" / commit
        for part in (root / "blobs", root / "refs", snapshot):
            part.mkdir(parents=True, exist_ok=True)
        (root / "refs" / "main").write_text(commit)
        for number, path in enumerate(sorted(folder.iterdir())):
            shutil.copy(path, root / "blobs" / f"{commit}{number}")
            os.symlink(root / "blobs" / f"{commit}{number}", snapshot / path.name)
        return sum(path.stat().st_size for path in folder.iterdir())

    return add


def models():
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_sizes_and_the_plugins_that_serve(cache, tiny_folder, tmp_path):
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "frobnicate"}))
    size = cache(tiny_folder, "org/tiny", "a" * 40)
    cache(unknown, "org/other", "b" * 40)
    cache(unknown, "org/data", "c" * 40, kind="datasets")
    shown = models()
    assert re.search(rf"org/tiny +│ {size / 2**20:,.1f} MiB │ pipezoo-llama", shown)
    assert re.search(r"org/other +│ 0\.0 MiB +│ none: no plugin for model_type 'frobnicate'", shown)
    assert "org/data" not in shown


def test_each_revision_is_named(cache, tiny_folder):
    for commit in ("a" * 40, "b" * 40):
        cache(tiny_folder, "org/tiny", commit)
    assert f"org/tiny {'a' * 12} " in models()
    assert f"org/tiny {'b' * 12} " in models()


def test_what_is_damaged_is_said(cache, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    cache(damaged, "org/damaged", "a" * 40)
    assert re.search(r"org/damaged .* none: .*config\.json is not JSON", models())


def test_an_empty_cache_says_what_to_type_next(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "nowhere"))
    assert models() == "The Hub's cache holds no models. pipezoo info org/model downloads one.\n"
