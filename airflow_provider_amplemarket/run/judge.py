"""The one place that decides to stop asking: what is wrong with one recording does not stop the others."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketError,
    ArchiveError,
    AuthenticationError,
    RateLimitExceededError,
    RecordingForbiddenError,
    RecordingNotFoundError,
    RecordingTooLargeError,
)
from airflow_provider_amplemarket.run.breaker import CircuitBreaker, Request

#: So many requests in a row that come to nothing, and the rest is left for a retry: an outage should not eat the quota.
#: That is exact where the API does not serve. Of recordings that do not come whole, or that the archive does not take,
#: those under way have been asked for, too, where one was archived before.
OUTAGE = 10
#: So many recordings in a row refused with 403, and it is the API key that is refused.
REFUSED = 3

#: Kinds of failures: the API does not serve, the key is refused, and nothing comes of the request for whatever reason.
_API, _KEY, _NOTHING = "API", "key", "nothing"
_LIMITS = {_API: OUTAGE, _KEY: REFUSED, _NOTHING: OUTAGE}


class Judge:
    """Let requests pass, judge what becomes of them, and stop when going on is pointless; from any thread."""

    def __init__(self, conn_id: str) -> None:
        self._conn_id = conn_id
        # Where one recording is refused, the others under way may be, too; where none was served yet, it is exact.
        self._breaker = CircuitBreaker(_LIMITS, trusting=[_KEY, _NOTHING])
        #: What makes going on pointless, if anything does.
        self.fatal: Exception | None = None
        #: Whether that may be the fault of the API or of the store, and not that of the recordings.
        self.is_outage = False

    @property
    def has_stopped(self) -> bool:
        """Whether no request is sent any more."""
        return self._breaker.is_open

    def stop(self, error: Exception | None = None, *, is_outage: bool = True) -> None:
        """Send nothing any more; what is under way goes on. The first error given is the reason."""
        if self.fatal is None and error is not None:
            self.fatal = error
            self.is_outage = is_outage
        self._breaker.open()

    def admit(self, is_wanted: Callable[[], bool]) -> Request | None:
        """Wait until one more request may be sent, as :meth:`.CircuitBreaker.enter`."""
        return self._breaker.enter(is_wanted)

    def answered(self, request: Request) -> None:
        """Note that a good response has begun."""
        request.succeeded(_API, _KEY)

    def archived(self, request: Request) -> None:
        """Note that a recording is archived."""
        request.succeeded(_NOTHING)

    def unserved(self, request: Request, error: Exception) -> None:
        """Judge a request of which no recording came."""
        if isinstance(error, AuthenticationError):
            self.stop(error, is_outage=False)
        elif isinstance(error, RateLimitExceededError):
            self.stop()
        elif isinstance(error, RecordingNotFoundError | RecordingTooLargeError):  # that is a response
            request.cleared(_NOTHING)
        else:
            self._count_unserved(request, error)
        if not is_outage(error):
            request.cleared(_API)

    def unarchived(self, request: Request, error: Exception) -> None:
        """Judge a request whose recording, or the sidecar that says why there is none, the archive has not taken."""
        self._count(request, _NOTHING, error)

    def _count_unserved(self, request: Request, error: Exception) -> None:
        if isinstance(error, RecordingForbiddenError):
            self._count(request, _KEY, error)
        elif is_outage(error):
            self._count(request, _API, error)
        self._count(request, _NOTHING, error)

    def _count(self, request: Request, kind: str, error: Exception) -> None:
        is_too_many = request.failed(kind)
        if not is_too_many:
            return
        if kind == _KEY:
            self.stop(self._refused(error), is_outage=False)
            return
        is_of_all = is_outage(error) or isinstance(error, ArchiveError | OSError)
        in_a_row = AmplemarketError(f"{OUTAGE} requests in a row failed, the last one with: {error}")
        self.stop(in_a_row, is_outage=is_of_all)

    def _refused(self, error: Exception) -> AuthenticationError:
        return AuthenticationError(
            f"{REFUSED} requests for recordings in a row were refused, the last one with: {error}; "
            f"check the API key in the password of connection {self._conn_id!r}",
            status=getattr(error, "status", None),
        )


def is_outage(error: Exception) -> bool:
    """Return whether the API, not the recording, may be what is wrong."""
    return isinstance(error, AmplemarketAPIError) and error.is_outage
