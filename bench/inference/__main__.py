"""Measures servers in turn, round after round: `python -m bench.inference --help`."""

from __future__ import annotations

import argparse
import sys

from bench.inference import outcome
from bench.inference.environments import CannotInstall, environment
from bench.inference.load import missing_tools
from bench.inference.measure import CONCURRENCY, measure
from bench.inference.outcome import Round
from bench.inference.running import ServerFailed, stop_in_order
from bench.inference.servers import SERVERS, Server
from bench.inference.subject import prepare
from bench.report import OUT, load_before, write

SPARSE = (8,)
SHORT = (
    " A short run: those that an earlier one found far behind the best peer were asked in its first round only, at "
    "8 callers."
)
DOORS = {"http": ("http", "http_oip"), "grpc": ("grpc", "stream")}


def main() -> int:
    """Returns the exit status."""
    options = _options()
    if missing := missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 2
    stop_in_order()
    doors = DOORS[options.only] if options.only else sum(DOORS.values(), ())
    servers = [
        server
        for server in SERVERS
        if (not options.servers or server.name in options.servers) and set(server.doors) & {*doors}
    ]
    load = load_before()
    work = OUT / "inference"
    subject = prepare(work / "model")
    left_out = _install(servers)
    rounds: dict[str, list[Round]] = {}
    for turn in range(options.rounds):
        for server in [server for server in servers if server.name not in left_out]:
            sparse = options.short and server.behind
            if sparse and turn:
                continue
            print(f"round {turn + 1} of {options.rounds}: {server.name}", flush=True)
            try:
                samples, memory = measure(
                    server, subject, work, doors, options.seconds, SPARSE if sparse else CONCURRENCY
                )
            except ServerFailed as error:
                if server.kind != "peer":
                    raise
                left_out[server.name] = str(error)
                rounds.pop(server.name, None)
                print(f"  left out: {error}", flush=True)
                continue
            rounds.setdefault(server.name, []).append(Round(samples, memory))
    whole = not (options.quick or options.only or options.servers)
    write(
        outcome.result(rounds, left_out, options.seconds, load, SHORT if options.short else ""),
        outcome.plot(rounds),
        publish=whole,
    )
    return _verdict(rounds)


def _verdict(rounds: dict[str, list[Round]]) -> int:
    """1 where a request failed during load."""
    failed = {
        name: errors
        for name, some in rounds.items()
        if (errors := sum(sample.errors for one in some for sample in one.samples.values()))
    }
    for name, errors in failed.items():
        print(f"{name}: {errors} requests without a right answer", file=sys.stderr)
    return int(bool(failed))


def _install(servers: list[Server]) -> dict[str, str]:
    """Makes the peers' environments; returns why some cannot be had."""
    reasons = {}
    for server in servers:
        if server.environment:
            try:
                environment(server.environment)
            except CannotInstall as error:
                reasons[server.name] = str(error)
                print(f"left out: {error}", flush=True)
    return reasons


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.inference", description=__doc__)
    names = [server.name for server in SERVERS]
    parser.add_argument("--quick", action="store_true", help="one round of 2 s a case")
    parser.add_argument(
        "--short",
        action="store_true",
        help="three rounds of 2 s a case; peers that are far behind once, at 8 callers",
    )
    parser.add_argument("--only", choices=tuple(DOORS), help="one protocol")
    parser.add_argument(
        "--servers", type=lambda text: text.split(","), help=f"some of {','.join(names)}"
    )
    parser.add_argument("--rounds", type=int, help="rounds; 3 unless quick")
    parser.add_argument("--seconds", type=int, help="length of a sample; 4 unless quick")
    options = parser.parse_args()
    if unknown := set(options.servers or ()) - set(names):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (2 if options.quick or options.short else 4)
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
