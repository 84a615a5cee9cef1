"""Addresses: whose host they name, and which may be a base URL."""

from __future__ import annotations

import pytest

from airflow_provider_amplemarket.api.settings import is_loopback, origin, parse_base_url
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError


def test_a_base_url_that_is_refused_is_called_what_the_caller_calls_it() -> None:
    with pytest.raises(AmplemarketConfigurationError, match=r"^base_url must begin with https://"):
        parse_base_url("http://example.com")
    with pytest.raises(AmplemarketConfigurationError, match=r"^the host is not a valid URL"):
        parse_base_url("https://[oops", setting="the host")


class TestTellingHostsApart:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://API.example.com/calls?x#y", ("https", "api.example.com", 443)),
            ("https://api.example.com:443", ("https", "api.example.com", 443)),
            ("http://127.0.0.1", ("http", "127.0.0.1", 80)),
            ("http://[::1]:8080/", ("http", "::1", 8080)),
            ("ftp://example.com", ("ftp", "example.com", None)),
            ("/calls", ("", None, None)),
            ("http://[oops", ("", None, None)),
            ("http://example.com:port", ("", None, None)),
            ("https://Bücher.example/x", ("https", "xn--bcher-kva.example", 443)),
            ("https://☎.example/x", ("", None, None)),
        ],
    )
    def test_an_origin_is_scheme_host_and_port(self, url: str, expected: tuple[str, str | None, int | None]) -> None:
        assert origin(url) == expected

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.255.254", "::1"])
    def test_this_machine_is_known(self, host: str) -> None:
        assert is_loopback(host)

    @pytest.mark.parametrize(
        "host", [None, "", "localhost.", "127.0.0.1.example.com", "localhosts", "8.8.8.8", "::", "127.0.0.1/8"]
    )
    def test_other_machines_are_told_apart(self, host: str | None) -> None:
        assert not is_loopback(host)
