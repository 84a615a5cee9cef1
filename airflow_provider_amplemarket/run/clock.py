"""The workers' clocks, by which the quota is kept."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

#: Seconds by which this machine's clock may differ from the API's before that is worth a warning.
CLOCK_TOLERANCE = 1.0


def warn_of_skew(skew: float) -> None:
    """
    Warn of a clock that is wrong.

    :param skew: seconds that this machine's clock is ahead of the API's; below 0, behind.
    """
    if abs(skew) <= CLOCK_TOLERANCE:
        return
    is_ahead = skew > 0
    if is_ahead:
        effect = "it takes permits that much too early, so that the API may refuse requests (429)"
    else:
        effect = "it waits that much too long, and workers with a right clock take its permits too early"
    log.warning(
        "The clock of this machine is %.0f s %s the API's, and the quota is kept by the workers' clocks: %s. "
        "Set it by NTP.",
        abs(skew),
        "ahead of" if is_ahead else "behind",
        effect,
    )
