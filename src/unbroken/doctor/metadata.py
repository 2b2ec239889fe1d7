"""Whether those who announce interruptions can be heard from here."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from unbroken.doctor.finding import Finding, note, sound, warning
from unbroken.doctor.place import Place
from unbroken.notice import NoticeSource, Offer, SourceError, offers

_UNKNOWN = "the firmware does not say where this is"
"""As :mod:`unbroken.notice.choice` writes it: the source is asked in case that it is there."""
_WHY = "An interruption is then heard as a signal only: with the grace period, and not with the notice"
_TODO = "docs/notices.md says for each source what it needs"


def check_metadata(place: Place) -> list[Finding]:
    """Ask each source of notices once."""
    found = [offer for offer in offers(place.notices, clock=place.clock) if offer.source is not None]
    if not found:
        return [_nobody()]
    with ThreadPoolExecutor(len(found), thread_name_prefix="unbroken-doctor") as pool:
        findings = [one for several in pool.map(_asked, found) for one in several]
    return findings or [_nobody()]


def _nobody() -> Finding:
    return note("no source of notices can answer here", _WHY, _TODO)


def _asked(offer: Offer) -> list[Finding]:
    source = offer.source
    if source is None:
        return []
    try:
        return _heard(offer, source)
    except SourceError as error:
        return [warning(f"{offer.name}: {error.message}", _WHY, error.hint or _TODO)]
    finally:
        source.close()


def _heard(offer: Offer, source: NoticeSource) -> list[Finding]:
    announced = source.poll()
    reach = source.reach()
    if not reach.answers:
        if offer.why == _UNKNOWN:  # one of several clouds that this may be: silence is no news
            return []
        return [warning(f"{offer.name} does not answer ({offer.why}): {reach.why}", _WHY, _TODO)]
    why = "A training that starts here now will be stopped soon"
    now = [note(f"{offer.name} announces: {event.reason}", why, "Start elsewhere, or wait") for event in announced]
    return [sound(f"{offer.name} answers"), *now]
