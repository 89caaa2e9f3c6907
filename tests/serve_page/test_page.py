"""The chat page, used as people use it, in a browser without a window."""

import json
import time

import pytest
from fastapi import FastAPI
from playwright.sync_api import expect
from serve_page.fake_server import running

expect.set_options(timeout=30_000)

LOADED = "#model option[value=tiny-llama]"


def wait_for(holds):
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def test_a_message_is_sent_and_its_answer_streamed(visit, fake):
    here = visit()
    expect(here.page.locator(LOADED)).to_be_attached()
    here.send("slow and with many words, so that it takes its time")
    here.send("slow")
    assert here.page.locator("#text").input_value() == "slow"  # an answer is coming; this one waits
    here.is_over()
    here.ask("hello")
    assert here.messages()[-2:] == ["hello", "You said: hello"]
    assert fake.requests[-1]["messages"] == [
        {"role": "user", "content": "slow and with many words, so that it takes its time"},
        {"role": "assistant", "content": "You said: slow and with many words, so that it takes its time "},
        {"role": "user", "content": "hello"},
    ]
    assert fake.requests[-1]["model"] == "tiny-llama"
    assert fake.requests[-1]["stream"] is True
    assert fake.requests[-1]["stream_options"] == {"include_usage": True}
    assert set(fake.requests[-1]) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.slow
def test_pieces_are_shown_when_they_come(visit, fake):
    here = visit()
    here.send("endless")
    seen = set()
    wait_for(
        lambda: seen.add(here.last() if here.page.locator(".message.assistant .body").count() else "") or len(seen) > 4
    )
    assert all(text in "word " * 1000 for text in seen)
    here.page.locator("#stop").click()
    here.is_over()


@pytest.mark.slow
def test_stop_ends_the_answer_at_the_server_and_keeps_what_is_there(visit, fake):
    here = visit()
    here.send("endless")
    expect(here.page.locator(".message.assistant .body")).to_contain_text("word word word")
    here.page.locator("#stop").click()
    here.is_over()
    wait_for(lambda: fake.num_gone == 1)
    kept = here.last()
    assert kept.startswith("word word word")
    expect(here.page.locator(".message.assistant .note")).to_contain_text("stopped")
    assert here.focused() == "Message"
    here.ask("hello")
    assert fake.requests[-1]["messages"][1]["content"].strip() == kept.strip()


@pytest.mark.slow
def test_usage_and_speed(visit):
    here = visit()
    here.ask("slow" + " word" * 30)
    about = here.page.locator(".message.assistant .note").inner_text()
    assert about.startswith("33 tokens · ")
    rate = float(about.split(" · ")[1].removesuffix(" tokens/s"))
    assert 5 < rate < 60  # a piece each 20 ms, on a machine that may be busy
    assert "prompt 12" in about


def test_regenerate_replaces_the_last_answer(visit, fake):
    here = visit()
    fake.answers["hello"] = "first"
    here.ask("hello")
    fake.answers["hello"] = "second"
    here.page.get_by_label("Answer again").click()
    expect(here.page.locator(".message.assistant .body")).to_have_text("second")
    here.is_over()
    assert here.messages() == ["hello", "second"]
    assert fake.requests[0] == fake.requests[1]


@pytest.mark.slow
def test_edit_sends_again_and_drops_what_followed(visit, fake):
    here = visit()
    here.ask("one")
    here.ask("two")
    here.page.get_by_label("Edit and send again").first.click()
    field = here.page.get_by_label("Edit the message")
    assert field.input_value() == "one"
    field.press("Escape")
    assert here.messages() == ["one", "You said: one", "two", "You said: two"]
    here.page.get_by_label("Edit and send again").first.click()
    field.fill("three")
    field.press("Enter")
    expect(here.page.locator(".message")).to_have_count(2)
    here.is_over()
    assert here.messages() == ["three", "You said: three"]
    assert fake.requests[-1]["messages"] == [{"role": "user", "content": "three"}]


