"""LoRA adapters that clients load, name and unload, and that another engine has, too."""

import os
import signal

import pytest
from lora.peft_adapters import save_adapter
from server.running_server import TINY, RunningServer
from server.test_disconnects import until

from pipezoo import registry

ASKED = {"prompt": "he says", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.mark.slow
def test_adapters_come_and_go(tiny_reference, tiny_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    save_adapter(tiny_reference, first, seed=1)
    save_adapter(tiny_reference, second, seed=2)
    with registry.load(tiny_folder, **TINY, lora_paths=[f"a={first}", f"b={second}"]) as llm:
        settings = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
        expected = {name: llm.generate("he says", lora=name, **settings)[0].text for name in (None, "a", "b")}
    assert len({*expected.values()}) == 3
    server = RunningServer(tiny_folder, {"lora_paths": [f"a={first}"], "max_num_loras": 2}, enable_adapters=True).wait()
    client = server.client

    def text(**fields):
        return client.post("/v1/completions", json={**ASKED, **fields}).json()["choices"][0]["text"]

    try:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["folder0", "a"]
        assert text() == expected[None]
        assert text(model="a") == expected["a"]
        assert client.post("/v1/completions", json={**ASKED, "model": "b"}).status_code == 404
        loaded = client.post("/v1/load_lora_adapter", json={"lora_name": "b", "lora_path": str(second)})
        assert loaded.json() == {"adapters": ["a", "b"]}
        assert text(model="b") == expected["b"]
        assert client.get("/v1/models/b").json()["parent"] == "folder0"
        for name, path, status in (
            ("b", first, 400),
            ("c", tmp_path / "none", 404),
            ("folder0", first, 400),
            ("a=b", first, 400),
        ):
            body = {"lora_name": name, "lora_path": str(path)}
            assert client.post("/v1/load_lora_adapter", json=body).status_code == status, name
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).json() == {"adapters": ["b"]}
        assert client.post("/v1/completions", json={**ASKED, "model": "a"}).status_code == 404
        assert client.post("/v1/unload_lora_adapter", json={"lora_name": "a"}).status_code == 404
        server.assert_all_free()
        wait = server.await_restart()
        os.kill(server.engine.pid, signal.SIGKILL)
        until(lambda: server.engine.num_deaths == 1)
        wait()
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["folder0", "b"]
        assert text(model="b") == expected["b"]
        assert client.post("/v1/completions", json={**ASKED, "model": "a"}).status_code == 404
        assert 'max_lora="2"' in client.get("/metrics").text
    finally:
        server.close()
