"""A headless Chromium for the page, and what it says while the page is open. No browser, no test: the reason is said."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
sys.path.insert(0, str(Path(__file__).parent))

from browser_cases import Opened

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
UNDRAWN = "[...document.querySelectorAll('.canvas:not(.drawn)')].some(c => !c.closest('details:not([open])'))"
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's Chromium, or the one that TRUEUP_CHROMIUM names."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="The page was not opened: playwright is not installed (pip install playwright)."
    )
    path = os.environ.get("TRUEUP_CHROMIUM") or next((p for n in NAMES if (p := shutil.which(n))), None)
    if path is None:
        pytest.skip("The page was not opened: there is no Chromium here (apt-get install chromium, or name one in "
                    "TRUEUP_CHROMIUM).")  # fmt: skip
    with api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=list(FLAGS), headless=True)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a page's source from disk, in a browser that knows no other page, opens what is folded unless `unfold` is False, and
    waits until the charts that can be seen are drawn."""
    contexts = []

    def opened(source: str, *, wait: bool = True, unfold: bool = True, **settings: Any) -> Opened:
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(source, encoding="utf-8")
        context = chromium.new_context(**{"viewport": {"width": 1100, "height": 900}, **settings})
        contexts.append(context)
        seen = Opened(context.new_page(), file.as_uri())
        seen.page.on("console", lambda m: seen.said.append(f"{m.type}: {m.text}"))
        seen.page.on("pageerror", lambda e: seen.said.append(f"error: {e}"))
        seen.page.on("request", lambda r: seen.asked.append(r.url))

        def dismiss(dialog: Any) -> None:
            seen.dialogs.append(dialog.message)
            dialog.dismiss()

        seen.page.on("dialog", dismiss)
        seen.page.goto(seen.address)
        if wait and unfold:
            seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        deadline = 100 if wait else 0
        while deadline and seen.page.evaluate(
            UNDRAWN
        ):  # `wait_for_function` compiles a string, which the page's policy forbids
            seen.page.wait_for_timeout(100)
            deadline -= 1
        return seen

    yield opened
    for context in contexts:
        context.close()