@pytest.mark.slow
def test_an_editor_stays_open_while_an_answer_comes_and_another_tab_saves(visit, fake):
    here = visit()
    here.ask("one")
    fake.is_held = True
    here.send("held")
    here.page.get_by_label("Edit and send again").first.click()
    here.page.keyboard.type(" more")
    fake.is_held = False
    here.is_over()
    there = here.page.context.new_page()
    there.goto(fake.url)
    there.locator("#text").fill("two")
    there.keyboard.press("Enter")
    expect(here.page.locator(".conversation")).to_have_count(2)
    assert here.focused() == "Edit the message"
    here.page.keyboard.type("!")
    assert here.page.get_by_label("Edit the message").input_value() == "one more!"
    here.page.locator("#text").press("ArrowUp")
    expect(here.page.get_by_label("Edit the message")).to_have_count(2)
    here.page.locator("#text").press("ArrowUp")
    here.page.keyboard.press("Escape")
    expect(here.page.get_by_label("Edit the message")).to_have_count(1)


@pytest.mark.slow
def test_a_new_name_is_not_taken_before_its_end(visit, fake):
    here = visit()
    here.ask("one")
    fake.is_held = True
    here.send("held")
    here.page.get_by_label("Rename").click()
    here.page.keyboard.type("mi")
    fake.is_held = False
    here.is_over()
    assert here.focused() == "New name"
    here.page.keyboard.type("ne")
    here.page.keyboard.press("Enter")
    expect(here.page.locator(".conversation .open")).to_have_text(["mine"])
    here.page.get_by_label("Rename").click()
    here.page.keyboard.type("yours")
    here.page.keyboard.press("Alt+N")
    expect(here.page.locator(".conversation .open")).to_have_text(["yours"])


@pytest.mark.slow
def test_an_edited_question_does_not_get_the_old_answer(visit, fake):
    here = visit()
    here.ask("held")
    fake.is_held = True
    here.page.keyboard.press("Alt+R")
    wait_for(lambda: len(fake.requests) == 2)
    here.page.get_by_label("Edit and send again").click()
    here.page.get_by_label("Edit the message").fill("held too")
    here.page.keyboard.press("Enter")
    wait_for(lambda: len(fake.requests) == 3)
    fake.is_held = False
    here.is_over()
    assert here.messages() == ["held too", "You said: held too"]


@pytest.mark.slow
def test_a_page_that_was_opened_too_early_finds_the_model_later(visit, fake):
    fake.is_loading = True
    here = visit()
    expect(here.page.get_by_role("alert")).to_contain_text("The model is being loaded.")
    fake.is_loading = False
    assert here.ask("hello") == "You said: hello"
    assert "model" not in fake.requests[0]
    expect(here.page.locator(LOADED)).to_be_attached()
    here.ask("hello")
    assert fake.requests[1]["model"] == "tiny-llama"


@pytest.mark.slow
def test_a_key_that_cannot_be_sent_is_not_taken(visit, fake):
    fake.key = "sesame"
    here = visit()
    field = here.page.locator("#key-dialog [name=key]")
    field.fill("sésame")
    field.press("Enter")
    assert here.page.locator("#key-dialog :invalid").count() > 0
    field.fill(" sesame ")  # as it is copied
    field.press("Enter")
    expect(here.page.locator(LOADED)).to_be_attached()
    here.page.keyboard.press("Alt+S")
    here.page.locator("#settings [name=key]").fill("sésame")
    here.page.get_by_label("Remember it in this browser").first.check()
    here.page.keyboard.press("Escape")
    assert here.ask("hello") == "You said: hello"


SEND_KEY = """([selector, options]) => document.querySelector(selector).dispatchEvent(
    new KeyboardEvent("keydown", { bubbles: true, cancelable: true, ...options }))"""


