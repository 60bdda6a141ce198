"""The protos, the code and the architecture page tell of the same events on the same topics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from everloop_contracts.events import TOPICS
from everloop_contracts.pipeline import Pipeline
from everloop_runtime.kafka import DEAD_LETTERS

ROOT = Path(__file__).parents[2]
PIPELINE = Pipeline.model_construct(name="<pipeline>")
PLAIN = {PIPELINE.record_topic, PIPELINE.dead_letter_topic, DEAD_LETTERS}
"""Topics that carry something else than events."""


def declared() -> dict[str, str]:
    """Comment of every event of the protos: a message of an events.proto that is no part of another."""
    found = {}
    for path in (ROOT / "proto" / "everloop").glob("*/v1/events.proto"):
        text = path.read_text()
        package = re.search(r"^package (\S+);", text, re.M)
        assert package
        for comment, name in re.findall(r"((?:^//.*\n)+)message (\w+) {", text, re.M):
            if not re.search(rf"^ +(?:repeated |map<string, )?{name}[ >]", text, re.M):
                found[f"{package[1]}.{name}"] = comment
    return found


def table() -> dict[str, set[str]]:
    """Events of every topic of the architecture page."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("## Topics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, re.M)
    return {topic: set(events.split(", ")) for topic, events in rows}


def test_every_event_of_the_protos_has_a_topic_and_every_topic_an_event_of_the_protos() -> None:
    assert set(declared()) == set(TOPICS)


@pytest.mark.parametrize("event", sorted(TOPICS))
def test_the_proto_of_an_event_names_its_topic(event: str) -> None:
    assert f"Topic `{TOPICS[event]}`" in " ".join(declared()[event].replace("//", "").split())


def test_the_architecture_page_has_every_topic_with_its_events_and_no_other() -> None:
    expected: dict[str, set[str]] = {}
    for event, topic in TOPICS.items():
        expected.setdefault(topic, set()).add(event.rpartition(".")[2])
    shown = table()
    assert {topic: events for topic, events in shown.items() if topic not in PLAIN} == expected
    assert set(shown) - set(expected) == PLAIN
