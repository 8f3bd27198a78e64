"""The built site in a browser: the home page, the search, one page of the API, a drawn picture.

`make docs` builds it into build/site and runs this with playwright and Debian's Chromium; elsewhere
it is skipped.
"""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
SITE = Path(__file__).parents[2] / "build" / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(not SITE.exists(), reason="make docs has not built the site"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(address):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(base_url=address)
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda reply: reply.status < 400 or wrong.append(reply.url))
        page.on(
            "request", lambda request: request.url.startswith(address) or wrong.append(request.url)
        )
        yield page
        assert wrong == []  # no error, nothing missing, nothing fetched from elsewhere
        browser.close()


def test_home(page):
    page.goto("/")
    assert page.locator("h1").inner_text().startswith("ffncore")
    page.get_by_role("link", name="First steps").first.click()
    sync_api.expect(page.locator("h1")).to_contain_text("First steps")


def test_search(page):
    page.goto("/")
    page.locator("input.md-search__input").click()
    page.keyboard.type("load_packed")
    result = page.locator("a.md-search-result__link").first
    sync_api.expect(result).to_be_visible(timeout=20_000)
    result.click()
    sync_api.expect(page.locator("article")).to_contain_text("load_packed")


def test_picture(page):
    page.goto("/how-it-works/")
    picture = page.get_by_role("img", name="panels, register tiles, blocks and chunks")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 760


def test_api(page):
    page.goto("/api/functions/")
    assert page.locator("#ffncore\\.ffn_backward").count() == 1
    text = page.locator("article").inner_text()
    assert "Gradients of x, the weights and xielu's parameters" in text
