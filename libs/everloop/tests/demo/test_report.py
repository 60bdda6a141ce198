"""The report: one file that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from everloop.demo import report

SECONDS = {"grpc": [0.004, 0.009], "http": [0.005], "oip_grpc": [], "oip_http": [0.02]}
VOID = {"meta", "br", "path", "use", "rect", "image", "stop", "circle", "line"}


class Balance(HTMLParser):
    """Fails on a tag that is closed without being open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_it_is_one_well_formed_file_that_loads_nothing(summary):
    page = report.render(summary, SECONDS, [])
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert page.count("<svg") == 4
    # Nothing is fetched: the only addresses are names of XML vocabularies.
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]+"', page)


def test_it_says_what_the_summary_says(summary):
    page = report.render(summary, SECONDS, [])
    for text in ("88 s", "71 s", "0.6500", "0.6900", "flight-delays/v2", "WRONG_TYPE", "5.0 min"):
        assert text in page, text
    assert "better by 0.0400" in page
    assert "The loop closed" in page


def test_a_retrain_that_did_not_help_is_said(summary):
    summary["stale_vs_retrained"]["retrained"]["roc_auc"] = 0.64
    assert "not better by 0.0100" in report.render(summary, SECONDS, [])


def test_problems_stand_at_the_top_and_texts_are_escaped(summary):
    page = report.render(summary, SECONDS, ["3 predictions failed: <b>"])
    assert "3 predictions failed: &lt;b&gt;" in page
    assert "The loop closed" not in page
    assert "a &lt; b &amp; c" in page


@pytest.mark.parametrize("missing", ["drift", "timeline", "decisions", "trainings"])
def test_it_can_be_drawn_without_a_part(summary, missing):
    summary[missing] = []
    assert "</html>" in report.render(summary, SECONDS, [])
