"""What stands in front of all routes: keys, names, limits. No engine is needed for it."""

import asyncio
import json
import re
import socket
import traceback

import httpx
import pytest
from serve_page.fake_server import running

from pipezoo.serve.app import build_app
from pipezoo.serve.engine.client import EngineClient
from pipezoo.serve.engine.messages import Load
from pipezoo.serve.errors import EngineLostError
from pipezoo.serve.http.api_keys import read_api_keys
from pipezoo.serve.http.body_limits import BodyLimits
from pipezoo.serve.http.watched import failure_response
from pipezoo.serve.service import Service
from pipezoo.serve.settings import ServeSettings
from pipezoo_core.errors import InvalidSettingError, PipezooError

KEYS = ("first-secret-key", "second-secret-key")


def app_of(**settings):
    return build_app(Service(ServeSettings(**settings), EngineClient(Load("none", {}), max_queue=0)))


def ask(app, method, path, **options):
    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://127.0.0.1"
        ) as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def test_every_route_but_those_of_probes_needs_a_key():
    app = app_of(api_keys=KEYS, enable_adapters=True)
    routes = [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    assert len(routes) > 10
    for method, path in [*routes, ("get", "/openapi.json"), ("get", "/nothing"), ("options", "/v1/models")]:
        response = ask(app, method, path.replace("{name}", "x"))
        if path in ("/health", "/ready"):
            assert response.status_code == (200 if path == "/health" else 503)
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEYS[0]}", 200),
        (f"bearer {KEYS[1]}", 200),
        (f"Bearer {KEYS[0]}x", 401),
        (f"Bearer {KEYS[0][:-1]}", 401),
        (f"Basic {KEYS[0]}", 401),
        (KEYS[0], 401),
        ("Bearer ", 401),
        ("Bearer \xff\xfe", 401),
    ],
)
def test_keys(header, status):
    app = app_of(api_keys=KEYS)
    headers = {"Authorization": header.encode("latin-1")}
    assert ask(app, "GET", "/version", headers=headers).status_code == status


def test_a_file_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# for the team\nfirst-secret-key\n\n  second-secret-key  \n")
    assert read_api_keys(str(path)) == KEYS
    for text in ("", "# nothing\n", "short\n", "with a space in it\n", "käykäykäy\n", "x" * 2000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InvalidSettingError) as caught:
            read_api_keys(str(path))
        assert not text.strip() or text.startswith("#") or text.strip() not in str(caught.value)
    with pytest.raises(PipezooError):
        read_api_keys(str(tmp_path / "none"))
    assert "secret" not in repr(ServeSettings(api_keys=KEYS))


