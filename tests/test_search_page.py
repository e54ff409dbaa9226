"""The page of `search --serve`: in a browser, and asked for what it must not give."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
from urllib.parse import quote

import numpy as np
import pytest
from forked import Command
from PIL import Image
from report_helpers import CONTRASTS, PHONE

import easyrec_mm as er

SECRET, ADDRESS = "secret.jpg", "http://127.0.0.1:9/"
pytestmark = pytest.mark.slow


class Served:
    """A page of a store whose pictures are in `root`, with a link out of it."""

    def __init__(self, exported, store, folder):
        self.exported, self.folder, self.store = exported, folder, store
        keys = exported.keys()
        self.key = keys[0]
        paths = {**dict(zip(keys, keys, strict=True)), keys[2]: f"../{SECRET}", keys[3]: "link.jpg", keys[4]: ADDRESS}
        shutil.copytree(exported.data / "images", folder / "root" / "images")
        shutil.copy(exported.data / self.key, folder / SECRET)
        os.symlink(folder / SECRET, folder / "root" / "link.jpg")
        rows = "".join(f"{key},{path},{i},<b>{i}\n" for i, (key, path) in enumerate(paths.items()))
        (folder / "items.csv").write_text(f"key,path,price,name\n{rows}")
        arguments = ["search", "--serve", "--port", 0, "--store", store, "--img_model_dir", exported.folder / "image"]
        arguments += ["--metadata", folder / "items.csv", "--metadata_picture", "path", "--image_root", folder / "root"]
        self.output = folder / "output.txt"
        self.process = Command(folder, arguments, self.output)
        self.process.wait_for(self.output, "(Ctrl-C ends it)")
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", self.output.read_text())[1])

    def ask(self, method, path, body=b"", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content[:1] == b"{" else content


@pytest.fixture(scope="module")
def served(exported, serving_place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "root").mkdir()
    page = Served(exported, f"lmdb://{serving_place}/store", folder)
    yield page
    page.process.send_signal(signal.SIGTERM)
    assert page.process.end()[0] == 0


@pytest.fixture
def shown(served, chromium):
    """The page on a phone in dark mode, and what it has written to the console."""
    context = chromium.new_context(viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
    page = context.new_page()
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"http://127.0.0.1:{served.port}/")
    yield page, messages, requests
    context.close()


def keys_of(page):
    return [figure.get_attribute("data-key") for figure in page.locator("#results figure").all()]


def test_a_search_in_the_browser(served, shown, tmp_path):
    page, messages, requests = shown
    page.locator("#picture").set_input_files(served.exported.data / served.key)
    page.locator("#results figure").first.wait_for()
    with er.Index(served.store, image_model=served.exported.folder / "image") as index:
        expected = index.search(picture=served.exported.data / served.key)
        assert keys_of(page) == list(expected["key"])
        assert page.locator("#results mark").first.inner_text() == "same content as the query"
        # A column with signs of HTML is shown as it is.
        assert "<b>0" in page.locator("#results figure").first.inner_text()
        page.locator("#k").fill("3")
        page.locator("#filter").fill("price > 4")
        page.locator("form button").click()
        page.get_by_text("3 results in").wait_for()
        kept = [key for key in expected["key"] if served.exported.keys().index(key) > 4]
        assert keys_of(page) == kept[:3]
        page.locator("#filter").fill("")
        page.get_by_role("button", name="More like this").nth(1).click()
        page.wait_for_function("document.getElementById('key').value != ''")
        page.wait_for_function(f"document.querySelector('#results figure').dataset.key != {kept[0]!r}")
        assert keys_of(page) == list(index.search(key=kept[1], k=3)["key"])
        assert page.locator("#query img").count() == 0
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert messages == []
    assert all(url.startswith((f"http://127.0.0.1:{served.port}/", "blob:", "data:")) for url in requests)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(CONTRASTS)[0][0] >= 4.5
    page.screenshot(path=os.environ.get("SCREENSHOT", tmp_path / "page.png"), full_page=True)


def test_a_picture_is_pasted_and_a_mistake_is_told(served, shown):
    page, messages, _ = shown
    page.evaluate(
        """async (key) => {
          const blob = await (await fetch("picture?key=" + encodeURIComponent(key))).blob();
          const data = new DataTransfer();
          data.items.add(new File([blob], "pasted.jpg", { type: "image/jpeg" }));
          dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }""",
        served.key,
    )
    page.locator("#results figure").first.wait_for()
    assert "pasted.jpg" in page.locator("#query").inner_text()
    assert messages == []
    page.locator("#filter").fill("prise > 4")
    page.locator("form button").click()
    page.get_by_text("has no column 'prise'; did you mean 'price'").wait_for()
    assert keys_of(page) == []
    (served.folder / "no.jpg").write_bytes(b"no picture")
    page.locator("#filter").fill("")
    page.locator("#picture").set_input_files(served.folder / "no.jpg")
    page.get_by_text("picture: cannot be read as a picture: it").wait_for()
    # The browser itself notes answers with the status of an error.
    assert all(message.startswith("Failed to load resource") for message in messages)


def test_pictures_below_image_root_alone_are_given(served):
    keys = served.exported.keys()
    status, content = served.ask("GET", f"/picture?key={quote(served.key)}")
    assert status == 200
    small = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float)
    original = np.asarray(Image.open(served.exported.data / served.key).convert("RGB"), float)
    assert np.abs(small - original).mean() < 8
    for key in keys[2:5]:  # above the root, a link out of it, an address
        assert served.ask("GET", f"/picture?key={quote(key)}") == (204, b"")
    for key in (f"../{SECRET}", f"{served.folder}/{SECRET}", "file:///etc/passwd", "http://127.0.0.1:9/", ""):
        assert served.ask("GET", f"/picture?key={quote(key)}")[0] == 404
    for path in (f"/../{SECRET}", "/picture/../../etc/passwd", "/static/x", "/docs"):
        assert served.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/search", b"", {}, 400, "give a picture, a text or a key"),
        ("POST", "/search", b"x" * 1000, {}, 400, "picture: cannot be read as a picture: it"),
        ("POST", "/search", b"x" * ((16 << 20) + 1), {}, 413, "the picture has more than 16 MiB; make it smaller"),
        ("POST", "/search?key=no", b"", {}, 400, "key no: is not in the store"),
        ("POST", "/search?key=%ff%00", b"", {}, 400, "is not in the store"),
        ("POST", "/search?text=shoes", b"", {}, 400, "takes no text"),
        ("POST", "/search?key=a&k=x", b"", {}, 400, "give a whole number from 1 to 200"),
        ("POST", "/search?key=a&k=0", b"", {}, 400, "give a whole number from 1 to 200"),
        ("POST", "/search?key=" + "a" * 20_000, b"", {}, 400, "more than 10000 characters"),
        ("GET", "/search", b"", {}, 405, "Method Not Allowed"),
        ("GET", "/", b"", {"host": "evil.example"}, 403, "open this page by the address that the command prints"),
        ("POST", "/search?key=a", b"", {"host": "127.0.0.1.evil.example"}, 403, "open this page by the address"),
        ("GET", "/", b"", {"x": "a" * 70_000}, 431, "the head of the request is larger than"),
    ],
)
def test_requests_that_are_refused(served, method, path, body, headers, status, message):
    answer = served.ask(method, path, body, **headers)
    assert answer[0] == status
    assert message in answer[1]["error"]
    assert "Traceback" not in served.output.read_text()
