"""What may go wrong with a page of calls goes wrong in exactly that way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_amplemarket.sandbox import LIST_FAULTS, RECORDING_FAULTS, Sandbox
from airflow_provider_amplemarket.sandbox.recordings import MEBIBYTE
from tests.sandbox.checks import FAULTS
from tests.sandbox.client import Got, get, ids, walk


def page_of(got: Got) -> dict[str, Any]:
    assert got.status == 200
    return dict(got.json())


class TestListFaults:
    def first(self, sandbox: Sandbox, fault: str) -> Got:
        """Get the first page with a fault, and see that the second request has none."""
        sandbox.list_faults.append(fault)
        got = get(sandbox.url, "/calls")
        healthy = get(sandbox.url, "/calls")
        assert len(page_of(healthy)["calls"]) == 20
        assert not sandbox.list_faults
        return got

    def test_every_fault_of_lists_alone_is_tested(self) -> None:
        own = set(LIST_FAULTS) - set(RECORDING_FAULTS)
        tests = [name.removeprefix("test_").replace("_", "-") for name in dir(self)]
        assert [fault for fault in own if not any(test.startswith(f"{fault}-") for test in tests)] == []

    @pytest.mark.parametrize("fault", ["error-500", "error-503", "too-many", "too-many-N", "html", "refuse"])
    def test_a_fault_shared_with_recordings_behaves_alike(self, sandbox: Sandbox, fault: str) -> None:
        FAULTS[fault][0](self.first(sandbox, fault.replace("-N", "-17")), b"")

    @pytest.mark.parametrize("fault", ["cut", "gzip", "gzip-bomb", "chunked", "reset", "unsized"])
    def test_a_fault_of_the_wire_has_the_page(self, sandbox: Sandbox, fault: str) -> None:
        healthy = get(sandbox.url, "/calls").body
        FAULTS[fault][0](self.first(sandbox, fault), healthy)

    def test_loop_links_a_page_to_itself(self, sandbox: Sandbox) -> None:
        page = page_of(self.first(sandbox, "loop"))
        assert page["_links"]["next"] == page["_links"]["self"] == {"href": "/calls"}

    def test_next_away_links_to_another_host(self, sandbox: Sandbox) -> None:
        href = page_of(self.first(sandbox, "next-away"))["_links"]["next"]["href"]
        assert href.startswith(f"{sandbox.away_url}/calls?")
        second = page_of(get(sandbox.away_url, href.removeprefix(sandbox.away_url), key=None))
        assert [row["id"] for row in second["calls"]] == [row["id"] for row in sandbox.calls[20:40]]
        assert [entry.has_authorization for entry in sandbox.away_requests()] == [False]

    def test_next_http_links_to_plain_http(self, sandbox: Sandbox) -> None:
        href = page_of(self.first(sandbox, "next-http"))["_links"]["next"]["href"]
        assert href.startswith("http://api.invalid/calls?")

    def test_no_links_leaves_the_links_out(self, sandbox: Sandbox) -> None:
        assert set(page_of(self.first(sandbox, "no-links"))) == {"calls"}

    def test_not_json_cannot_be_parsed(self, sandbox: Sandbox) -> None:
        got = self.first(sandbox, "not-json")
        assert (got.status, got.headers["content-type"]) == (200, "application/json")
        with pytest.raises(json.JSONDecodeError):
            got.json()

    def test_not_a_list_has_an_object_of_calls(self, sandbox: Sandbox) -> None:
        assert isinstance(page_of(self.first(sandbox, "not-a-list"))["calls"], dict)

    def test_row_not_object_has_a_row_that_is_text(self, sandbox: Sandbox) -> None:
        rows = page_of(self.first(sandbox, "row-not-object"))["calls"]
        assert [type(row) for row in rows] == [dict] * 20 + [str]

    def test_giant_is_a_page_of_more_than_64_mebibytes(self, sandbox: Sandbox) -> None:
        got = self.first(sandbox, "giant")
        assert got.headers["transfer-encoding"] == "chunked"
        assert len(got.body) > 64 * MEBIBYTE
        assert len(page_of(got)["calls"]) == 20

    def test_repeat_lists_the_last_call_again_on_the_next_page(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.extend(["repeat", "ok"])
        pages = walk(sandbox)
        assert pages[0][-1] == pages[1][0]
        assert [len(page) for page in pages] == [20, 20, 11]
        assert set(ids(pages)) == {call["id"] for call in sandbox.calls}

    def test_faults_of_lists_come_one_at_a_time(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.extend(["error-500", "ok", "error-503"])
        statuses = [get(sandbox.url, "/calls").status for _ in range(4)]
        assert statuses == [500, 200, 503, 200]

    def test_faults_of_lists_wait_for_a_request_with_the_key(self, sandbox: Sandbox) -> None:
        sandbox.list_faults.append("error-500")
        assert get(sandbox.url, "/calls", key=None).status == 401
        assert get(sandbox.away_url, "/calls").status == 200
        assert get(sandbox.url, "/calls").status == 500
