"""The sandbox lists calls in pages, with the API's filters, order and links."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_amplemarket.sandbox import Sandbox, make_call, make_calls
from tests.sandbox.client import END, Row, get, ids, walk


class TestPages:
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    @pytest.mark.parametrize("size", [1, 7, 20, 25])
    def test_pages_have_every_call_once_in_both_directions(self, order: Any, size: int) -> None:
        calls = make_calls(50, end=END)
        with Sandbox(calls=calls, order=order) as sandbox:
            pages = walk(sandbox, {"page[size]": size})
            assert [len(page) for page in pages[:-1]] == [min(size, 20)] * (len(pages) - 1)
            assert sorted(ids(pages)) == sorted(call["id"] for call in calls)
            assert [row for page in pages for row in page] == sandbox._pages.ordered(calls)
            last = sandbox.log[-1]
            back = walk(sandbox, link="prev", href=f"{last.path}?{last.query}")
            assert sorted(ids(back)) == sorted(ids(pages))
            assert ids(back[::-1]) == ids(pages)

    def test_a_page_has_twenty_rows_unless_asked_otherwise(self) -> None:
        with Sandbox(calls=make_calls(50, end=END), page_size=30) as sandbox:
            assert [len(page) for page in walk(sandbox)] == [20, 20, 10]
            assert [len(page) for page in walk(sandbox, {"page[size]": 100})] == [30, 20]

    def test_links_are_relative_and_keep_the_query(self, sandbox: Sandbox) -> None:
        got = get(sandbox.url, "/calls", {"user_id": sandbox.calls[0]["user_id"], "page[size]": 2})
        links = got.json()["_links"]
        assert set(links) == {"self", "next"}
        assert links["next"]["href"].startswith("/calls?")
        second = get(sandbox.url, links["next"]["href"]).json()
        assert set(second["_links"]) == {"self", "prev", "next"}
        assert {row["user_id"] for row in second["calls"]} == {sandbox.calls[0]["user_id"]}

    def test_a_page_of_no_calls_is_empty(self) -> None:
        with Sandbox() as sandbox:
            assert get(sandbox.url, "/calls").json() == {"calls": [], "_links": {"self": {"href": "/calls"}}}

    def test_the_order_is_newest_oldest_or_shuffled(self) -> None:
        calls = make_calls(100, end=END)
        newest = [call["id"] for call in calls]
        with Sandbox(calls=calls[::-1], order="newest") as sandbox:
            assert ids(walk(sandbox)) == newest
        with Sandbox(calls=calls, order="oldest") as sandbox:
            assert ids(walk(sandbox)) == newest[::-1]
        with Sandbox(calls=calls, order="shuffled") as sandbox:
            shuffled = ids(walk(sandbox))
            assert shuffled != newest
            strays = [abs(place - newest.index(call_id)) for place, call_id in enumerate(shuffled)]
            assert 1 < max(strays) <= 5

    @pytest.mark.parametrize("order", ["newest", "shuffled"])
    def test_calls_that_appear_on_the_way_displace_none(self, order: Any) -> None:
        calls = make_calls(40, end=END)
        with Sandbox(calls=calls[10:], order=order, page_size=8) as sandbox:
            first = get(sandbox.url, "/calls").json()
            sandbox.add_calls(*calls[:10])
            rest = walk(sandbox, href=first["_links"]["next"]["href"])
            assert sorted(ids([first["calls"], *rest])) == sorted(call["id"] for call in calls[10:])

    def test_strange_rows_are_listed_as_they_are(self) -> None:
        calls: list[Row] = [{"id": "../x"}, {"id": "../x"}, {}, {"id": None, "start_date": 5}, {"id": 7}]
        with Sandbox(calls=calls) as sandbox:
            rows = [row for page in walk(sandbox, {"page[size]": 1}) for row in page]
            assert sorted(map(str, rows)) == sorted(map(str, calls))

    def test_filters_take_the_documentation_at_its_word(self, sandbox: Sandbox) -> None:
        starts = sorted(call["start_date"] for call in sandbox.calls)
        early, late = starts[10], starts[20]
        pages = walk(sandbox, {"start_date_from": early, "start_date_to": late})
        assert [row["start_date"] for page in pages for row in page] == starts[11:20][::-1]
        user = sandbox.calls[0]["user_id"]
        theirs = [row["id"] for row in sandbox.calls if row["user_id"] == user]
        assert ids(walk(sandbox, {"user_id": user})) == theirs
        number = sandbox.calls[3]["to"]
        assert sandbox.calls[3]["id"] in ids(walk(sandbox, {"to": number}))
        assert ids(walk(sandbox, {"from": "+12025550999"})) == []

    def test_filters_know_time_zones(self) -> None:
        with Sandbox(calls=[make_call(id="a", start_date=END), {"id": "undated"}]) as sandbox:
            assert ids(walk(sandbox, {"start_date_from": "2026-11-20T13:59:59+02:00"})) == ["a"]
            assert ids(walk(sandbox, {"start_date_from": "2026-11-20T14:00:00+02:00"})) == []
            assert ids(walk(sandbox, {"start_date_to": "2026-11-20T12:00:01"})) == ["a"]

    def test_filters_can_be_ignored(self) -> None:
        with Sandbox(calls=make_calls(30, end=END), honour_filters=False) as sandbox:
            pages = walk(sandbox, {"start_date_from": "2030-01-01T00:00:00Z", "user_id": "nobody"})
            assert len(ids(pages)) == 30

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            ("page[size]", "0"),
            ("page[size]", "-1"),
            ("page[size]", "many"),
            ("page[after]", "made-up"),
            ("page[before]", ""),
            ("start_date_from", "yesterday"),
            ("start_date_to", ""),
        ],
    )
    def test_a_parameter_that_makes_no_sense_is_refused(self, sandbox: Sandbox, parameter: str, value: str) -> None:
        got = get(sandbox.url, "/calls", {parameter: value})
        assert got.status == 400
        assert got.error()["source"] == {"parameter": parameter}
