"""Faults of a page of calls alone."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_provider_amplemarket.sandbox.faults.registry import LIST_FAULTS, Exchange, fault
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE
from airflow_provider_amplemarket.sandbox.responses import Response, json_response, plain


def _next(exchange: Exchange, href: str) -> Response:
    page = exchange.page
    page["_links"]["next"] = {"href": href}
    return json_response(page)


@fault("loop", LIST_FAULTS)
def _loop(exchange: Exchange) -> Response:
    return _next(exchange, exchange.page["_links"]["self"]["href"])


@fault("next-away", LIST_FAULTS)
def _next_away(exchange: Exchange) -> Response:
    links = exchange.page["_links"]
    return _next(exchange, exchange.sandbox.away_url + links.get("next", links["self"])["href"])


@fault("next-http", LIST_FAULTS)
def _next_http(exchange: Exchange) -> Response:
    links = exchange.page["_links"]
    return _next(exchange, "http://api.invalid" + links.get("next", links["self"])["href"])


@fault("no-links", LIST_FAULTS)
def _no_links(exchange: Exchange) -> Response:
    return json_response({"calls": exchange.page["calls"]})


@fault("repeat", LIST_FAULTS)
def _repeat(exchange: Exchange) -> Response:
    return json_response(exchange.sandbox.page(exchange.request.query, overlap=1))


@fault("not-json", LIST_FAULTS)
def _not_json(exchange: Exchange) -> Response:
    return plain(200, "application/json", b"upstream timed out")


@fault("not-a-list", LIST_FAULTS)
def _not_a_list(exchange: Exchange) -> Response:
    page = exchange.page
    return json_response({**page, "calls": {str(index): row for index, row in enumerate(page["calls"])}})


@fault("row-not-object", LIST_FAULTS)
def _row_not_object(exchange: Exchange) -> Response:
    page = exchange.page
    return json_response({**page, "calls": [*page["calls"], "unexpected"]})


@fault("giant", LIST_FAULTS)
def _giant(exchange: Exchange) -> Response:
    def pieces() -> Iterator[bytes]:
        # A valid page, with one more field that is full of blanks.
        yield exchange.payload.removesuffix(b"}") + b', "padding": "'
        for _ in range(65):
            yield b" " * MEBIBYTE
        yield b'"}'

    return exchange.chunked(body=pieces())
