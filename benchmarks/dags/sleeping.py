"""A task of one's own that sleeps when the quota is used up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import requests
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk import DAG, BaseHook

with DAG("sleeping", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:

    def list_calls(session: requests.Session, url: str) -> Iterator[dict[str, Any]]:
        """List the calls, page after page."""
        path = "/calls"
        while path:
            response = session.get(url + path, timeout=60)
            response.raise_for_status()
            page = response.json()
            yield from page["calls"]
            path = page["_links"].get("next", {}).get("href")

    @dag.task
    def archive() -> None:
        """Fetch one recording after the other."""
        connection = BaseHook.get_connection("sleeping")
        url = f"http://{connection.host}:{connection.port}"
        session = requests.Session()
        session.headers["Authorization"] = connection.extra_dejson["Authorization"]
        s3 = S3Hook("aws_default")
        for call in list_calls(session, url):
            key = f"sleeping/{call['id']}.mp3"
            if s3.check_for_key(key, "recordings"):
                continue
            while True:
                response = session.get(f"{url}/calls/{call['id']}/recording", timeout=60)
                if response.status_code != 429:
                    break
                time.sleep(int(response.headers.get("Retry-After", 60)))
            response.raise_for_status()
            s3.load_bytes(response.content, key, "recordings")

    archive()
