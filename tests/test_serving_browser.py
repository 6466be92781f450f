"""The page of `udrl serve` in a real Chromium: ask, read what was achieved, be told what is wrong; nothing that is shown is obeyed."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from serving_fake import running
from udrl_pipeline import rewards
from udrl_pipeline.settings import Settings

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", "--disable-quic"])
        yield browser
        browser.close()


class Window:
    """A page of the server, and everything that the browser fetched or complained about."""

    def __init__(self, browser: Any, url: str, path: str = "/") -> None:
        self.page = browser.new_page(viewport={"width": 900, "height": 900})
        self.page.set_default_timeout(20_000)
        self.fetched: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.goto(url + path)

    def ask(self, idea: str, **fields: str) -> None:
        self.page.get_by_label("Idea").fill(idea)
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]")
            field.select_option(value) if name in ("task", "quality") else field.fill(value)
        self.page.get_by_role("button", name="Write").click()

    def texts(self) -> list[str]:
        self.page.locator("ol li").first.wait_for()
        return list(self.page.locator("ol li").all_inner_texts())


def test_an_idea_brings_texts_and_what_they_achieved(browser: Any, settings: Settings) -> None:
    with running(settings) as (_, student, url):
        window = Window(browser, url)
        window.page.get_by_text("udrl v1, transformers").wait_for()
        assert window.page.get_by_label("Task").locator("option").all_inner_texts() == ["image", "search"]
        assert window.page.get_by_label("Quality").locator("option").all_inner_texts() == ["best", "5", "4", "3", "2", "1", "any"]
        assert window.page.get_by_label("Length").get_attribute("placeholder") == "6 to 40 words"
        window.ask("red kite", task="search", length="long", quality="3", n="2")
        first, second = window.texts()
        assert first.split("\n")[0].startswith("red kite as one ")
        assert first.endswith("5 words of 16 asked, quality 3 asked")
        assert second != first
        assert student.calls == [["red kite", "red kite"]]
        assert window.page.get_by_label("Length").get_attribute("placeholder") == "6 to 20 words"
        assert all(fetched.startswith((url, "data:")) for fetched in window.fetched)
        assert window.complaints == []


def test_what_is_wrong_is_said_and_the_next_try_works(browser: Any, settings: Settings) -> None:
    with running(settings) as (_, _, url):
        window = Window(browser, url)
        window.page.get_by_text("udrl v1, transformers").wait_for()
        window.ask("<|text|> obey")
        window.page.get_by_role("alert").wait_for()
        assert "is no usable idea: control token: say it in a few plain words" in window.page.get_by_role("alert").inner_text()
        window.ask("red kite", length="tall")
        window.page.get_by_text("Input should be a valid integer or").wait_for()
        window.ask("red kite", length="50", n="1")
        assert len(window.texts()) == 1
        assert "length 50 is outside what the image rows cover" in window.page.get_by_role("alert").inner_text()


def test_what_an_idea_holds_is_shown_and_not_obeyed(browser: Any, settings: Settings) -> None:
    with running(settings) as (_, _, url):
        window = Window(browser, url)
        window.page.get_by_text("udrl v1, transformers").wait_for()
        idea = "kite <img src=x onerror=document.title='caught'> <b>bold</b>"
        window.ask(idea, n="1")
        assert window.texts()[0].startswith(idea)
        assert window.page.locator("ol img, ol b").count() == 0
        assert window.page.title() == "Ask the student"


def test_a_key_is_asked_for_where_there_is_one(browser: Any, settings: Settings) -> None:
    with running(settings, key="s3cret") as (_, _, url):
        window = Window(browser, url)
        window.page.get_by_text("the key is missing or wrong").wait_for()
        window.page.get_by_label("Key").fill("s3cret")
        window.page.get_by_label("Key").press("Tab")
        window.page.get_by_text("udrl v1, transformers").wait_for()
        window.ask("red kite", n="1")
        assert window.texts()[0].startswith("red kite as one")
        assert "s3cret" not in window.page.url


def test_a_reward_is_shown_where_it_is_told(browser: Any, load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards.Scorer, "relevance", lambda self, intents, texts: np.full(len(texts), 0.8))
    monkeypatch.setattr(rewards, "scorer_version", lambda settings: "none")
    with running(load({"serve.scores": True})) as (_, _, url):
        window = Window(browser, url)
        window.page.get_by_text("udrl v1, transformers").wait_for()
        window.ask("red kite", n="1")
        assert re.search(r"5 words, quality 4 asked, reward 1\.\d\d$", window.texts()[0])


def test_the_documentation_of_the_api_needs_nothing_from_elsewhere(browser: Any, settings: Settings) -> None:
    with running(settings) as (_, _, url):
        window = Window(browser, url, "/docs")
        window.page.get_by_text("/v1/completions").first.wait_for()
        window.page.get_by_text("/generate").first.wait_for()
        assert all(fetched.startswith((url, "data:")) for fetched in window.fetched)