@pytest.mark.slow
def test_enter_that_ends_an_input_method_sends_nothing(visit, fake):
    here = visit()
    here.ask("one")
    enter = {"key": "Enter", "keyCode": 229}  # in Safari, composition is over by then
    here.page.locator("#text").fill("two")
    assert here.page.evaluate(SEND_KEY, ["#text", enter])
    here.page.get_by_label("Edit and send again").click()
    assert here.page.evaluate(SEND_KEY, [".message textarea", enter])
    here.page.get_by_label("Rename").click()
    assert here.page.evaluate(SEND_KEY, [".conversation input", enter])
    assert len(fake.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("key", ["ß", "Dead"])
def test_what_option_types_on_a_mac_is_typed(visit, key):
    here = visit()
    pressed = {"key": key, "code": "KeyS", "altKey": True}
    here.page.add_init_script("Object.defineProperty(navigator, 'platform', { get: () => 'MacIntel' })")
    here.page.reload()
    assert here.page.evaluate(SEND_KEY, ["#text", pressed])
    expect(here.page.locator("#settings")).to_be_hidden()
    assert not here.page.evaluate(SEND_KEY, ["body", pressed])
    expect(here.page.locator("#settings")).to_be_visible()


@pytest.mark.slow
def test_settings_reach_the_request_and_new_conversations(visit, fake):
    here = visit()
    here.page.get_by_role("button", name="Settings", exact=True).click()
    values = {"temperature": 0.5, "max_completion_tokens": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 0}
    penalties = {"repetition_penalty": 1.1, "frequency_penalty": -0.5}
    for name, value in {**values, **penalties}.items():
        here.page.locator(f"#settings [name={name}]").fill(str(value))
    here.page.locator("#settings [name=top_p]").fill("7")  # no probability: the last that was one stays
    here.page.locator("#settings [name=stop]").fill("END\n  two\n")
    here.page.locator("#settings [name=system]").fill("be brief")
    here.page.keyboard.press("Escape")
    expect(here.page.locator("#in-force")).to_contain_text("temperature")
    expected = {**values, **penalties, "stop": ["END", "  two"]}
    here.ask("hello")
    here.page.reload()
    here.ask("hello")  # a new conversation begins with them
    for request in fake.requests:
        assert request["messages"][0] == {"role": "system", "content": "be brief"}
        assert {name: request[name] for name in expected} == expected
    here.page.get_by_role("button", name="Settings", exact=True).click()
    here.page.get_by_role("button", name="Empty all").click()
    here.page.get_by_role("button", name="Done").click()
    here.ask("hello")
    assert not set(fake.requests[-1]) & set(expected)
    assert fake.requests[-1]["messages"][0]["role"] == "user"


@pytest.mark.slow
def test_models_and_their_adapters(visit, fake):
    here = visit()
    expect(here.page.get_by_label("Adapter").locator("option")).to_have_text(["No adapter", "pirate"])
    here.page.get_by_label("Adapter").select_option("pirate")
    here.ask("hello")
    here.page.get_by_label("Model", exact=True).select_option("tiny-qwen")
    expect(here.page.get_by_label("Adapter")).to_be_hidden()
    here.ask("hello")
    assert [request["model"] for request in fake.requests] == ["pirate", "tiny-qwen"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("refuse", "'temperature' is not valid (found: 9; allowed: 0 to 2)"),
        ("fail", "The engine has died."),
        ("break", "The answer broke off"),
        ("no json", "The server has answered with status 502."),
    ],
)
def test_failures_are_said_and_can_be_tried_again(visit, fake, text, said):
    here = visit()
    here.send(text)
    expect(here.page.get_by_role("alert")).to_contain_text(said)
    here.is_over()
    here.page.get_by_role("button", name="Try again").click()
    wait_for(lambda: len(fake.requests) == 2)
    assert fake.requests[0] == fake.requests[1]
    expect(here.page.get_by_role("alert")).to_contain_text(said)


@pytest.mark.slow
def test_a_failed_regeneration_keeps_the_answer(visit, fake):
    here = visit()
    here.ask("hello")
    fake.key = "no longer open to all"
    here.page.keyboard.press("Alt+R")
    expect(here.page.locator("#key-dialog")).to_be_visible()
    assert here.messages() == ["hello", "You said: hello"]


@pytest.mark.slow
def test_a_server_that_is_gone_is_said(visit, browser):
    here = visit()
    here.page.context.set_offline(True)
    here.send("hello")
    expect(here.page.get_by_role("alert")).to_contain_text("The server cannot be reached")
    here.page.context.set_offline(False)
    here.page.get_by_role("button", name="Try again").click()
    expect(here.page.locator(".message.assistant .body")).to_have_text("You said: hello")
    here.forgive("Failed to load resource: net::ERR_INTERNET_DISCONNECTED")


