"""The page in a real browser, before a cluster of real processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from baton import live
from baton.top.fleet import Fleet
from tests.e2e.browser import DESKTOP, PATIENCE, PHONE, chromium, needs_chromium, visit
from tests.e2e.cluster import DEMO, MODEL, ROOT, Cluster, Process, cluster, until

pytestmark = needs_chromium

#: Slow enough to be seen: 20 ms a step, 0.5 ms a prompt token.
MOCK = ("--mock", "--mock-step-ms", "20", "--mock-prefill-us", "500")
MINE = "#timeline li[data-mine]"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster(DEMO, *MOCK, "--prefill", "2", "--decode", "2") as up:
        yield up


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def ask(page: Page, question: str, tokens: int) -> None:
    """Greedily, so that the answer is known."""
    page.locator("summary", has_text="Settings").click()
    page.get_by_label("Max tokens").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Your message").fill(question)
    page.get_by_role("button", name="Send", exact=True).click()


def whole(running: Cluster, question: str, tokens: int) -> str:
    """The answer to ``ask``, from the API."""
    body = {
        "model": MODEL,
        "max_tokens": tokens,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    reply = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=PATIENCE / 1000)
    return str(reply.json()["choices"][0]["message"]["content"])


def answered(page: Page) -> str:
    """The last answer, once it is whole."""
    expect(page.locator(".message.assistant .note").last).to_contain_text(re.compile(r"\d tokens?"))
    return page.locator(".message.assistant .text").last.text_content() or ""


def lefts(page: Page, *parts: str) -> list[float]:
    """Where these parts of our request's course begin, pixels."""
    boxes = [page.locator(f"{MINE} .track .{part}").first.bounding_box() for part in parts]
    return [box["x"] for box in boxes if box is not None]


def test_a_chat_is_answered_and_its_course_is_shown_in_order(
    running: Cluster, browser: Browser
) -> None:
    question = "What is a baton? " * 20
    with visit(browser, running.url) as page:
        ask(page, question, 60)
        text = answered(page)
        assert text == whole(running, question.strip(), 60)
        expect(page.locator("#said")).to_have_text(f"Answer: {text}")
        expect(page.locator(f"{MINE} .told")).to_contain_text("length · 60 tokens")
        page.locator(f"{MINE} summary").click()
        names = page.locator(f"{MINE} .phases dt").all_inner_texts()
        assert names == ["asked", "queued", "prefill", "KV", "first token", "decode", "ended"]
        assert re.fullmatch(r"P\d → D\d", page.locator(f"{MINE} .route").inner_text())
        places = lefts(page, "prefill", "first", "decode")
        assert len(places) == 3 and places == sorted(places)


def test_a_killed_worker_is_shown_and_its_request_goes_on(
    running: Cluster, browser: Browser
) -> None:
    question, tokens = "Who carries on?", 220
    with visit(browser, running.url) as page:
        ask(page, question, tokens)
        expect(page.locator(MINE)).to_have_attribute("data-phase", "decode")
        name = page.locator(f"{MINE} .route").inner_text().split(" → ")[1]
        card = page.locator(f'.card[data-worker="{name}"]')
        address = card.locator(".where").inner_text()
        (worker,) = [each for each in running.workers if each.address == address]
        worker.send(signal.SIGKILL)
        expect(card.locator(".badge.out")).to_be_visible()
        expect(page.locator("#verdict")).to_contain_text(f"{name} is")
        expect(page.locator(f"{MINE} .route")).to_contain_text("⤳")
        expect(page.locator(f"{MINE} .track .labels")).to_contain_text("goes on")
        assert answered(page) == whole(running, question, tokens)
        expect(card.locator(".state")).to_have_text("healthy")  # `baton up` has it back
    running.until_healthy("d0", "d1")


