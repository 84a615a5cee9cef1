"""What can go wrong, as one tree.

::

    AmplemarketError
    ├── AmplemarketConfigurationError      a setting is wrong; the message names it (also a ValueError)
    │   └── ConnectionNotDefinedError      Airflow has no connection of this name
    ├── AmplemarketAPIError                the API returned something else than was asked for
    │   ├── AmplemarketConnectionError     no response: refused, timed out, cut
    │   ├── AuthenticationError            401; 403 for anything but a recording: the API key is refused
    │   ├── RecordingForbiddenError        403 for a recording
    │   ├── RecordingNotFoundError         404 for a recording
    │   ├── RecordingTooLargeError         413 for a recording
    │   └── RateLimitExceededError         429, with ``retry_after``
    ├── RequestAbortedError                the task was told to stop; nothing is asked for any more
    ├── InvalidRecordingError              a 200 whose body is no whole audio
    ├── LedgerError                        the quota ledger cannot be trusted, so nothing is sent
    │   └── LedgerBusyError                another task has it, with ``until``
    ├── ArchiveError                       the object storage does not take or give what it should
    └── ArchiveIncompleteError             the run is over and some recordings are still missing

No message of these ever holds the API key.
"""

from __future__ import annotations


class AmplemarketError(Exception):
    """Base of every error that this provider raises."""


class AmplemarketConfigurationError(AmplemarketError, ValueError):
    """A setting of the connection or the operator is wrong; the message names it."""


class ConnectionNotDefinedError(AmplemarketConfigurationError):
    """Airflow has no such connection, or cannot be asked just now.

    Airflow 3.2 and 3.3 say the same in a task while their API server fails, so another try may help.
    """


class AmplemarketAPIError(AmplemarketError):
    """The API returned something else than was asked for.

    :param message: what was asked for and what came back.
    :param status: HTTP status of the response, None where it is not the status that was wrong.
    :param code: the API's own ``code``, for example ``not_found``, as ``title`` and ``detail`` None where it has none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        title: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail

    @property
    def is_outage(self) -> bool:
        """Whether the API, not what was asked for, may be what is wrong."""
        return self.status is not None and self.status >= 500


class AmplemarketConnectionError(AmplemarketAPIError):
    """There was no response, or not a whole one: refused, timed out, cut."""

    @property
    def is_outage(self) -> bool:
        """Whether the API may be what is wrong: it may."""
        return True


class AuthenticationError(AmplemarketAPIError):
    """The API key is refused (401) or may not do this at all (403)."""


class RecordingForbiddenError(AmplemarketAPIError):
    """The API does not give this recording (403); that alone says nothing of the API key."""


class RecordingNotFoundError(AmplemarketAPIError):
    """The API has no recording for the call (404); also while the audio is still being processed."""


class RecordingTooLargeError(AmplemarketAPIError):
    """The recording is too big for the endpoint (413) and will never come through it."""


class RateLimitExceededError(AmplemarketAPIError):
    """The API refused a request because its limit is reached (429).

    :param retry_after: seconds the API asks to wait, from ``Retry-After``; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        **words: str | None,
    ) -> None:
        super().__init__(message, status=429, **words)
        self.retry_after = retry_after


class RequestAbortedError(AmplemarketError):
    """The task was told to stop: requests under way were ended, and no other is sent."""

    def __init__(self, message: str = "The task was told to stop") -> None:
        super().__init__(message)


class InvalidRecordingError(AmplemarketError):
    """The API returned 200, but not with whole audio: cut short, empty, or text where audio should be.

    :param content_length: bytes that the response promised, from ``Content-Length``; None where it does not say.
    """

    def __init__(self, message: str, *, content_length: int | None = None) -> None:
        super().__init__(message)
        self.content_length = content_length


class LedgerError(AmplemarketError):
    """The quota ledger cannot be read or written, so no request may be sent."""


class LedgerBusyError(LedgerError):
    """Another task has the quota ledger for longer than this one may wait.

    :param until: timestamp (seconds since the epoch) at which it is worthwhile to try again.
    """

    def __init__(self, message: str, *, until: float = 0.0) -> None:
        super().__init__(message)
        self.until = until


class ArchiveError(AmplemarketError):
    """The archive cannot be read or written."""


class ArchiveIncompleteError(AmplemarketError):
    """The run is over and recordings of its window are missing; a retry asks for those alone."""
