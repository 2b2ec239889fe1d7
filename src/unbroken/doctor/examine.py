"""Runs the checks one after the other, each with its own deadline, all within one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from unbroken.doctor.finding import SEVERITIES, Finding, failure, failure_of, note
from unbroken.doctor.interpreter import HELP_SECONDS, VERSION_SECONDS
from unbroken.doctor.lifecycle import check_lifecycle
from unbroken.doctor.limits import check_limits
from unbroken.doctor.memory import check_memory
from unbroken.doctor.metadata import check_metadata
from unbroken.doctor.place import Place
from unbroken.doctor.space import check_scratch, check_shm
from unbroken.doctor.store_access import check_store
from unbroken.doctor.store_bandwidth import check_bandwidth
from unbroken.doctor.store_clock import check_clock
from unbroken.doctor.torchrun import check_interpreter
from unbroken.errors import EXIT_FAILED, EXIT_IO, UnbrokenError


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        run: does it; an UnbrokenError that it raises becomes a finding with that error's exit code.
        seconds: how long it may take.
        needs: name of another that must have found nothing worse than a note, where it was run.
        late_code: exit code where it takes too long.
    """

    name: str
    run: Callable[[Place], list[Finding]]
    seconds: float = 10.0
    needs: str = ""
    late_code: int = EXIT_FAILED


CHECKS = (
    Check("store", check_store, 45.0, late_code=EXIT_IO),
    Check("clock", check_clock, 30.0, "store", EXIT_IO),
    Check("bandwidth", check_bandwidth, 60.0, "store", EXIT_IO),
    Check("lifecycle", check_lifecycle, 20.0),
    Check("memory", check_memory),
    Check("shm", check_shm),
    Check("scratch", check_scratch),
    Check("limits", check_limits),
    Check("metadata", check_metadata, 20.0),
    Check("torchrun", check_interpreter, VERSION_SECONDS + HELP_SECONDS + 5.0),
)
"""All, in their order."""

_SECRET = re.compile("KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 6
_CLEANING_SECONDS = 15.0


def examine(
    place: Place,
    checks: Sequence[Check] = CHECKS,
    *,
    seconds: float = 180.0,
    say: Callable[[Finding], None] = lambda _: None,
) -> list[Finding]:
    """Run checks; one that raises or hangs is a finding, and the others go on.

    Args:
        seconds: for all together.
        say: told each finding as it comes.

    Returns:
        At least one finding for each check. Values of variables that look like secrets are left out of their texts.
    """
    ends = place.clock.monotonic() + seconds
    hidden = _secrets({**os.environ, **place.environment})
    found: list[Finding] = []
    for check in checks:
        left = ends - place.clock.monotonic()
        for one in _findings(check, place, left, found):
            finding = _without(hidden, replace(one, check=check.name))
            found.append(finding)
            say(finding)
    return found


def exit_code_of(findings: Sequence[Finding], fail_on: str = "error") -> int:
    """What the command ends with: the code of the first error, else 1 for what is as bad as ``fail_on``, else 0."""
    codes = [one.exit_code for one in findings if one.severity == "error"]
    if codes:
        return codes[0]
    worst = SEVERITIES.index(fail_on)
    return EXIT_FAILED if any(SEVERITIES.index(one.severity) >= worst for one in findings) else 0


def _findings(check: Check, place: Place, left: float, before: Sequence[Finding]) -> list[Finding]:
    if any(one.check == check.needs and one.severity in ("warning", "error") for one in before):
        return [note(f"not looked at: mend first what {check.needs} found")]
    if left <= 0:
        return [failure("not looked at: the time was over", "", "Give more --timeout, or fewer --only", EXIT_FAILED)]
    return _run_within(check, place, min(check.seconds, left))


def _run_within(check: Check, place: Place, seconds: float) -> list[Finding]:
    """In a thread, for some calls into the system or a store cannot be broken off. One that hangs is left behind: its
    own time-outs end it, or the end of the process."""
    result: list[Finding] = []
    done = threading.Event()  # an interrupted Thread.join takes the thread for ended

    def run() -> None:
        try:
            result.extend(check.run(place))
        except UnbrokenError as error:
            result.append(failure_of(error, "The check could not go on"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            found = f"the check itself failed: {type(error).__name__}: {error}"
            result.append(failure(found, "What it looks at is not known", "Please report this", EXIT_FAILED))
        finally:
            done.set()

    try:
        threading.Thread(target=run, name=f"unbroken-doctor-{check.name}", daemon=True).start()
        in_time = done.wait(seconds)
    except BaseException:  # Ctrl-C: what the check wrote must not stay
        done.wait(_CLEANING_SECONDS)
        raise
    if not in_time:
        found = f"no answer within {seconds:.0f} s"
        todo = "Check the network and the endpoint; objects named doctor-* may be left behind" if place.uri else ""
        return [failure(found, "A training would hang there as well", todo, check.late_code)]
    return result


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Values that no text may show, the longest first."""
    values = {
        value for name, value in environment.items() if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
    }  # fmt: skip
    return sorted(values, key=len, reverse=True)


def _without(hidden: Sequence[str], finding: Finding) -> Finding:
    texts = [finding.found, finding.why, finding.todo]
    for secret in hidden:
        texts = [text.replace(secret, "***") for text in texts]
    return replace(finding, found=texts[0], why=texts[1], todo=texts[2])