@contextmanager
def slow_decode_worker(running: Cluster) -> Iterator[None]:
    """One more, whose steps take ten times as long."""
    command = [
        *(sys.executable, "-m", "decode_worker", "--model", str(DEMO), "--port", "0"),
        *("--served-model-name", MODEL, "--join", running.rpc, "--local-prefill-queue", "0"),
        *("--mock", "--mock-step-ms", "200", "--drain-grace", "0.1"),
    ]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        assert child.wait(PATIENCE / 1000) == 0


def slow_in_top(running: Cluster) -> str:
    """The address of the first that `baton top` takes for slow."""
    fleet = Fleet()
    with httpx.Client(timeout=10) as http, connect_sse(http, "GET", f"{running.url}/live") as feed:
        for event in feed.iter_sse():
            match live.parse(event.event, event.data):
                case live.Snapshot() as said:
                    fleet.snapshot("gw", said.workers)
                case live.Worker() as said:
                    fleet.hear("gw", said)
            if slow := [view.worker.address for view in fleet.views() if view.slow]:
                return slow[0]
    raise AssertionError("the feed has ended")


def test_a_slow_worker_is_named_within_ten_seconds(running: Cluster, browser: Browser) -> None:
    with visit(browser, running.url) as page, slow_decode_worker(running):
        expect(page.locator("#decode .card .state", has_text="healthy")).to_have_count(3)
        page.get_by_role("button", name="Send four at once").click()
        expect(page.locator("#verdict")).to_contain_text(
            re.compile(r"D3 is slow: step [2-9]\d\d ms, others \d+ ms"),
            timeout=20_000,  # ten seconds, on a machine that is not busy
        )
        expect(page.locator(".badge.slow")).to_have_count(1)
        card = page.locator('.card[data-verdict="slow"]')
        assert card.get_attribute("data-worker") == "D3"
        assert slow_in_top(running) == card.locator(".where").inner_text()
        page.get_by_role("button", name="Stop these").click()
    until(lambda: len(running.loads()) == 4, 30.0, "it has left")


#: Addresses that are left when one of two members that never reported has gone.
LEFT = """async () => {
    const { Fleet } = await import("/page/fleet.js");
    const fleet = new Fleet();
    const member = (address) => ({ at: 1, id: null, address, roles: [], state: "connecting" });
    const workers = ["a:1", "b:1"].map(member);
    fleet.hear("snapshot", { at: 1, gateway: {}, workers, requests: [] });
    fleet.hear("worker_gone", { at: 2, id: null, address: "a:1" });
    return [...fleet.workers.keys()];
}"""


def test_a_member_that_never_reported_can_go(running: Cluster, browser: Browser) -> None:
    with visit(browser, running.url) as page:
        assert page.evaluate(LEFT) == ["b:1"]


def test_the_page_works_by_keyboard_alone(running: Cluster, browser: Browser) -> None:
    with visit(browser, running.url) as page:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # skips to the chat
        expect(page.get_by_label("Your message")).to_be_focused()
        page.keyboard.type("Go on and on")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
        expect(page.locator(".message.assistant .text")).not_to_be_empty()
        page.keyboard.press("Escape")
        expect(page.locator(".message.assistant .note")).to_contain_text("stopped")
        reached = []
        for _ in range(20):
            page.keyboard.press("Tab")
            focused, outline = page.evaluate(
                "[document.activeElement, getComputedStyle(document.activeElement)]"
                ".map((it) => it.outlineStyle ?? (it === document.body ? '' : it.innerText.trim()))"
            )
            reached.append(focused)
            assert not focused or outline != "none", f"no focus to be seen on {focused!r}"
        assert {"Settings", "New chat", "Send four at once", "Theme: system"} <= set(reached)
        row = page.locator(f"{MINE} summary")
        row.focus()
        page.keyboard.press("Enter")
        expect(page.locator(f"{MINE} .phases")).to_be_visible()
        expect(page.locator(f"{MINE} .told")).to_contain_text("client_gone")


