"""In a notebook the report is its own page in a frame; nothing of it is markup, or a script, to the notebook."""

from __future__ import annotations

from html.parser import HTMLParser

from report_cases import comparison, finding, report, with_before

from trueup.errors import BadInput
from trueup.report import html

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


def test_the_notebook_shows_the_page_itself():
    made = report()
    ((tag, attributes),) = Outer(made._repr_html_()).elements
    assert tag == "iframe"
    assert attributes["srcdoc"] == html.page(made)
    assert attributes["title"] == made.title
    assert "height: 720px" in str(attributes["style"])


def test_the_frame_runs_scripts_without_the_notebooks_origin():
    ((_, attributes),) = Outer(report()._repr_html_()).elements
    # With allow-same-origin beside it a script in the frame could take the sandbox off.
    assert attributes["sandbox"] == "allow-scripts"


def test_text_in_data_is_no_markup_to_the_notebook():
    seen = Outer(hostile()._repr_html_())
    assert [tag for tag, _ in seen.elements] == ["iframe"]
    assert set(seen.elements[0][1]) == {"title", "sandbox", "srcdoc", "style"}
    assert seen.elements[0][1]["title"] == HOSTILE
    assert seen.text == ""


def test_a_report_too_large_for_a_page_is_told_in_text(monkeypatch):
    def too_large(_):
        raise BadInput("The report does not fit into one page of 5 MB: check fewer faults in one go.")

    monkeypatch.setattr(html, "page", too_large)
    seen = Outer(hostile()._repr_html_())
    assert [tag for tag, _ in seen.elements] == ["pre"]
    assert HOSTILE in seen.text
    assert "does not fit" in seen.text
    assert finding().sentence in Outer(report()._repr_html_()).text
