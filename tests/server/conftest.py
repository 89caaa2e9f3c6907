import pytest
from server.running_server import TINY, RunningServer

from pipezoo import registry


@pytest.fixture(scope="session")
def shared_server(tiny_gguf):
    server = RunningServer(tiny_gguf, served_model_names=("tiny", "tiny-alias")).wait()
    yield server
    server.close()


@pytest.fixture
def server(shared_server):
    """A server that every test leaves as it was."""
    yield shared_server
    shared_server.assert_all_free()


@pytest.fixture
def client(server):
    return server.client


@pytest.fixture(scope="session")
def llm(tiny_gguf):
    """The same model in this process, which says what the server should."""
    with registry.load(tiny_gguf, **TINY) as pipeline:
        yield pipeline
