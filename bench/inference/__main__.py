"""Measures servers in turn, round after round: `python -m bench.inference --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bench.inference import outcome
from bench.inference.environments import CannotInstall, environment
from bench.inference.load import missing_tools
from bench.inference.measure import CONCURRENCY, measure
from bench.inference.outcome import Round
from bench.inference.progress import OtherRun, Progress
from bench.inference.running import ServerFailed, stop_in_order
from bench.inference.servers import SERVERS, Server
from bench.inference.subject import prepare
from bench.report import OUT, commit, load_before, write

SPARSE = (8,)
SHORT = (
    " A short run: those that an earlier one found far behind the best peer were asked in its first round only, at "
    "8 callers."
)
DOORS = ("http", "http_oip", "grpc", "stream")


def main() -> int:
    """Returns the exit status."""
    options = _options()
    if missing := missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 2
    stop_in_order()
    servers = [
        server
        for server in SERVERS
        if server.name in options.servers and set(server.doors) & set(options.doors)
    ]
    work = OUT / "inference"
    subject = prepare(work / "model")
    saved = work / "rounds.json"
    plan = _plan(options)
    progress = Progress.saved(saved, plan) if options.resume else Progress()
    if progress.load is None:
        progress.load = load_before()
    progress.left_out |= _install(servers)
    rounds = progress.rounds
    for turn in range(options.rounds):
        for server in servers:
            sparse = options.short and server.behind
            if server.name in progress.left_out or len(rounds.get(server.name, ())) > turn:
                continue
            if sparse and turn:
                continue
            print(f"round {turn + 1} of {options.rounds}: {server.name}", flush=True)
            callers = SPARSE if sparse else options.callers
            try:
                samples, memory = measure(
                    server, subject, work, options.doors, options.seconds, callers
                )
            except ServerFailed as error:
                if server.kind != "peer":
                    raise
                progress.left_out[server.name] = str(error)
                rounds.pop(server.name, None)
                print(f"  left out: {error}", flush=True)
            else:
                rounds.setdefault(server.name, []).append(Round(samples, memory))
            progress.save(saved, plan)
    write(
        outcome.result(
            rounds,
            progress.left_out,
            options.seconds,
            progress.load,
            SHORT if options.short else "",
        ),
        outcome.plot(rounds),
        publish=options.whole,
    )
    return _verdict(rounds)


def _plan(options: argparse.Namespace) -> dict[str, object]:
    """What the rounds of one run have in common."""
    return {
        "commit": commit(),
        "seconds": options.seconds,
        "short": options.short,
        "servers": options.servers,
        "doors": options.doors,
        "callers": options.callers,
    }


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
        help="three rounds of 2 s a case; peers that are far behind once, at 8 callers: about 20 minutes",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what an interrupted run has measured"
    )
    parser.add_argument("--servers", type=_some(names), default=names, metavar="NAME,…")
    parser.add_argument("--doors", type=_some(DOORS), default=[*DOORS], metavar="NAME,…")
    parser.add_argument(
        "--callers",
        type=lambda text: [int(number) for number in _some(list(map(str, CONCURRENCY)))(text)],
        default=[*CONCURRENCY],
        metavar="NUMBER,…",
    )
    parser.add_argument("--rounds", type=int, help="rounds; 3 unless quick")
    parser.add_argument("--seconds", type=int, help="length of a sample; 4 unless quick or short")
    options = parser.parse_args()
    chosen = (options.servers, options.doors, options.callers)
    options.whole = not options.quick and chosen == (names, [*DOORS], [*CONCURRENCY])
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (2 if options.quick or options.short else 4)
    return options


def _some(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads some of the known names, which stay in their order."""

    def some(text: str) -> list[str]:
        given = text.split(",")
        if unknown := set(given) - set(known):
            allowed = ", ".join(known)
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not among {allowed}")
        return [name for name in known if name in given]

    return some


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ServerFailed, OtherRun) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
