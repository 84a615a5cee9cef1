"""Faults that refuse a request, or fail it with a status."""

from __future__ import annotations

from airflow_provider_amplemarket.sandbox.faults.registry import PROXY_PAGE, RECORDING_FAULTS, Exchange, fault
from airflow_provider_amplemarket.sandbox.responses import Response, error, not_found, plain, too_many


@fault("ok")
def _ok(exchange: Exchange) -> Response:
    return exchange.healthy


@fault("error-500")
def _error_500(exchange: Exchange) -> Response:
    return error(500, "internal_server_error", "Something went wrong")


@fault("error-503")
def _error_503(exchange: Exchange) -> Response:
    return error(503, "service_unavailable", "Try again later")


@fault("error-503-html")
def _error_503_html(exchange: Exchange) -> Response:
    return plain(503, "text/html", PROXY_PAGE)


@fault("flaky")
def _flaky(exchange: Exchange) -> Response:
    return _error_503(exchange) if exchange.attempt == 1 else exchange.healthy


@fault("not-found", RECORDING_FAULTS)
def _not_found(exchange: Exchange) -> Response:
    return not_found()


@fault("late", RECORDING_FAULTS)
def _late(exchange: Exchange) -> Response:
    return not_found() if exchange.attempt == 1 else exchange.healthy


@fault("too-large", RECORDING_FAULTS)
def _too_large(exchange: Exchange) -> Response:
    return error(413, "content_too_large", "Recording is too big")


@fault("too-many")
def _too_many(exchange: Exchange) -> Response:
    return too_many()


@fault("too-many-N")
def _too_many_n(exchange: Exchange) -> Response:
    return too_many(str(exchange.number))


@fault("unauthorized")
def _unauthorized(exchange: Exchange) -> Response:
    return error(401, "unauthorized", "Invalid API key", {"header": "Authorization"})


@fault("forbidden")
def _forbidden(exchange: Exchange) -> Response:
    return error(403, "forbidden", "Not allowed for this API key")


@fault("echo-key")
def _echo_key(exchange: Exchange) -> Response:
    return error(500, "internal_server_error", f"No handler for {exchange.request.authorization}")
