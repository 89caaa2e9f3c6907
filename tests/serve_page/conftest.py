"""One browser for the tests of a module, and a new profile for each."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright
from serve_page.fake_server import FakeServer, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")  # playwright keeps an event loop in this thread, which others could not do with
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def fake_server():
    fake = FakeServer()
    with running(fake.app()) as port:
        fake.port = port
        yield fake


@pytest.fixture
def fake(fake_server):
    fake_server.reset()
    return fake_server


class Visit:
    """A page that is looked at in a browser, and what is done with it.

    Attributes:
        page: playwright's.
        asked: the addresses that it has asked for.
        complaints: what went to the browser's console.
        forgiven: those of them that are no fault.
    """

    def __init__(self, context, url):
        self.page = context.new_page()
        self.asked = []
        self.complaints = []
        self.forgiven = set()
        self.page.set_default_timeout(30_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def send(self, text):
        self.page.locator("#text").fill(text)
        self.page.keyboard.press("Enter")

    def ask(self, text):
        """Sends a message, and returns what was answered."""
        self.send(text)
        self.is_over()
        return self.last()

    def is_over(self):
        self.page.locator("#send").wait_for()

    def last(self):
        return self.page.locator(".message.assistant .body").last.inner_text()

    def messages(self):
        return [text.strip() for text in self.page.locator(".message .body").all_inner_texts()]

    def forgive(self, complaint):
        """Takes a complaint as no fault, however often: a page asks for its state now and then, too."""
        assert complaint in self.complaints
        self.forgiven.add(complaint)

    def focused(self):
        """What has the focus, by its label or id."""
        return self.page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")


@pytest.fixture
def visit(browser, fake):
    """Opens the page of the fake server; afterwards nothing may have been complained of but refusals of requests."""
    contexts, visits = [], []

    def open_page(url=None, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options}))
        visits.append(Visit(contexts[-1], url or fake.url))
        return visits[-1]

    yield open_page
    for each in visits:
        complaints = [text for text in each.complaints if text not in each.forgiven]
        assert [text for text in complaints if "the server responded with a status" not in text] == []
    for context in contexts:
        context.close()