@pytest.mark.slow
def test_an_api_key_is_asked_for_where_the_server_wants_one(visit, fake):
    fake.key = "sesame"
    here = visit()
    field = here.page.locator("#key-dialog [name=key]")
    field.fill("wrong")
    field.press("Enter")
    expect(here.page.locator("#key-note")).to_contain_text("not one of its keys")
    field.fill("sesame")
    field.press("Enter")
    expect(here.page.locator(LOADED)).to_be_attached()
    assert here.ask("hello") == "You said: hello"
    here.page.reload()
    expect(here.page.locator(LOADED)).to_be_attached()
    assert "sesame" not in here.page.evaluate("JSON.stringify(localStorage)")


@pytest.mark.slow
def test_conversations_are_kept_renamed_exported_and_deleted(visit, fake):
    here = visit()
    here.ask("first question\nwith a second line")
    here.page.get_by_role("button", name="New conversation").click()
    here.ask("other")
    here.page.reload()
    titles = here.page.locator(".conversation .open")
    expect(titles).to_have_text(["other", "first question"])
    titles.nth(1).click()
    assert here.messages()[0] == "first question\nwith a second line"
    here.page.get_by_label("Rename").click()
    here.page.get_by_label("New name").fill("mine")
    here.page.keyboard.press("Enter")
    expect(titles).to_have_text(["other", "mine"])
    with here.page.expect_download() as download:
        here.page.get_by_label("Export as JSON").click()
    assert download.value.suggested_filename == "mine.json"
    exported = json.loads(download.value.path().read_text())
    assert exported["messages"] == [
        {"role": "user", "content": "first question\nwith a second line"},
        {"role": "assistant", "content": "You said: first question\nwith a second line "},
    ]
    here.page.get_by_label("Delete", exact=True).click()
    here.page.get_by_role("button", name="Keep it").click()
    expect(titles).to_have_count(2)
    here.page.get_by_label("Delete", exact=True).click()
    here.page.locator("#delete-dialog [value=delete]").click()
    expect(titles).to_have_text(["other"])
    here.page.reload()
    expect(titles).to_have_text(["other"])


@pytest.mark.slow
def test_an_answer_goes_on_while_another_conversation_is_looked_at(visit, fake):
    here = visit()
    here.send("endless")
    expect(here.page.locator(".message.assistant .body")).to_contain_text("word")
    here.page.keyboard.press("Alt+N")
    assert here.ask("hello") == "You said: hello"
    here.page.get_by_label("endless, answering").click()
    expect(here.page.locator(".message.assistant .body")).to_contain_text("word")
    here.page.keyboard.press("Escape")
    here.is_over()
    here.page.get_by_role("button", name="hello").click()
    assert here.messages() == ["hello", "You said: hello"]


@pytest.mark.slow
def test_a_question_without_an_answer_can_be_answered_later(visit):
    here = visit()
    here.send("silent")
    here.page.reload()
    here.page.get_by_role("button", name="silent").click()
    here.page.get_by_role("button", name="Answer", exact=True).click()
    expect(here.page.locator(".message.assistant .body")).to_have_text("You said: silent")


@pytest.mark.slow
def test_thoughts_are_apart_from_the_answer(visit, fake):
    here = visit()
    assert here.ask("think") == "You said: think"
    thoughts = here.page.locator(".thoughts")
    thoughts.locator("summary").click()
    expect(thoughts.locator("div")).to_have_text("Let me see.")
    here.ask("hello")
    assert fake.requests[-1]["messages"][1]["content"] == "You said: think "


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_without_scrolling_sideways_in_both_colors(visit, fake, width, scheme):
    fake.answers["hello"] = (
        f"# Title\n\n{'x' * 300}\n\n```\n{'y' * 300}\n```\n\n| a | b |\n| - | - |\n| {'z' * 200} | w |\n"
    )
    here = visit(viewport={"width": width, "height": 740}, color_scheme=scheme)
    here.ask("hello")
    here.ask("w" * 300)
    for key in ("", "Alt+S", "Escape", "Alt+K", "Escape", "Alt+L"):
        if key:
            here.page.keyboard.press(key)
        assert here.page.evaluate("document.documentElement.scrollWidth") == width
        for part in ("#scroller", ".foot", ".main > .bar", "dialog[open]"):
            sizes = f"[...document.querySelectorAll('{part}')].every(part => part.scrollWidth <= part.clientWidth)"
            assert here.page.evaluate(sizes), (part, key)
    assert (
        here.page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(255, 255, 255)",
            "dark": "rgb(27, 27, 26)",
        }[scheme]
    )


