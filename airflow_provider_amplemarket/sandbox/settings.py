"""The numbers that may be set in the environment: ``LIMIT``, ``PERIOD`` and ``PORT``."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Number = TypeVar("Number", int, float)


class SettingError(Exception):
    """A variable of the environment has a value that it cannot have; the message says what would be right."""


@dataclass(frozen=True)
class Setting(Generic[Number]):
    """A number of the environment, or of the command line.

    :param name: The variable.
    :param takes: The values that it takes, in words.
    :param convert: Returns the number in a text, or raises ValueError.
    :param accepts: Returns whether a number is one of these values.
    """

    name: str
    takes: str
    convert: Callable[[str], Number]
    accepts: Callable[[Number], bool]

    def parse(self, text: str) -> Number:
        """Return the number in a text; a type for ``argparse``.

        :param text: The text.
        """
        try:
            number = self.convert(text)
        except ValueError:
            number = None
        if number is None or not self.accepts(number):
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.takes}")
        return number

    def read(self, default: Number) -> Number:
        """Return the variable's number.

        :param default: The number where the variable is unset or empty.
        :raises SettingError: When it is anything else.
        """
        text = os.environ.get(self.name, "").strip()
        try:
            return self.parse(text) if text else default
        except argparse.ArgumentTypeError as problem:
            raise SettingError(f"{self.name} cannot be used: {problem}") from None


LIMIT = Setting("LIMIT", "a whole number above 0, of requests in a period", int, lambda limit: limit > 0)
PERIOD = Setting("PERIOD", "a number of seconds above 0", float, lambda period: 0 < period < math.inf)
PORT = Setting("PORT", "a port: a whole number from 0 to 65535, 0 for a free one", int, lambda port: 0 <= port <= 65535)
