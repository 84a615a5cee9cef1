"""Remove what ``make demo`` and ``make airflow`` have left, so that they begin anew."""

from __future__ import annotations

import shutil

from dev import home
from dev.checkout import shown
from dev.processes import exit_after


def main() -> int:
    """Remove the homes with a sandbox; what the real API gave has cost requests, and is kept."""
    for place in (home.DEMO, home.STANDALONE):
        if place.path.exists():
            with place.claim():
                shutil.rmtree(place.path)
            print(f"Removed    {shown(place.path)}")
    if home.LIVE.path.exists():
        print(f"Kept       {shown(home.LIVE.path)}: its recordings are real; remove it by hand")
    return 0


if __name__ == "__main__":
    exit_after(main)
