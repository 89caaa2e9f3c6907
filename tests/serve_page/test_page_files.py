"""The files of the chat page as a server sends them: which, with what in front of them, and that none is missing."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi import FastAPI
from serve_page.fake_server import running

import pipezoo.serve.page
from pipezoo.serve.http.api_keys import APIKeys
from pipezoo.serve.page import PAGE_PATHS, page_router

FOLDER = Path(pipezoo.serve.page.__file__).parent / "static"


@pytest.fixture(scope="module")
def ask():
    """Asks an app that has API keys for a path, and returns status, headers and content."""
    app = FastAPI()
    app.include_router(page_router())
    app.get("/v1/models")(lambda: {"data": []})
    app.add_middleware(APIKeys, keys=["sesame-sesame"])
    with running(app) as port:

        def ask(path, **headers):
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, response.headers, response.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.headers, error.read()

        yield ask


def test_its_files_need_no_key_and_all_else_does(ask):
    assert {"/", "/page/main.js", "/page/theme.css", "/page/icon.svg"} <= PAGE_PATHS
    for path in PAGE_PATHS:
        status, headers, content = ask(path)
        assert status == 200
        assert content == (FOLDER / ("index.html" if path == "/" else path.removeprefix("/page/"))).read_bytes()
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    others = [
        "/v1/models",
        "/page/",
        "/page",
        "/page/../v1/models",
        "/page/..%2froutes.py",
        "/page/index.html",
        "//",
        "/nothing",
    ]
    for path in others:
        assert ask(path)[0] == 401, path


def test_what_a_browser_has_is_not_sent_again(ask):
    _, headers, content = ask("/page/main.js")
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache"
    known = {"If-None-Match": f'"other", W/{headers["ETag"]}'}
    status, again, nothing = ask("/page/main.js", **known)
    assert (status, nothing, again["ETag"]) == (304, b"", headers["ETag"])
    assert ask("/page/main.js", **{"If-None-Match": '"other"'})[2] == content


def test_every_file_is_used_and_there():
    used, found = set(), {"index.html"}
    while found - used:
        name = min(found - used)
        used.add(name)
        text = (FOLDER / name).read_text()
        found |= set(re.findall(r'(?:src|href)="page/([^"]+)"', text)) | set(re.findall(r'from "\./([^"]+)"', text))
    assert used == {path.name for path in FOLDER.iterdir()}


def test_ids_and_symbols_are_those_of_the_page():
    page = (FOLDER / "index.html").read_text()
    there = re.findall(r'id="([^"]+)"', page)
    assert len(there) == len(set(there))
    scripts = "".join(path.read_text() for path in FOLDER.glob("*.js"))
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= set(there)
    symbols = {name.removeprefix("icon-") for name in there if name.startswith("icon-")}
    in_page = set(re.findall(r'#icon-(\w+)"', page))
    assert in_page | set(re.findall(r'icon(?:Button)?\("(\w+)"', scripts)) <= symbols
    assert [name for name in symbols - in_page if f'"{name}"' not in scripts] == []


def test_the_files_are_small_and_name_no_other_server():
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert len(text.splitlines()) < 300, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=", text), path.name
        addresses = set(re.findall(r"https?://[\w.]+", text))
        assert addresses <= {"http://www.w3.org", "https://html.spec.whatwg.org"}, path.name  # names, and sources
