"""What a save and a restore cost a training: Unbroken and its peers, on the same store, in the same run.

    python benchmarks/save_restore.py --size 1GB --store s3 --loop overlap --out results.json --plot results.svg

README.md beside this file says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
from bars import draw
from methods import METHODS
from repetition import MethodFailedError, Repetition, TornError
from results import host_facts, print_table, summary_of

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_FEWEST_STEPS = 6
_PERIOD = {False: 3.5, True: 7.0}
"""Seconds from save to save for each GB of state: near, and far."""
_SHORTEST_PERIOD = 2.0
_TRIES = 2
"""How often a peer is started that has not worked yet."""


def main() -> None:
    """Measure, print, write."""
    options = _options()
    for path in (options.out, options.plot):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    print_table(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        Path(options.plot).write_text(draw(result), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size, default="1GB", help="of the state; tensors have 64 MiB")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--saves", type=int, default=3, help="in each repetition; at least 2")
    parser.add_argument("--store", choices=["folder", "s3"], default="s3")
    parser.add_argument("--loop", choices=["overlap", "short", "device"], default="overlap", help="forward and "
                        "backward of twice the time of a copy before each optimizer's step, or none, or as long beside "
                        "the cores")  # fmt: skip
    parser.add_argument("--far", action="store_true", help="90 MB/s and 20 ms for each connection to the S3 server")
    parser.add_argument("--frozen", type=float, default=0.0, help="share of the layers that is not trained")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=None, help="names, with commas between")
    parser.add_argument(
        "--period", type=float, default=0.0, help="seconds from save to save; by the size, if not given"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the repetition that watches memory")
    parser.add_argument("--server", choices=["memory", "weed"], default="memory", help="which S3 server to start")
    parser.add_argument("--signed", action="store_true", help="sign the bodies of puts, on both sides")
    parser.add_argument("--folder", default="", help="where the folder store is made; the temporary folder by default")
    parser.add_argument("--out", default="", help="write every sample here, as JSON")
    parser.add_argument("--plot", default="", help="draw the result here, as SVG")
    options = parser.parse_args()
    if options.saves < 2 or options.repetitions < 1 or not 0 <= options.frozen < 1:
        parser.error("at least 2 saves and 1 repetition; --frozen from 0 up to 1")
    if options.far and (options.store, options.server) != ("s3", "memory"):
        parser.error("--far is a property of the memory server: --store s3 --server memory")
    if unknown := set(options.methods or []) - set(METHODS):
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    return options


def parse_size(text: str) -> int:
    """Bytes: ``1GB`` is 10^9, ``1GiB`` 2^30."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write a number and MB, GB, MiB or GiB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the repetitions, each with every method in turn, so that a noisy minute falls on all of them."""
    begun, before = datetime.now(UTC), host_facts()
    names, skipped = _chosen(options)
    repetition = Repetition(options)
    probes = [repetition.probe()]
    steps = _steps_between(options, probes[0])
    samples: dict[str, dict[str, Any]] = {
        name: {"saved": [], "restored": [], "memory": None, "torn": 0, "left": [], "failed": []} for name in names
    }
    for number in range(options.repetitions):
        probes += [repetition.probe()] if number else []
        for name in names[number % len(names) :] + names[: number % len(names)]:
            _say(f"repetition {number + 1} of {options.repetitions}: {name}")
            _measure_one(repetition, name, samples, skipped, steps, probes[0])
    if not options.no_memory:
        for name in [name for name in names if name in samples]:
            _say(f"memory: {name}")
            _measure_one(repetition, name, samples, skipped, steps, probes[0], watched=True)
    for name in [name for name in samples if not samples[name]["saved"]]:
        skipped[name] = f"failed: {samples.pop(name)['failed'][-1]}"
    warm = statistics.median(probe["warm"] for probe in probes)
    return {
        "date": begun.isoformat(timespec="seconds"), "host": before,
        "setup": _setup(options, probes[0], steps),
        "memcpy": {"warm_s": warm, "fresh_s": statistics.median(probe["fresh"] for probe in probes)},
        "methods": {name: {"summary": summary_of(samples[name], warm), **samples[name]} for name in samples},
        "skipped": skipped,
    }  # fmt: skip


def _measure_one(
    repetition: Repetition, name: str, samples: dict[str, dict[str, Any]], skipped: dict[str, str],
    steps: int, probe: dict[str, Any], *, watched: bool = False,
) -> None:  # fmt: skip
    """One repetition of one method. A peer that fails is noted, with the reason; one that never worked is out.

    Raises:
        TornError: what was restored by Unbroken is not what was saved.
        MethodFailedError: Unbroken did not work.
    """
    if name not in samples:
        return
    mine = samples[name]
    try:
        one = repetition.run(name, every=steps, rows=probe["rows"], device_s=probe["device_s"], watched=watched)
    except MethodFailedError as error:
        if METHODS[name].ours:
            raise
        _say(f"{name} failed: {error.reason}")
        mine["failed"].append(error.reason)
        if not mine["saved"] and (watched or len(mine["failed"]) >= _TRIES):
            skipped[name] = f"failed: {error.reason}"
            del samples[name]
        return
    if one["torn"]:
        if METHODS[name].ours:
            raise TornError(f"{name}: {one['torn']}")
        _say(f"{name}: torn: {one['torn']}")
        mine["torn"] += 1
    if watched:
        mine["memory"] = one["memory"]
        return
    mine["saved"].append(one["saved"])
    mine["restored"].append(one["restored"])
    mine["left"].append(one["left"])


def _chosen(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The methods to measure; and those that cannot be, with the reason, which is said at once."""
    wanted = [
        name for name in METHODS if name in (options.methods or METHODS) and options.store in METHODS[name].stores
    ]
    skipped = {name: METHODS[name].missing for name in wanted if METHODS[name].missing}
    for name, reason in skipped.items():
        _say(f"{name} skipped: {reason}")
    return [name for name in wanted if name not in skipped], skipped


def _steps_between(options: argparse.Namespace, probe: dict[str, Any]) -> int:
    """Steps from save to save: enough for a save to be durable, and for steps after it that no save touches."""
    period = options.period or max(_SHORTEST_PERIOD, _PERIOD[options.far] * options.size / 1e9)
    return max(_FEWEST_STEPS, math.ceil(period / probe["step"]))


def _setup(options: argparse.Namespace, probe: dict[str, Any], steps: int) -> dict[str, Any]:
    s3 = options.store == "s3"
    payload = f"plain http, bodies {'signed' if options.signed else 'not signed'} on both sides" if s3 else "fsync"
    far = ", 90 MB/s and 20 ms for each connection" if options.far else ""
    return {
        "store": f"S3 ({options.server} server{far})" if s3 else "a folder", "payload": payload,
        "loop": options.loop, "rows": probe["rows"], "step_s": probe["step"],
        "forward_backward_s": probe["forward_backward"], "device_s": probe["device_s"],
        "steps_between": steps, "frozen": options.frozen,
        "repetitions": options.repetitions, "saves": options.saves, "state_bytes": probe["bytes"],
        "trained_bytes": probe["trained_bytes"], "tensors": probe["tensors"],
        "torch": probe["torch"], "torch_threads": probe["torch_threads"], "boto3": boto3.__version__,
    }  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
