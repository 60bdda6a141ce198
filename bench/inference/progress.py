"""What a run has measured so far, on disk: one that was interrupted goes on where it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bench.inference.measure import Case, Sample
from bench.inference.outcome import Round

__all__ = ["OtherRun", "Progress"]

T = TypeVar("T")


class OtherRun(Exception):
    """What is on disk was measured in another way, or of another commit."""


@dataclass
class Progress:
    """The rounds of a run.

    Attributes:
        rounds: per server, in the order of measuring.
        left_out: why others are not measured.
        load: of the machine before the first sample.
    """

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    load: float | None = None

    def save(self, path: Path, plan: Mapping[str, object]) -> None:
        """Replaces the file; `plan` is what another run must share to go on with it."""
        document = {
            "plan": dict(plan),
            "load": self.load,
            "left_out": self.left_out,
            "rounds": {name: list(map(_written, some)) for name, some in self.rounds.items()},
        }
        written = path.with_suffix(".new")
        written.write_text(json.dumps(document, indent=1) + "\n")
        written.replace(path)

    @classmethod
    def saved(cls, path: Path, plan: Mapping[str, object]) -> Progress:
        """Reads what `save` wrote; nothing is measured yet where there is no file.

        Raises:
            OtherRun: the plan is another one.
        """
        if not path.exists():
            return cls()
        document = json.loads(path.read_text())
        if document["plan"] != plan:
            raise OtherRun(f"{path} is of a run with {document['plan']}, this one has {plan}")
        rounds = {name: list(map(_read, some)) for name, some in document["rounds"].items()}
        return cls(rounds, document["left_out"], document["load"])


def _written(one: Round) -> dict[str, object]:
    samples = [{**asdict(case), **asdict(sample)} for case, sample in one.samples.items()]
    return {"memory": one.memory, "samples": samples}


def _read(document: Mapping[str, Any]) -> Round:
    samples: Sequence[Mapping[str, Any]] = document["samples"]
    return Round({_of(Case, item): _of(Sample, item) for item in samples}, document["memory"])


def _of(kind: type[T], item: Mapping[str, Any]) -> T:
    return kind(**{name: item[name] for name in kind.__annotations__})
