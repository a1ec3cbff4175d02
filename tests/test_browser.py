"""The site in headless Chromium, at desktop and phone width: `make test-browser`. Chromium and chromedriver are driven
by the WebDriver protocol."""
import base64, http.server, json, os, shutil, socket, subprocess, tempfile, threading, time, urllib.request
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/"_docs"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
AXE = Path(os.environ.get("SELFALIGN_AXE") or ROOT/"node_modules"/"axe-core"/"axe.min.js")
SIZES = dict(desktop=(1280, 900), phone=(390, 844))
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not (BROWSER and DRIVER),
    reason="Chromium and chromedriver are not installed (Debian: chromium chromium-driver)"),
    pytest.mark.skipif(not (SITE/"index.html").exists(), reason="no site in _docs: run make docs first")]
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars")

class Browser:
    "A session of chromedriver."
    def __init__(self, port, profile):
        self.base = f"http://127.0.0.1:{port}"
        options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        got = self.call("POST", "/session", dict(
            capabilities=dict(alwaysMatch={"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}})))
        self.base += f"/session/{got['sessionId']}"
    def call(self, method, path, body=None):
        req = urllib.request.Request(self.base + path, None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(req, timeout=60) as r: return json.loads(r.read())["value"]
    def size(self, width, height):
        self.call("POST", "/goog/cdp/execute", dict(cmd="Emulation.setDeviceMetricsOverride",
            params=dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)))
    def open(self, url): self.call("POST", "/url", dict(url=url))
    def js(self, script, *args): return self.call("POST", "/execute/sync", dict(script=script, args=list(args)))
    def js_async(self, script, *args): return self.call("POST", "/execute/async", dict(script=script, args=list(args)))
    def log(self): return self.call("POST", "/se/log", dict(type="browser"))
    def picture(self, path): Path(path).write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]

@pytest.fixture(scope="module")
def site():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()

@pytest.fixture(scope="module")
def browser():
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        p = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0: break
                time.sleep(0.1)
            b = Browser(port, profile)
            yield b
            b.call("DELETE", "")
        finally: p.terminate(); p.wait(10)

WIDE = """const w = document.documentElement.clientWidth, out = [];
for (const e of document.querySelectorAll('body *')) {
  const r = e.getBoundingClientRect();
  if (!r.width || r.right <= w + 1) continue;
  let p = e, inside = false;
  while (p = p.parentElement) { const o = getComputedStyle(p).overflowX; if (o != 'visible' && p !== document.body) { inside = true; break } }
  if (!inside) out.push(e.tagName + '.' + e.className + ' ' + Math.round(r.right) + ' > ' + w + ': ' + e.textContent.trim().slice(0, 60));
}
return [document.documentElement.scrollWidth - w, out.slice(0, 5)]"""

@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_page(browser, site, page, size):
    """No console error, nothing wider than the screen, every picture has a text, one main heading, nothing from another
    site."""
    browser.size(*SIZES[size]); browser.log(); browser.open(f"{site}/{page}")
    errors = [x["message"] for x in browser.log() if x["level"] == "SEVERE"]
    assert not errors, errors
    over, what = browser.js(WIDE)
    assert over <= 0, f"{page} is {over} px wider than the {size}: {what}"
    assert browser.js("return [...document.images].filter(i => !i.alt.trim()).length") == 0
    assert browser.js("return document.querySelectorAll('h1').length") == 1
    foreign = browser.js("return performance.getEntriesByType('resource').map(e => e.name).filter(n => "
        "!n.startsWith(location.origin) && !n.startsWith('data:'))")
    assert not foreign, foreign

@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm install axe-core, or set SELFALIGN_AXE")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", PAGES)
def test_axe(browser, site, page, size):
    "Contrast, headings, alternative texts and link names pass axe-core."
    browser.size(*SIZES[size]); browser.open(f"{site}/{page}")
    browser.js(AXE.read_text(encoding="utf-8"))
    rules = ["color-contrast", "heading-order", "empty-heading", "page-has-heading-one", "image-alt", "link-name",
        "button-name", "html-has-lang", "document-title", "duplicate-id-aria"]
    found = browser.js_async("const done = arguments[1]; axe.run(document, {runOnly: "
        "arguments[0]}).then(r => done(r.violations.map(v => [v.id, v.nodes.length, v.nodes.slice(0, "
        "3).map(n => n.html.slice(0, 160) + ' ' + (n.any[0] ? n.any[0].message : ''))])))", rules)
    assert not found, found

@pytest.mark.parametrize("size", SIZES)
def test_the_figure_of_the_stages_can_be_read(browser, site, size):
    "Its smallest letters are as large as small print, and it fits the screen."
    browser.size(*SIZES[size]); browser.open(f"{site}/index.html")
    wide, room = browser.js("const i = document.querySelector('img[src$=\"stages.svg\"]'); "
        "return [i.getBoundingClientRect().width, i.closest('main, .content, body').getBoundingClientRect().width]")
    assert min(500, 0.8*room) <= wide <= room

def test_search(browser, site):
    "A reader who types internalization finds the page that explains it."
    browser.size(*SIZES["desktop"]); browser.open(f"{site}/index.html")
    browser.js("""const i = document.querySelector('input[type=search], #quarto-search input, .sd-search input, input[aria-label*=earch]');
                  if (!i) document.querySelector('[aria-label*=earch], .search-button, #quarto-search')?.click()""")
    time.sleep(0.5)
    browser.js("""const i = document.querySelector('input[type=search], #quarto-search input, input[aria-label*=earch], input[placeholder*=earch]');
                  i.focus(); i.value = 'internalization'; i.dispatchEvent(new Event('input', {bubbles: true})); i.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}))""")
    for _ in range(30):
        links = browser.js("return [...document.querySelectorAll('a')].filter(a => a.offsetParent "
            "&& /evidence|evaluation/.test(a.href) && /internalization/i.test(a.closest('li, div, "
            "a').textContent)).map(a => a.href)")
        if links: break
        time.sleep(0.2)
    assert any("evidence" in l or "evaluation" in l for l in links)
