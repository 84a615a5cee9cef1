"""What a client of the API needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

#: So many times the time-out, one for connecting and one for waiting, a request and what is not audio may take in all.
DEADLINE = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    Where the API is, and how it may be used.

    :param base_url: scheme, host, port and path prefix, as :func:`~.urls.parse_base_url` returns it.
    :param api_key: the API key; never shown.
    :param limit: requests to the recording endpoint per period.
    :param period: length of that period in seconds.
    :param timeout: seconds for connecting and for each read; see also :attr:`deadline`.
    """

    base_url: str
    api_key: str = field(repr=False)
    limit: int
    period: float
    timeout: float

    @property
    def deadline(self) -> float:
        """Seconds after which an answer's header must be there, and an error or a page of calls be whole."""
        return DEADLINE * self.timeout
