"""The connection to Amplemarket: a session with the API key, pages of calls, one recording at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_amplemarket.api import download, listing
from airflow_provider_amplemarket.api.client import Client
from airflow_provider_amplemarket.api.deadline import Watchdog
from airflow_provider_amplemarket.api.download import Recording
from airflow_provider_amplemarket.api.listing import CallFilter
from airflow_provider_amplemarket.api.settings import Settings
from airflow_provider_amplemarket.get_provider_info import CONNECTION_FIELDS, get_provider_info
from airflow_provider_amplemarket.hooks.connection import read_connection, settings_of


class AmplemarketHook(BaseHook):
    """Talk to Amplemarket's API.

    :param amplemarket_conn_id: the Airflow connection (type ``amplemarket``) with base URL and API key.
    """

    conn_name_attr = "amplemarket_conn_id"
    default_conn_name = "amplemarket_default"
    conn_type = "amplemarket"
    hook_name = "Amplemarket"

    def __init__(self, amplemarket_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.amplemarket_conn_id = amplemarket_conn_id
        # Made before the connection is read, so that a stop that comes earlier holds, too.
        self._watchdog = Watchdog()

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Describe the Extra fields for Airflow before 3.2; newer ones read ``get_provider_info``."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import IntegerField
        from wtforms.validators import Optional

        return {
            name: IntegerField(
                lazy_gettext(spec["label"]),
                widget=BS3TextFieldWidget(),
                validators=[Optional()],
                default=spec["schema"]["default"],
                description=spec["description"],
            )
            for name, spec in CONNECTION_FIELDS.items()
        }

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Describe the standard fields for Airflow before 3.2."""
        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @cached_property
    def settings(self) -> Settings:
        """The connection's fields, checked.

        :raises AmplemarketConfigurationError: when a field is missing or malformed; the message names it.
        :raises ConnectionNotDefinedError: when Airflow has no such connection.
        """
        conn = read_connection(self.amplemarket_conn_id, self.conn_type, self.get_connection)
        return settings_of(conn, name=self.amplemarket_conn_id)

    @cached_property
    def _client(self) -> Client:
        return Client(
            self.settings,
            watchdog=self._watchdog,
            key_name=f"the API key in the password of connection {self.amplemarket_conn_id!r}",
        )

    @property
    def clock_skew(self) -> float:
        """Seconds that this machine's clock is ahead of the API's at least; below 0, behind.

        It comes from the ``Date`` of the responses so far; 0 before the first one, and where the clocks may agree.
        """
        return self._client.clock_skew.seconds

    def get_conn(self) -> requests.Session:
        """Return the session: bearer auth for the connection's host, a time-out and a deadline on every request.

        A body that is streamed by the caller has no deadline, and is not ended by :meth:`abort`.
        """
        return self._client.session

    def test_connection(self) -> tuple[bool, str]:
        """Ask for ``GET /account-info``, which costs nothing; never raise."""
        try:
            self._client.get_json(f"{self.settings.base_url}/account-info")
        except Exception as error:
            return False, f"{type(error).__name__}: {error}"
        return True, f"{self.settings.base_url} accepts the API key"

    def iter_calls(
        self,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        user_id: str | int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield every call with ``start <= start_date < end``, once each, reading page after page as needed.

        Calls without a readable ``start_date`` are yielded, too: nothing shows that they lie outside.

        :param start: start of the window, timezone-aware; None for the beginning.
        :param end: end of the window, which it does not include, timezone-aware; None for now.
        :param user_id: only calls of this user.
        :raises AuthenticationError: when the API key is refused.
        :raises AmplemarketAPIError: when the list does not come, after some retries, or makes no sense.
        :raises RequestAbortedError: after :meth:`abort`.
        """
        yield from listing.iter_calls(self._client, CallFilter(start=start, end=end, user_id=user_id))

    def download_recording(
        self,
        call_id: str,
        target: str | os.PathLike[str],
        *,
        cancelled: Callable[[], bool] | None = None,
        on_response: Callable[[], None] | None = None,
    ) -> Recording:
        """Stream the recording of a call into a local file, with one request and no retry.

        :param call_id: the call's id.
        :param target: the file to write; it is removed again when the recording is not whole.
        :param cancelled: asked after every MiB; the download ends with an error once it returns True.
        :param on_response: called when the response has begun with a 200, before its body is read.
        :return: what was received: size, hash, content type and times.
        :raises RecordingNotFoundError: 404.
        :raises RecordingTooLargeError: 413.
        :raises RateLimitExceededError: 429, with ``retry_after``.
        :raises RecordingForbiddenError: 403.
        :raises AuthenticationError: 401.
        :raises InvalidRecordingError: a 200 whose body is not audio, or not whole.
        :raises AmplemarketAPIError: any other response, or none.
        :raises RequestAbortedError: after :meth:`abort`.
        """
        return download.download_recording(
            self._client, call_id, Path(target), cancelled=cancelled, on_response=on_response
        )

    def abort(self) -> None:
        """End every request under way, whatever it waits for, and refuse those that follow; for a task that must stop.

        It may come from another thread or a signal's handler and does not raise. A new hook begins anew.
        """
        self._watchdog.stop()