@pytest.mark.parametrize(
    "keys",
    [("",), ("ok-secret-key", ""), ("secret",), ("secret key of words",), ("secretsécret",), ("secret-secret\n",),
     ("secret-" * 200,), "secret-secret", (b"secret-secret",), ("secret-secret", 12345678)],
)  # fmt: skip
def test_keys_that_open_nothing(keys):
    with pytest.raises(InvalidSettingError, match="'api_keys' is not valid") as caught:
        ServeSettings(api_keys=keys)
    assert "secret" not in "".join(traceback.format_exception(caught.value)).split("ServeSettings(api_keys=keys)")[-1]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("abc-1.2_3", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("<script>", False), ("", False)],
)
def test_request_ids(given, is_kept):
    found = ask(app_of(), "GET", "/version", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (found == given) == is_kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", found)


def test_no_page_may_ask_unless_told_so():
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in ask(app_of(), "OPTIONS", "/v1/completions", headers=asks).headers
    app = app_of(cors_origins=("https://page.example",), api_keys=KEYS)
    response = ask(app, "OPTIONS", "/v1/completions", headers=asks)
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    other = ask(app, "OPTIONS", "/v1/completions", headers={**asks, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    assert ask(app, "POST", "/v1/completions", headers={"Origin": "https://page.example"}).status_code == 401


def test_a_page_that_may_ask_may_send_headers_of_its_client():
    """OpenAI's client for browsers tells its version in headers of its own."""
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang,x-stainless-os"
    response = ask(app_of(cors_origins=("https://page.example",)), "OPTIONS", "/v1/chat/completions", headers=asks)
    assert response.status_code == 200
    allowed = response.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in asks["Access-Control-Request-Headers"].split(","))


def test_a_page_that_may_ask_may_ask_so_whatever_a_route_takes():
    app = app_of(cors_origins=("https://page.example",))
    methods = {method.upper() for paths in app.openapi()["paths"].values() for method in paths} | {"HEAD"}
    for method in methods:
        asks = {"Origin": "https://page.example", "Access-Control-Request-Method": method}
        assert ask(app, "OPTIONS", "/v1/models", headers=asks).status_code == 200, method


def test_nothing_follows_the_head():
    """A body would be taken for the beginning of the next response."""
    with running(app_of()) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        heading = f"HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        connection.sendall(f"HEAD / {heading}\r\nGET /version {heading}Connection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, get, body = received.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert get.startswith(b"HTTP/1.1 200")
    assert "version" in json.loads(body)


def test_head_is_get():
    app = app_of()
    paths = [path.replace("{name}", "x") for path, methods in app.openapi()["paths"].items() if "get" in methods]
    assert {"/health", "/ready", "/metrics", "/v1/models"} <= {*paths}
    for path in [*paths, "/", "/openapi.json", "/nothing"]:
        head, get = (ask(app, method, path) for method in ("HEAD", "GET"))
        assert head.status_code == get.status_code
        assert head.headers["content-type"] == get.headers["content-type"]
    assert ask(app, "HEAD", "/v1/completions").status_code == 405
    assert ask(app_of(api_keys=KEYS), "HEAD", "/version").status_code == 401


def test_before_the_engine_is_ready():
    app = app_of()
    assert ask(app, "GET", "/health").json() == {"status": "loading"}
    assert ask(app, "GET", "/ready").status_code == 503
    response = ask(app, "POST", "/v1/completions", json={"prompt": "x"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert ask(app, "GET", "/v1/models").status_code == 503
    assert "pipezoo" not in ask(app, "GET", "/version").headers.get("server", "")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("[2001:db8::1]:80", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_a_server_of_its_own_machine_has_no_other_name(host, status):
    response = ask(app_of(), "GET", "/version", headers={"Host": host})
    assert response.status_code == status
    assert "x-request-id" in response.headers
    if status == 421:
        assert response.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"api_keys": KEYS}])
def test_one_that_others_reach_or_that_has_keys_may_have_any_name(settings):
    headers = {"Host": "llm.example", "Authorization": f"Bearer {KEYS[0]}"}
    assert ask(app_of(**settings), "GET", "/version", headers=headers).status_code == 200


def test_a_body_that_does_not_go_on():
    app = app_of()
    limited = BodyLimits(app, 100, seconds=0.05)
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"9")],
        "query_string": b"",
        "app": app,
    }
    asyncio.run(limited(scope, receive, send))
    assert sent[0]["status"] == 408


def test_the_interface_is_described():
    described = app_of(enable_adapters=True).openapi()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize", "/ready"):
        assert path in described["paths"]
    body = described["components"]["schemas"]["ChatBody"]
    assert body["additionalProperties"] is False
    assert {"messages", "temperature", "structured_outputs", "chat_template_kwargs"} <= {*body["properties"]}
    responses = described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "4XX", "5XX"} == {*responses}


def test_settings_name_what_is_wrong():
    with pytest.raises(InvalidSettingError, match="Did you mean 'max_queue'"):
        ServeSettings(max_que=3)
    with pytest.raises(InvalidSettingError, match="'on_engine_death'"):
        ServeSettings(on_engine_death="panic")


def test_what_is_lost_may_be_asked_for_again():
    for error, has_moment in ((EngineLostError("the engine's process ended"), True), (RuntimeError("x"), False)):
        assert ("retry-after" in failure_response(error).headers) == has_moment