@pytest.mark.slow
def test_the_switch_of_colors_holds_and_gives_way_to_the_system(visit):
    here = visit(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    here.page.get_by_label("Dark colors").click()
    assert here.page.evaluate(ground) == "rgb(27, 27, 26)"
    here.page.reload()
    assert here.page.evaluate(ground) == "rgb(27, 27, 26)"
    here.page.get_by_label("Light colors").click()
    here.page.emulate_media(color_scheme="dark")
    assert here.page.evaluate(ground) == "rgb(27, 27, 26)"


PAIRS = [("text", "ground"), ("text", "side"), ("text", "mine"), ("text", "code"), ("muted", "ground"),
         ("muted", "side"), ("muted", "mine"), ("muted", "code"), ("muted", "raised"), ("accent", "ground"),
         ("accent", "mine"), ("on-accent", "accent"), ("failure", "failure-ground")]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(visit, scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for the borders of fields."""
    page = visit(color_scheme=scheme).page

    def luminance(name):
        probe = f"document.body.style.color = 'var(--{name})', getComputedStyle(document.body).color"
        parts = [int(part) / 255 for part in page.evaluate(probe).removeprefix("rgb(").removesuffix(")").split(",")]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(*names):
        dark, light = sorted(map(luminance, names))
        return (light + 0.05) / (dark + 0.05)

    assert {pair: contrast(*pair) for pair in PAIRS if contrast(*pair) < 4.5} == {}
    assert contrast("field", "ground") >= 3
    assert contrast("field", "raised") >= 3


@pytest.mark.slow
def test_everything_by_keyboard_alone(visit, fake):
    here = visit()
    expect(here.page.locator(LOADED)).to_be_attached()
    press = here.page.keyboard.press
    assert here.focused() == "Message"
    here.page.keyboard.type("first")
    press("Shift+Enter")
    here.page.keyboard.type("second")
    press("Enter")
    here.is_over()
    assert fake.requests[0]["messages"][0]["content"] == "first\nsecond"
    press("ArrowUp")
    assert here.focused() == "Edit the message"
    press("Escape")
    press("Alt+S")
    press("Tab")
    here.page.keyboard.type("0.25")
    press("Escape")
    press("Alt+M")
    here.page.keyboard.type("endless")
    press("Enter")
    expect(here.page.locator(".message.assistant .body").last).to_contain_text("word")
    press("Escape")
    here.is_over()
    assert fake.requests[1]["temperature"] == 0.25
    press("Alt+R")
    wait_for(lambda: len(fake.requests) == 3)
    press("Escape")
    here.is_over()
    press("Alt+L")
    assert here.focused() == "first"
    for label in ("Rename", "Export as JSON", "Delete"):
        press("Tab")
        assert here.focused() == label
    press("Enter")
    press("Tab")
    press("Enter")
    expect(here.page.locator(".conversation")).to_have_count(0)
    assert here.focused() == "Message"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1440])
def test_the_focus_is_seen_wherever_it_goes(visit, width):
    here = visit(viewport={"width": width, "height": 740})
    here.ask("hello")
    here.page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        here.page.keyboard.press("Tab")
        label, is_seen = here.page.evaluate("""(() => {
            const node = document.activeElement;
            if (node === document.body) return ['', true];  // behind the last one
            const style = getComputedStyle(node), box = node.getBoundingClientRect();
            const outlined = style.outlineStyle !== 'none' || node.id === 'text' || node.id === 'scroller';
            const shown = box.width > 0 && box.right > 0 && getComputedStyle(node).visibility === 'visible';
            return [node.getAttribute('aria-label') ?? node.textContent.trim().slice(0, 30), outlined && shown];
        })()""")
        assert is_seen, label
        if not label and seen:
            break
        seen += [label] if label else []
    assert "Message" in seen
    assert "Settings" in seen
    assert seen.index("Message") > seen.index("Settings")


@pytest.mark.slow
def test_every_control_has_a_name(visit):
    here = visit()
    here.ask("```\ncode\n```")
    nameless = here.page.evaluate("""[...document.querySelectorAll('button, input, select, textarea, a[href]')].filter(
        (node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)
    ).map((node) => node.outerHTML)""")
    assert nameless == []


@pytest.mark.slow
def test_the_drawer_of_a_narrow_screen(visit):
    here = visit(viewport={"width": 360, "height": 740})
    here.ask("hello")
    new = here.page.get_by_role("button", name="New conversation")
    expect(new).to_be_hidden()
    here.page.get_by_label("Conversations", exact=True).last.click()
    expect(new).to_be_visible()
    assert here.focused() == "Close the list"
    here.page.keyboard.press("Escape")
    expect(new).to_be_hidden()
    assert here.focused() == "Conversations"


def test_no_other_server_is_asked(visit, fake):
    fake.answers["show"] = "![cat](https://example.com/cat.png) <img src=https://example.com/x> https://example.com"
    here = visit()
    here.ask("show")
    assert {url.split("?")[0].removeprefix(fake.url).split("/")[1] for url in here.asked} == {"", "page", "v1"}
    assert all(url.startswith(fake.url) for url in here.asked)


@pytest.mark.slow
def test_a_proxy_may_have_it_in_a_folder(visit, fake):
    proxy = FastAPI()
    proxy.mount("/llm", fake.app())
    with running(proxy) as port:
        here = visit(f"http://127.0.0.1:{port}/llm/")
        assert here.ask("hello") == "You said: hello"
        assert all(url.startswith(f"http://127.0.0.1:{port}/llm/") for url in here.asked)


@pytest.mark.slow
def test_the_policy_holds_even_if_the_page_had_a_hole(visit, fake):
    here = visit()
    blocked = here.page.evaluate("""async () => {
        const tries = {
            markup: () => { document.body.innerHTML = '<b>x</b>'; },
            code: () => { document.createElement('script').textContent = '1'; },
            elsewhere: () => fetch('https://example.com/'),
        };
        const names = [];
        for (const [name, run] of Object.entries(tries)) {
            try { await run(); } catch { names.push(name); }
        }
        return names;
    }""")
    assert blocked == ["markup", "code", "elsewhere"]
    here.complaints.clear()


@pytest.mark.slow
def test_what_the_storage_has_of_others_is_left_alone(visit, fake):
    here = visit()
    for value in ("no json", "null", "{}", '{"id": "x", "messages": [1]}'):
        here.page.evaluate("value => localStorage.setItem('pipezoo.conversation.x', value)", value)
        here.page.evaluate("value => localStorage.setItem('pipezoo.choices', value)", value)
        here.page.reload()
        expect(here.page.locator(LOADED)).to_be_attached()
        assert here.page.locator(".conversation").count() == 0
    assert here.ask("hello") == "You said: hello"


@pytest.mark.slow
def test_a_full_storage_is_said_and_the_chat_goes_on(visit):
    here = visit()
    here.page.evaluate("localStorage.x = 'x'.repeat(5 * 1024 * 1024 - 1000)")
    lost = here.page.locator("#unstored")
    expect(lost).to_be_hidden()
    assert here.ask("hello " * 200) != ""
    expect(lost).to_be_visible()
    assert here.ask("hello") == "You said: hello"
    expect(here.page.locator(".conversation")).to_have_count(1)
    here.page.get_by_role("button", name="New conversation").click()
    expect(lost).to_be_hidden()
    here.page.get_by_role("button", name="hello hello").click()
    expect(lost).to_be_visible()
    here.page.evaluate("localStorage.removeItem('x')")
    here.ask("hello")
    expect(lost).to_be_hidden()
