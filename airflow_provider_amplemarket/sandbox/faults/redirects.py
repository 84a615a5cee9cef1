"""Faults that redirect a request."""

from __future__ import annotations

from urllib.parse import quote

from airflow_provider_amplemarket.sandbox.faults.registry import RECORDING_FAULTS, Exchange, fault
from airflow_provider_amplemarket.sandbox.responses import Response


def _redirect(location: str) -> Response:
    return Response(302, {"Location": location, "Content-Length": "0"})


@fault("redirect", RECORDING_FAULTS)
def _redirect_here(exchange: Exchange) -> Response:
    return _redirect(f"/sandbox/files/{quote(exchange.call_id, safe='')}")


@fault("redirect-away", RECORDING_FAULTS)
def _redirect_away(exchange: Exchange) -> Response:
    return _redirect(f"{exchange.sandbox.away_url}/sandbox/files/{quote(exchange.call_id, safe='')}")


@fault("redirect-loop")
def _redirect_loop(exchange: Exchange) -> Response:
    return _redirect(exchange.request.target)


@fault("redirect-http", RECORDING_FAULTS)
def _redirect_http(exchange: Exchange) -> Response:
    return _redirect(f"http://recordings.invalid/{quote(exchange.call_id, safe='')}.mp3")