@pytest.mark.parametrize(("viewport", "dark"), [(DESKTOP, True), (PHONE, False), (PHONE, True)])
def test_it_fits_and_can_be_read(
    running: Cluster, browser: Browser, viewport: ViewportSize, dark: bool
) -> None:
    """No width scrolls away, and every text has a contrast of at least 4.5 (WCAG AA)."""
    with visit(browser, running.url, viewport=viewport, dark=dark) as page:
        expect(page.locator("#decode .card")).to_have_count(2)
        ask(page, "Is it readable?", 5)
        answered(page)
        page.locator(f"{MINE} summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        brightness = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", brightness))) < 64) == dark
        assert page.evaluate(CONTRAST) == []
        page.get_by_role("button", name="Theme").click()  # light
        assert page.evaluate(CONTRAST) == []


#: Texts with too little contrast to what is behind them, with the ratio.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*:not(svg, svg *, option, noscript)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [rgb(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.textContent.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""

#: What must have a name to be told from others of its kind.
_NAMED = {
    *("button", "textbox", "combobox", "spinbutton", "link", "heading", "region", "log"),
    *("image", "DisclosureTriangle", "article"),
}


def test_a_screen_reader_finds_names_roles_and_landmarks(
    running: Cluster, browser: Browser
) -> None:
    with visit(browser, running.url) as page:
        ask(page, "Read me aloud.", 5)
        answered(page)
        session = page.context.new_cdp_session(page)
        nodes = [
            n for n in session.send("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]
        ]
    found = [(role(node), str(node.get("name", {}).get("value", ""))) for node in nodes]
    assert [each for each in found if each[0] in _NAMED and not each[1].strip()] == []
    assert {"banner", "main"} <= {kind for kind, _ in found}
    regions = {name for kind, name in found if kind == "region"}
    assert regions >= {"Chat", "The baton being passed", "Requests"}
    boxes = {name for kind, name in found if kind in {"textbox", "spinbutton", "combobox"}}
    assert boxes == {"Your message", "Max tokens", "Temperature", "System prompt", "Model"}
    assert any(kind == "image" and name.startswith("KV blocks") for kind, name in found)
    polite = [n for n in nodes if attribute(n, "live") == "polite"]
    assert len(polite) >= 3  # the answer, the connection, who is slow


def role(node: dict[str, Any]) -> str:
    return str(node["role"]["value"])


def attribute(node: dict[str, Any], name: str) -> object:
    return next((p["value"]["value"] for p in node["properties"] if p["name"] == name), None)


def test_where_keys_are_needed_it_asks_for_one(running: Cluster, browser: Browser) -> None:
    """The gateway's own answers to strangers are tested in tests/integration/test_page.py."""
    sent = []

    def told(route: Route) -> None:
        route.fulfill(json={"key": True, "live": "admin"})

    def guarded(route: Route) -> None:
        sent.append(route.request.headers.get("authorization"))
        route.continue_()

    with visit(browser, "about:blank") as page:
        page.route("**/page/about", told)
        page.route("**/v1/**", guarded)
        page.goto(running.url)
        expect(page.locator("#notice")).to_contain_text("admin port")
        assert sent == []
        page.get_by_label("API key").fill("bt-secret")
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#model option")).to_have_text(MODEL)
        ask(page, "Hello?", 3)
        answered(page)
        assert sent == ["Bearer bt-secret"] * 2
        assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


def test_it_is_live_again_when_the_gateway_is_back(running: Cluster, browser: Browser) -> None:
    lost = ("ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION", "ERR_EMPTY_RESPONSE")
    with visit(browser, running.url, expected=lost) as page:
        state = page.locator("#connection")
        expect(state).to_have_text("live")
        gateway: Process = running.processes["gateway"]
        gateway.send(signal.SIGKILL)
        expect(state).to_contain_text("trying again")
        expect(state).to_have_text("live")
        expect(page.locator(".card .state", has_text="healthy")).to_have_count(4)
    running.until_healthy("p0", "p1", "d0", "d1")
