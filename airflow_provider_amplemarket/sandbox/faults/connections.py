"""Faults of the connection: it is closed, slow, reset, or cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from airflow_provider_amplemarket.sandbox.faults.registry import RECORDING_FAULTS, Exchange, fault
from airflow_provider_amplemarket.sandbox.recordings import recording_of
from airflow_provider_amplemarket.sandbox.responses import Response


@fault("refuse")
def _refuse(exchange: Exchange) -> None:
    return None


@fault("hang")
def _hang(exchange: Exchange) -> None:
    exchange.sandbox.pause(30)


@fault("slow")
def _slow(exchange: Exchange) -> Response:
    exchange.sandbox.pause(2)
    return exchange.healthy


@fault("drip")
def _drip(exchange: Exchange) -> Response:
    def drops() -> Iterator[bytes]:
        payload = exchange.payload
        size = len(payload) // 30 + 1
        for start in range(0, len(payload), size):
            exchange.sandbox.pause(0.1)
            yield payload[start : start + size]

    return replace(exchange.healthy, body=drops())


@fault("reset")
def _reset(exchange: Exchange) -> Response:
    return replace(exchange.healthy, body=[exchange.half], then="reset")


@fault("cut")
def _cut(exchange: Exchange) -> Response:
    return replace(exchange.healthy, body=[exchange.half], then="close")


@fault("chunked")
def _chunked(exchange: Exchange) -> Response:
    return exchange.chunked()


@fault("cut-chunked")
def _cut_chunked(exchange: Exchange) -> Response:
    return exchange.chunked(body=[exchange.half], then="close")


@fault("unsized")
def _unsized(exchange: Exchange) -> Response:
    return exchange.changed({"Content-Length": None}, then="close")


@fault("unsized-cut")
def _unsized_cut(exchange: Exchange) -> Response:
    return replace(_unsized(exchange), body=[exchange.half])


@fault("short-length")
def _short_length(exchange: Exchange) -> Response:
    # The rest of the body follows all the same. On a kept connection it would be taken for the next response.
    headers = {"Content-Length": str(len(exchange.half))}
    return exchange.changed(headers, body=[exchange.payload], then="close")


@fault("partial")
def _partial(exchange: Exchange) -> Response:
    size, half = len(exchange.payload), exchange.half
    headers = {"Content-Length": str(len(half)), "Content-Range": f"bytes 0-{len(half) - 1}/{size}"}
    return exchange.changed(headers, status=206, body=[half])


@fault("endless", RECORDING_FAULTS)
def _endless(exchange: Exchange) -> Response:
    def frames() -> Iterator[bytes]:
        recording = recording_of(exchange.call_id, mebibytes=1)
        yield recording.tag
        while True:
            exchange.sandbox.pause(0.01)
            yield recording.sample * recording.repeats

    return exchange.chunked(body=frames())
