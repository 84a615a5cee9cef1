"""What the Airflow connection says, checked before anything is sent."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Connection
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_provider_amplemarket.api.settings import DEFAULT_BASE_URL, Settings
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError, ConnectionNotDefinedError
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.hooks.connection import settings_of

KEY = "s3cret-Key_of.the/API+=~!"


def settings(
    host: str | None = None, password: str | None = KEY, extra: object = None, port: int | None = None
) -> Settings:
    text = extra if extra is None or isinstance(extra, str) else json.dumps(extra)
    conn = Connection(conn_id="mine", conn_type="amplemarket", host=host, password=password, extra=text, port=port)
    return settings_of(conn, name="mine")


def refused(function: Callable[[], object]) -> str:
    """Return the message of the refusal, after a look at whether it shows the key."""
    with pytest.raises(AmplemarketConfigurationError) as caught:
        function()
    message = str(caught.value)
    assert message.startswith("Connection 'mine': ")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return message


def test_a_key_is_enough() -> None:
    assert settings() == Settings(base_url=DEFAULT_BASE_URL, api_key=KEY, limit=50, period=3600.0, timeout=60.0)
    assert DEFAULT_BASE_URL == "https://api.amplemarket.com"


def test_every_field_is_taken() -> None:
    found = settings(
        "https://amplemarket.example.com:8443/api/",
        f" {KEY}\n",
        {"recording_limit": 7, "recording_period": 1.5, "timeout": 2.5},
    )
    assert found == Settings(
        base_url="https://amplemarket.example.com:8443/api", api_key=KEY, limit=7, period=1.5, timeout=2.5
    )


@pytest.mark.parametrize(
    ("variable", "base_url"),
    [
        ("amplemarket://:the-key@?recording_limit=5", "https://api.amplemarket.com"),
        ("amplemarket://:the-key@127.0.0.1:8080?recording_limit=5", "https://127.0.0.1:8080"),
        (
            '{"conn_type": "amplemarket", "password": "the-key", "extra": {"recording_limit": 5}}',
            "https://api.amplemarket.com",
        ),
        (
            '{"conn_type": "amplemarket", "password": "the-key", "host": "http://127.0.0.1", "port": 81,'
            ' "extra": "{\\"recording_limit\\": \\"5\\"}"}',
            "http://127.0.0.1:81",
        ),
    ],
)
def test_an_environment_variable_is_read_in_every_form_that_airflow_has(
    monkeypatch: pytest.MonkeyPatch, variable: str, base_url: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MINE", variable)
    found = AmplemarketHook("mine").settings
    assert (found.base_url, found.api_key, found.limit) == (base_url, "the-key", 5)


class TestAConnectionThatCannotBeRead:
    def refused(self) -> AmplemarketConfigurationError:
        with pytest.raises(AmplemarketConfigurationError) as caught:
            _ = AmplemarketHook("mine").settings
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("Connection 'mine' ")
        assert KEY not in "".join(traceback.format_exception(caught.value))
        return caught.value

    def test_one_that_is_not_there_is_refused_with_how_to_make_it(self) -> None:
        error = self.refused()
        assert type(error) is ConnectionNotDefinedError
        assert "airflow connections add mine --conn-type amplemarket" in str(error)

    def test_one_that_is_not_there_in_a_task_of_airflow_3_0(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND, detail={"conn_id": "mine"})

        def get_connection(hook: AmplemarketHook, conn_id: str) -> Connection:
            raise AirflowRuntimeError(problem)

        monkeypatch.setattr(AmplemarketHook, "get_connection", get_connection)
        assert type(self.refused()) is ConnectionNotDefinedError

    @pytest.mark.parametrize(
        "variable",
        [
            f'{{"conn_type": "amplemarket", "password": "{KEY}"',
            f'{{"conn_type": "amplemarket", "password": "{KEY}", "port": "https"}}',
            "amplemarket://:KEY@[oops",
            "amplemarket://:KEY@host:port",
            "amplemarket://:KEY@https://host://more",
        ],
    )
    def test_one_that_is_malformed_is_refused_without_its_text(
        self, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MINE", variable.replace("KEY", KEY.replace("/", "")))
        error = self.refused()
        assert KEY.replace("/", "") not in "".join(traceback.format_exception(error))

    def test_an_airflow_that_fails_is_not_taken_for_a_mistake(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={})

        def get_connection(hook: AmplemarketHook, conn_id: str) -> Connection:
            raise AirflowRuntimeError(problem)

        monkeypatch.setattr(AmplemarketHook, "get_connection", get_connection)
        with pytest.raises(AirflowRuntimeError):
            _ = AmplemarketHook("mine").settings


class TestTheBaseURL:
    @pytest.mark.parametrize(
        ("host", "base_url"),
        [
            (None, DEFAULT_BASE_URL),
            ("", DEFAULT_BASE_URL),
            ("  ", DEFAULT_BASE_URL),
            ("api.example.com", "https://api.example.com"),
            ("api.example.com:8443", "https://api.example.com:8443"),
            ("api.example.com/v1/", "https://api.example.com/v1"),
            (" https://api.example.com ", "https://api.example.com"),
            ("HTTPS://API.Example.com//", "https://api.example.com"),
            ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x"),
            ("http://localhost:8080/", "http://localhost:8080"),
            ("http://LOCALHOST", "http://localhost"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.8.9.10", "http://127.8.9.10"),
            ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
            ("https://bücher.example:8443/v1/", "https://xn--bcher-kva.example:8443/v1"),
            ("BÜCHER.example", "https://xn--bcher-kva.example"),
        ],
    )
    def test_it_is_the_host_without_a_slash_at_the_end(self, host: str | None, base_url: str) -> None:
        assert settings(host).base_url == base_url

    @pytest.mark.parametrize(
        ("host", "port", "base_url"),
        [
            ("api.example.com", 8443, "https://api.example.com:8443"),
            (None, 8443, f"{DEFAULT_BASE_URL}:8443"),
            ("http://[::1]", 81, "http://[::1]:81"),
            ("https://api.example.com:1", 2, "https://api.example.com:1"),
        ],
    )
    def test_the_port_may_have_a_field_of_its_own(self, host: str | None, port: int, base_url: str) -> None:
        assert settings(host, port=port).base_url == base_url

    @pytest.mark.parametrize(
        "host",
        [
            "http://api.amplemarket.com",
            "http://127.0.0.1.example.com",
            "http://127.0.0.1.nip.io:8080",
            "http://localhost.example.com",
            "http://example.com/localhost",
            "http://128.0.0.1",
            "http://0.0.0.0",
            "http://10.0.0.1",
            "http://127.1",
            "http://2130706433",
            "http://[::2]",
            "http://[::ffff:10.0.0.1]",
            "HTTP://example.com",
        ],
    )
    def test_plain_http_is_for_this_machine_alone(self, host: str) -> None:
        assert "http:// is for loopback addresses only" in refused(lambda: settings(host))

    @pytest.mark.parametrize("host", ["ftp://api.example.com", "file://localhost/etc", "amplemarket://api.example.com"])
    def test_another_scheme_is_refused(self, host: str) -> None:
        assert "must begin with https://" in refused(lambda: settings(host))

    @pytest.mark.parametrize(
        "host",
        [
            "https://",
            "https:///v1",
            "http://@127.0.0.1",
            "https://someone@api.example.com",
            f"https://:{KEY.replace('/', '')}@api.example.com",
            "someone:word@api.example.com",
            "http://127.0.0.1@example.com",
            "https://api.example.com?page=1",
            "https://api.example.com/#calls",
            ":8080",
        ],
    )
    def test_what_is_more_or_less_than_a_base_url_is_refused(self, host: str) -> None:
        message = refused(lambda: settings(host))
        assert f"a base URL like {DEFAULT_BASE_URL}" in message
        assert "s3cret" not in message

    @pytest.mark.parametrize(
        "host",
        [
            "https://[oops",
            "https://api.example.com:port",
            "https://api.example.com:99999",
            "http://[::1",
            f"https://{'ü' * 64}.example",
            "https://☎.example",
        ],
    )
    def test_what_is_no_url_is_refused(self, host: str) -> None:
        assert "the host is not a valid URL" in refused(lambda: settings(host))


class TestTheKey:
    @pytest.mark.parametrize("password", [None, "", " ", "\n\t"])
    def test_an_empty_one_is_refused(self, password: str | None) -> None:
        assert "password is empty" in refused(lambda: settings(password=password))

    @pytest.mark.parametrize("password", [f"{KEY}\n", f"\r\n {KEY}\t"])
    def test_what_copying_leaves_around_it_is_taken_off(self, password: str) -> None:
        assert settings(password=password).api_key == KEY

    @pytest.mark.parametrize("within", [" ", "\n", "\r\nX-Other: 1", "\t", "\x00", "\x7f", "é", "\u2028", "“"])
    def test_what_no_header_can_carry_is_refused(self, within: str) -> None:
        message = refused(lambda: settings(password=f"{KEY}{within}{KEY}"))
        assert "password" in message

    def test_it_is_not_shown(self) -> None:
        assert KEY not in repr(settings())
        assert KEY not in str(settings())
        assert "limit=50" in repr(settings())

    @pytest.mark.parametrize(
        ("host", "extra"), [("http://example.com", None), (None, "[]"), (None, {"timeout": 0}), (None, {"unknown": 1})]
    )
    def test_no_refusal_of_another_field_shows_it(self, host: str | None, extra: object) -> None:
        refused(lambda: settings(host, extra=extra))

    def test_settings_do_not_change(self) -> None:
        with pytest.raises(FrozenInstanceError):
            settings().api_key = "another"  # type: ignore[misc]


class TestTheNumbers:
    #: Fields of the form, and where they go.
    FIELDS: Mapping[str, str] = {"recording_limit": "limit", "recording_period": "period", "timeout": "timeout"}

    @pytest.mark.parametrize("name", FIELDS)
    @pytest.mark.parametrize("empty", [None, ""])
    def test_a_field_that_the_form_leaves_empty_has_its_default(self, name: str, empty: object) -> None:
        assert settings(extra={name: empty}) == settings()

    @pytest.mark.parametrize("extra", [None, "", "{}"])
    def test_no_extra_at_all_gives_the_defaults(self, extra: str | None) -> None:
        assert settings(extra=extra) == settings()

    @pytest.mark.parametrize("name", FIELDS)
    @pytest.mark.parametrize("value", [7, "7", " 7 ", 7.0, "7.0"])
    def test_a_number_may_come_as_text(self, name: str, value: object) -> None:
        found = getattr(settings(extra={name: value}), self.FIELDS[name])
        assert found == 7
        assert isinstance(found, int if name == "recording_limit" else float)

    @pytest.mark.parametrize("name", FIELDS)
    @pytest.mark.parametrize(
        "value",
        [
            0,
            -1,
            "0",
            "-1",
            "many",
            "1,5",
            "0x10",
            True,
            False,
            [],
            {},
            [1],
            "nan",
            "inf",
            "-inf",
            float("nan"),
            float("inf"),
            10**400,
        ],
    )
    def test_what_is_no_number_above_zero_is_refused_by_name(self, name: str, value: object) -> None:
        message = refused(lambda: settings(extra={name: value}))
        assert repr(name) in message
        assert "number above 0" in message

    @pytest.mark.parametrize("value", [0.5, "0.5"])
    @pytest.mark.parametrize("name", ["recording_period", "timeout"])
    def test_seconds_may_be_a_fraction(self, name: str, value: object) -> None:
        assert getattr(settings(extra={name: value}), self.FIELDS[name]) == 0.5

    @pytest.mark.parametrize("value", [0.5, 1.5, "2.5"])
    def test_requests_are_whole(self, value: object) -> None:
        assert "'recording_limit' must be a whole number" in refused(lambda: settings(extra={"recording_limit": value}))

    @pytest.mark.parametrize("extra", ["[]", "null", "7", '"text"', "{", "recording_limit=5", "NaN"])
    def test_extra_that_is_no_object_is_refused(self, extra: str) -> None:
        conn: Any = type("Conn", (), {"host": None, "password": KEY, "port": None, "extra": extra})()
        assert "Extra is not a JSON object" in refused(lambda: settings_of(conn, name="mine"))

    @pytest.mark.parametrize("name", ["recording-limit", "Timeout", "limit", "extra__amplemarket__timeout", ""])
    def test_an_unknown_field_is_named_and_so_are_the_known_ones(self, name: str) -> None:
        message = refused(lambda: settings(extra={name: 1, "timeout": 5}))
        assert f"[{name!r}]" in message
        assert all(known in message for known in self.FIELDS)
