"""The page's Markdown, in the browser: what is built of a model's text, and that no text does harm or takes long."""

import pytest
from serve_page.fake_server import FakeServer, running

RENDER = """async (text) => {
    const { MarkdownView } = await import(new URL('page/markdown.js', document.baseURI));
    const target = document.createElement('div');
    new MarkdownView(target).show(text);
    for (const node of target.querySelectorAll('[tabindex], [rel]')) {
        for (const name of ['tabindex', 'rel', 'target']) node.removeAttribute(name);
    }
    return target.innerHTML;
}"""


@pytest.fixture(scope="module")
def page(browser):
    fake = FakeServer()
    with running(fake.app()) as port:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        page.close()


@pytest.fixture
def render(page):
    return lambda text: page.evaluate(RENDER, text)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("# A #\n## B\n####### no", "<h3>A</h3><h4>B</h4><p>####### no</p>"),
        ("C#\n#no", "<p>C#<br>#no</p>"),
        ("*a* _b_ **c** __d__ ~~e~~",
         "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <del>e</del></p>"),
        ("***both*** **a *b* c**", "<p><strong><em>both</em></strong> <strong>a <em>b</em> c</strong></p>"),
        ("*a **b***", "<p><em>a <strong>b</strong></em></p>"),
        ("2 * 3 * 4, snake_case_name, a ** b", "<p>2 * 3 * 4, snake_case_name, a ** b</p>"),
        ("*open **and never closed", "<p>*open **and never closed</p>"),
        (r"\*no\* \\ \a", r"<p>*no* \ \a</p>"),
        ("`a *b*` ``c ` d`` ` `` `", "<p><code>a *b*</code> <code>c ` d</code> <code>``</code></p>"),
        ("a ` b", "<p>a ` b</p>"),
        (r"Write \``` to open a block", "<p>Write ``` to open a block</p>"),
        (r"a \`` b", "<p>a `` b</p>"),
        (r"\``` x ``", "<p>`<code>x</code></p>"),
        ("---\n***\n* * *", "<hr><hr><hr>"),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("text:\n1. a\n2) b", "<p>text:</p><ol><li>a</li></ol><ol start=\"2\"><li>b</li></ol>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("1. a\n\n   b\n\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
        ("- a\n\nb", "<ul><li>a</li></ul><p>b</p>"),
        ("In\n1990. A year", "<p>In<br>1990. A year</p>"),
        ("a | b\n--|:-:\n1 | x\\|z | more",
         "<div class=\"table\"><table><thead><tr><th>a</th><th class=\"center\">b</th></tr>"
         "</thead><tbody><tr><td>1</td><td class=\"center\">x|z</td></tr></tbody></table></div>"),
        ("a | b\nno table", "<p>a | b<br>no table</p>"),
        ("[a *b*](https://x.org/p_(q)) <https://y.org>",
         '<p><a href="https://x.org/p_(q)">a <em>b</em></a> <a href="https://y.org/">https://y.org</a></p>'),
        ("See https://x.org/a_b_(c). (https://y.org)",
         '<p>See <a href="https://x.org/a_b_(c)">https://x.org/a_b_(c)</a>. '
         '(<a href="https://y.org/">https://y.org</a>)</p>'),
        ('[t](https://x.org "title") [no](x) [no] (x)', '<p><a href="https://x.org/">t</a> [no](x) [no] (x)</p>'),
        ("a<br>b", "<p>a<br>b</p>"),
    ],
)  # fmt: skip
def test_blocks_and_lines(render, text, html):
    assert render(text) == html


def test_code_is_as_it_was(render, page):
    render_code = "- x\n\n  ```py extra\n  if a:\n\n      <b>*c*</b>\n  ```\n- y"
    assert "<pre><code>if a:\n\n    &lt;b&gt;*c*&lt;/b&gt;</code></pre>" in render(render_code)
    assert "<span>py</span>" in render(render_code)
    assert "<pre><code>open\n``\n</code></pre>" in render("```\nopen\n``\n")
    assert "<pre><code>```\ninner\n```</code></pre>" in render("````\n```\ninner\n```\n````")
    assert "<pre><code>~</code></pre>" in render("~~~\n~\n~~~")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](java\nscript:alert(1))",
        "<javascript:alert(1)>",
        "[x](data:text/html,<script>alert(1)</script>)",
        "![x](javascript:alert(1))",
        "![x](//evil.example/x.png)",
        "[x](/v1/models)",
        '[x](https://a.org/" onclick="alert(1))',
        "`<svg onload=alert(1)>`",
        "```<svg onload=alert(1)>\n</code><script>\n```",
        "| <a href=x> |\n| - |\n| <iframe> |",
    ],
)
def test_no_text_becomes_markup_that_acts(page, text):
    found = page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import(new URL('page/markdown.js', document.baseURI));
            const target = document.createElement('div');
            new MarkdownView(target).show(text);
            return [...target.querySelectorAll('*')].map((node) => [
                node.localName, ...[...node.attributes].map(({ name, value }) => `${name}=${value}`),
            ]);
        }""",
        text,
    )
    names = {name for name, *_ in found}
    assert not names & {"script", "img", "svg", "iframe", "object", "style"} - {"svg"}
    if "svg" in names:  # the symbol of the copy button
        assert "code" in names
    for _, *attributes in found:
        assert not any(attribute.startswith("on") for attribute in attributes)
        for attribute in attributes:
            if attribute.startswith("href="):
                assert attribute.startswith(("href=https://a.org/", "href=#icon-copy"))


PIECES = ["*", "**a", "_a_", "`", "``a", "[", "[a](", "](", "![a](https://x ", "<", "https://x", "\\", "~~", "> ", "- ",
          "1. ", "| a ", "|-", "# ", "```\n", "\n\n", " ",
          "a*", "(", '[a](x "', "- [ ] ", "  - a\n", "\n- a\n", "a\n|-|\n"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long(page, piece):
    """Twice as long a text takes about twice as long, and not four times."""
    seconds = page.evaluate(
        """async (piece) => {
            const { MarkdownView } = await import(new URL('page/markdown.js', document.baseURI));
            const text = piece.repeat(Math.ceil(50_000 / piece.length));
            const begin = performance.now();
            new MarkdownView(document.createElement('div')).show(text);
            return (performance.now() - begin) / 1000;
        }""",
        piece,
    )
    assert seconds < 2


@pytest.mark.slow
def test_a_text_that_grows_ends_up_as_the_whole_one(page):
    """Whatever has been shown of its beginnings."""
    ends = page.evaluate(
        """async ([text, size]) => {
            const { MarkdownView } = await import(new URL('page/markdown.js', document.baseURI));
            const [growing, whole] = [document.createElement('div'), document.createElement('div')];
            const view = new MarkdownView(growing);
            for (let end = 0; end < text.length; end += size) view.show(text.slice(0, end));
            view.show(text);
            new MarkdownView(whole).show(text);
            return [growing.innerHTML, whole.innerHTML];
        }""",
        [
            "# A\n\n- b\n  - c\n\n```py\nd\n\n```\n\n| e | f |\n| - | - |\n| g | h |\n\n> i\n\n**j** [k](https://x.org)\n",
            1,
        ],
    )
    assert ends[0] == ends[1]
