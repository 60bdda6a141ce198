"""A producer as anybody would write it: kafka-python and json, nothing of Everloop's.

Reads records from a file of JSON lines and sends them to a topic. After every `--break-every` records it also sends a
copy of the last one with something broken, each kind in turn (`BROKEN`). Writes one JSON object per line to standard
output: progress as `{"sent": n}`, at the end `{"sent": n, "broken": {kind: n}}`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

Record = dict[str, Any]
BREAK_EVERY = 1000


def _as_json(change: Callable[[Record], Record]) -> Callable[[Record], bytes]:
    return lambda record: json.dumps(change(dict(record))).encode()


BROKEN: dict[str, Callable[[Record], bytes]] = {
    "malformed_json": lambda record: json.dumps(record).encode()[:-20],
    "missing_field": _as_json(
        lambda r: {key: value for key, value in r.items() if key != "carrier"}
    ),
    "wrong_type": _as_json(lambda r: r | {"distance": "far"}),
    "unknown_field": _as_json(lambda r: r | {"gate": "B42"}),
    "out_of_range": _as_json(lambda r: r | {"distance": -r["distance"]}),
    "unreadable_time": _as_json(lambda r: r | {"scheduled_departure": "tomorrow"}),
}
"""What a broken copy has: the kind, and how a record becomes one. The record ids stay those of good records, so
that a door that let one through would overwrite good data."""


def broken(record: Record, number: int) -> tuple[str, bytes]:
    """Returns the kind and the bytes of broken record number `number` (0, 1, 2, …)."""
    kind = list(BROKEN)[number % len(BROKEN)]
    return kind, BROKEN[kind](record)


def main() -> int:
    """Sends the file; the exit status is 1 if the broker did not take everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--key", required=True, help="field whose value is the Kafka key")
    parser.add_argument("--break-every", type=int, default=BREAK_EVERY, help="0 breaks none")
    options = parser.parse_args()

    failures: list[BaseException] = []
    kinds: Counter[str] = Counter()
    sent = 0
    producer = KafkaProducer(
        bootstrap_servers=options.bootstrap, linger_ms=20, compression_type="lz4"
    )
    with options.file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            record = json.loads(line)
            key = str(record[options.key]).encode()
            values = [line.rstrip(b"\n")]
            if options.break_every and number % options.break_every == 0:
                kind, value = broken(record, sum(kinds.values()))
                kinds[kind] += 1
                values.append(value)
            for value in values:
                producer.send(options.topic, key=key, value=value).add_errback(failures.append)
                sent += 1
            if number % 2000 == 0:
                print(json.dumps({"sent": sent}), flush=True)
    producer.flush(timeout=60)
    producer.close()
    if failures:
        print(f"{len(failures)} records were not sent: {failures[0]}", file=sys.stderr)
        return 1
    print(json.dumps({"sent": sent, "broken": dict(kinds)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
