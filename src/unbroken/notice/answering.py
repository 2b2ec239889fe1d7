"""Whether a service answers: how often to ask it, and when to say that it does no more."""

from __future__ import annotations

from unbroken.notice.source import NoAnswer, Reach, SourceError

_FAILURES = 3
_ELSEWHERE_SECONDS = 60.0


class Answering:
    """Counts answers and failures of one service.

    Where it never answered, it is soon asked once a minute, and nothing is said: it is not there. Where it answered
    before and has failed three times in a row, that is said once, and it is asked as often as before.

    Args:
        what: the service, for messages, as ``the EC2 metadata service at http://...``.
        seconds: time between polls.
        lost: what it means that it answers no more.
    """

    def __init__(self, what: str, seconds: float, lost: str) -> None:
        self._what = what
        self._seconds = seconds
        self._lost = lost
        self._failures = 0
        self._why = "it was not asked yet"
        self.answered = False
        """Whether it has ever answered."""

    @property
    def given_up(self) -> bool:
        """Whether it has failed so often that it seems not to be there."""
        return self._failures >= _FAILURES

    def succeeded(self) -> None:
        """It answered as it should."""
        self.answered, self._failures, self._why = True, 0, ""

    def failed(self, error: NoAnswer) -> None:
        """It did not.

        Raises:
            SourceError: it answered before, and this is the third failure in a row.
        """
        self._failures += 1
        self._why = str(error)
        if self.answered and self._failures == _FAILURES:
            raise SourceError(
                f"{self._what} answered before and does no more: {error}", kind="metadata", hint=self._lost
            ) from error

    def interval(self) -> float:
        """Seconds until it should be asked again."""
        return max(self._seconds, _ELSEWHERE_SECONDS) if self.given_up and not self.answered else self._seconds

    def reach(self) -> Reach:
        """As of :class:`~unbroken.notice.source.NoticeSource`."""
        return Reach(not self._why, self._why)
