"""In a notebook the report is its own page in a frame; nothing of it is markup, or a script, to the notebook."""

from __future__ import annotations

from html.parser import HTMLParser

from report_cases import comparison, report, with_before

from trueup.errors import BadInput
from trueup.report import html, words

HOSTILE = "\"></iframe><script>alert(1)</script><img src=x onerror=alert(2)>' onload=alert(3) & &quot;"


class Outer(HTMLParser):
    """The elements that the notebook itself would make, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile():
    made = report(with_before(comparison(), sentence=HOSTILE), title=HOSTILE, notes=[HOSTILE])
    return made


def frame(source: str) -> dict[str, str | None]:
    ((_, attributes),) = [e for e in Outer(source).elements if e[0] == "iframe"]
    return attributes


def test_the_notebook_shows_a_card_with_the_page_behind_a_link():
    made = report(warnings=["Few texts."])
    seen, attributes = Outer(made._repr_html_()), frame(made._repr_html_())
    tags = [tag for tag, _ in seen.elements]
    assert tags.index("table") < tags.index("details") < tags.index("summary") < tags.index("iframe")
    assert tags.count("tr") == 1 + len(made.comparisons)
    for c in made.comparisons:
        assert words.interval(c.before) in seen.text
        assert words.state_of(c) in seen.text
    assert "Warning: Few texts." in seen.text
    assert attributes["srcdoc"] == html.page(made)
    assert attributes["title"] == made.title
    assert "height: 720px" in str(attributes["style"])


def test_the_frame_runs_scripts_without_the_notebooks_origin():
    # With allow-same-origin beside it a script in the frame could take the sandbox off.
    assert frame(report()._repr_html_())["sandbox"] == "allow-scripts"


def test_text_in_data_is_no_markup_to_the_notebook():
    seen = Outer(hostile()._repr_html_())
    assert {tag for tag, _ in seen.elements} <= {
        "p", "b", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "iframe",
    }  # fmt: skip
    assert all(not attributes or tag == "iframe" for tag, attributes in seen.elements)
    attributes = frame(hostile()._repr_html_())
    assert set(attributes) == {"title", "loading", "sandbox", "srcdoc", "style"}
    assert attributes["title"] == HOSTILE


def test_a_report_too_large_for_a_page_is_told_in_text(monkeypatch):
    def too_large(_):
        raise BadInput("The report does not fit into one page of 5 MB: check fewer faults in one go.")

    monkeypatch.setattr(html, "page", too_large)
    seen = Outer(hostile()._repr_html_())
    assert "iframe" not in [tag for tag, _ in seen.elements]
    assert HOSTILE in seen.text
    assert "does not fit" in seen.text
