"""The list of calls: every call of the window once, whatever the order, the filters and the pages are worth."""

from __future__ import annotations

import logging
import tracemalloc
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pendulum
import pytest

from airflow_provider_amplemarket.api import client, listing
from airflow_provider_amplemarket.exceptions import (
    AmplemarketAPIError,
    AmplemarketConnectionError,
    RateLimitExceededError,
)
from airflow_provider_amplemarket.sandbox import Sandbox, make_call, make_calls
from tests.api.servers import (
    END,
    KEY,
    MIB,
    Call,
    Connect,
    RawServer,
    ids,
    list_requests,
    page,
    pages_of,
    raw,
    warnings_in,
)


class TestListingCalls:
    @pytest.mark.parametrize("honour_filters", [True, False])
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_every_call_comes_once_from_all_pages(self, connect: Connect, order: Any, honour_filters: bool) -> None:
        calls = make_calls(50, end=END)
        with Sandbox(calls=calls, order=order, honour_filters=honour_filters, page_size=7) as sandbox:
            found = list(connect(sandbox.url).iter_calls())
        assert len(list_requests(sandbox)) == 8
        assert sorted(ids(found)) == sorted(ids(calls))
        assert sorted(found, key=lambda call: call["id"]) == sorted(calls, key=lambda call: call["id"])

    @pytest.mark.parametrize("honour_filters", [True, False])
    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_the_window_has_its_start_and_not_its_end(self, connect: Connect, order: Any, honour_filters: bool) -> None:
        start, end = END - timedelta(days=2), END - timedelta(days=1)
        second = timedelta(seconds=1)
        edge = {"before": start - second, "first": start, "last": end - second, "after": end}
        calls = make_calls(80, end=END, days=4) + [make_call(id=name, start_date=date) for name, date in edge.items()]
        wanted = [call["id"] for call in calls if start <= datetime.fromisoformat(call["start_date"]) < end]
        assert {"first", "last"} < set(wanted)
        with Sandbox(calls=calls, order=order, honour_filters=honour_filters, page_size=9) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=start, end=end))
        assert sorted(found) == sorted(wanted)

    def test_the_filters_are_asked_for_in_utc_with_a_second_to_spare(self, connect: Connect) -> None:
        start = pendulum.datetime(2026, 11, 20, 1, tz="Europe/Berlin")
        with Sandbox() as sandbox:
            list(connect(sandbox.url).iter_calls(start=start, end=END, user_id="a&b"))
        assert parse_qs(list_requests(sandbox)[0].query) == {
            "start_date_from": ["2026-11-19T23:59:59Z"],
            "start_date_to": ["2026-11-20T12:00:01Z"],
            "user_id": ["a&b"],
        }

    def test_no_filter_is_asked_for_that_was_not_given(self, connect: Connect) -> None:
        with Sandbox() as sandbox:
            assert list(connect(sandbox.url).iter_calls()) == []
        assert [entry.query for entry in sandbox.log] == [""]

    @pytest.mark.parametrize(("order", "most"), [("newest", 5), ("shuffled", 6), ("oldest", 20)])
    def test_reading_stops_after_some_pages_that_are_wholly_older_unless_newer_ones_follow(
        self, connect: Connect, order: Any, most: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(200, end=END, days=20)
        with Sandbox(calls=calls, order=order, honour_filters=False, page_size=10) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END - timedelta(days=1)))
        assert sorted(found) == sorted(ids(calls[:10]))
        # One page of the window, one within the margin, and three that are older.
        assert len(list_requests(sandbox)) <= most
        assert "older than the window" not in caplog.text

    @pytest.mark.parametrize("late", [20, 39, 60])
    def test_old_calls_that_were_logged_late_do_not_hide_the_newest(
        self, connect: Connect, late: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(200, end=END, days=20)
        logged_late = [make_call(id=f"late-{n}", start_date=END - timedelta(days=40, minutes=n)) for n in range(late)]
        with RawServer(*pages_of([*logged_late, *calls], 20)) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ids(calls[:10])
        assert [record.levelname for record in warnings_in(caplog)] == ["WARNING"]
        assert "begins at 2026-11-19" in caplog.text
        assert "call_ids" in caplog.text

    def test_old_calls_between_newer_ones_do_not_hide_those_that_follow(self, connect: Connect) -> None:
        calls = make_calls(60, end=END, days=0.9)
        old = [make_call(id=f"old-{n}", start_date=END - timedelta(days=9, minutes=n)) for n in range(40)]
        with RawServer(*pages_of([*calls[:20], *old, *calls[20:]], 20)) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ids(calls)

    def test_a_list_of_nothing_but_older_calls_is_not_read_to_its_end(
        self, connect: Connect, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = make_calls(400, end=END - timedelta(days=3), days=300)
        with Sandbox(calls=calls, honour_filters=False) as sandbox:
            assert list(connect(sandbox.url).iter_calls(start=END - timedelta(days=1))) == []
        assert len(list_requests(sandbox)) == 10
        assert len(warnings_in(caplog)) == 1

    def test_calls_just_before_the_window_do_not_count_as_older(self, connect: Connect) -> None:
        before = [make_call(id=f"before-{n}", start_date=END - timedelta(days=1, minutes=n)) for n in range(1, 241)]
        within = make_call(id="within", start_date=END - timedelta(hours=1))
        with RawServer(*pages_of([*before, within], 20)) as server:
            assert ids(connect(server.url).iter_calls(start=END - timedelta(days=1))) == ["within"]

    @pytest.mark.parametrize("user_id", [7, "7"])
    def test_a_user_may_be_a_number(self, connect: Connect, user_id: int | str) -> None:
        rows = [make_call(id=f"of-{user!r}", start_date=END, user_id=user) for user in (7, "7", 8, None)]
        with Sandbox(calls=rows, honour_filters=False) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(user_id=user_id))
        assert sorted(found) == ["of-'7'", "of-7"]
        assert parse_qs(list_requests(sandbox)[0].query) == {"user_id": ["7"]}

    @pytest.mark.parametrize("order", ["newest", "oldest", "shuffled"])
    def test_a_page_of_one_old_call_says_nothing_of_those_that_follow(self, connect: Connect, order: Any) -> None:
        calls = make_calls(6, end=END, days=6)
        with Sandbox(calls=calls, order=order, honour_filters=False, page_size=1) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END - timedelta(days=3)))
        assert sorted(found) == sorted(ids(calls[:3]))

    def test_a_page_with_an_undated_call_does_not_end_the_reading(self, connect: Connect) -> None:
        old = [make_call(id=f"old-{n}", start_date=END - timedelta(days=9, minutes=n)) for n in range(2)]
        pages = [
            page(old[0], {"id": "undated"}, old[1], _links={"next": {"href": "?page=2"}}),
            page({"id": "undated-too"}, _links={"next": {"href": "?page=3"}}),
            page(make_call(id="new", start_date=END)),
        ]
        with RawServer(*pages) as server:
            found = ids(connect(server.url).iter_calls(start=END - timedelta(days=1)))
        assert found == ["undated", "undated-too", "new"]

    def test_rows_that_are_repeated_come_once(self, connect: Connect) -> None:
        calls = make_calls(12, end=END)
        with Sandbox(calls=[*calls, calls[0], calls[5]], page_size=4) as sandbox:
            sandbox.list_faults.extend(["repeat", "repeat", "repeat"])
            found = ids(connect(sandbox.url).iter_calls())
        assert sorted(found) == sorted(ids(calls))

    def test_rows_with_nothing_but_an_id_and_unknown_fields_come_as_they_are(self, connect: Connect) -> None:
        rows = [{"id": "bare"}, make_call(id="rich", start_date=END, mood={"score": [1, None]})]
        with Sandbox(calls=rows, honour_filters=False) as sandbox:
            found = list(connect(sandbox.url).iter_calls(user_id=rows[1]["user_id"]))
        assert sorted(found, key=lambda call: call["id"]) == rows

    def test_rows_without_an_id_are_not_taken_for_repetitions(self, connect: Connect) -> None:
        rows: list[Call] = [{"duration": 1}, {"duration": 2}, {"id": None, "duration": 3}]
        with Sandbox(calls=rows) as sandbox:
            found = [call["duration"] for call in connect(sandbox.url).iter_calls()]
        assert sorted(found) == [1, 2, 3]

    @pytest.mark.parametrize("date", [None, "", "yesterday", 1763640000, ["2026-11-20"], "2026-13-45", "9" * 80])
    def test_a_call_whose_start_cannot_be_read_is_in_every_window(self, connect: Connect, date: object) -> None:
        row = {**make_call(id="undated", start_date=END), "start_date": date}
        with Sandbox(calls=[row, *make_calls(3, end=END)], honour_filters=False) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(start=END + timedelta(days=1), end=END + timedelta(days=2)))
        assert found == ["undated"]

    @pytest.mark.parametrize("honour_filters", [True, False])
    def test_only_the_calls_of_the_user_come(self, connect: Connect, honour_filters: bool) -> None:
        calls = make_calls(40, end=END)
        user = calls[0]["user_id"]
        wanted = [call["id"] for call in calls if call["user_id"] == user]
        assert 0 < len(wanted) < 40
        with Sandbox(calls=calls, honour_filters=honour_filters) as sandbox:
            found = ids(connect(sandbox.url).iter_calls(user_id=user))
        assert sorted(found) == sorted(wanted)

    def test_pages_are_read_only_as_they_are_needed(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(60, end=END)) as sandbox:
            calls = connect(sandbox.url).iter_calls()
            assert sandbox.log == []
            for _ in range(20):
                next(calls)
            assert len(list_requests(sandbox)) == 1
            next(calls)
            assert len(list_requests(sandbox)) == 2

    def test_listing_never_asks_for_a_recording(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            list(connect(sandbox.url).iter_calls())
        assert sandbox.recording_requests() == []


class TestListingCallsFromATroubledServer:
    @pytest.mark.parametrize(
        "fault",
        ["too-many", "too-many-3", "error-500", "error-503", "error-503-html", "refuse", "reset", "cut", "cut-chunked"],
    )
    @pytest.mark.parametrize("healthy_pages", [0, 1])
    def test_a_passing_fault_is_waited_out(self, connect: Connect, fault: str, healthy_pages: int) -> None:
        calls = make_calls(30, end=END)
        with Sandbox(calls=calls) as sandbox:
            sandbox.list_faults.extend([*["ok"] * healthy_pages, fault, fault])
            api = connect(sandbox.url)
            found = ids(api.iter_calls())
        assert sorted(found) == sorted(ids(calls))
        assert len(list_requests(sandbox)) == 4
        assert len(api.waits) == 2

    def test_a_server_that_hangs_is_asked_again_after_the_timeout(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append("hang")
            assert len(ids(connect(sandbox.url, timeout=0.2).iter_calls())) == 3

    @pytest.mark.parametrize(("retry_after", "waited"), [(0, 0), (7, 7), (60, 60), (900, 60)])
    def test_retry_after_is_honoured_up_to_a_minute(self, connect: Connect, retry_after: int, waited: float) -> None:
        with Sandbox() as sandbox:
            sandbox.list_faults.append(f"too-many-{retry_after}")
            api = connect(sandbox.url)
            list(api.iter_calls())
        assert api.waits == [waited]

    @pytest.mark.parametrize(
        ("fault", "error", "status"),
        [
            ("too-many", RateLimitExceededError, 429),
            ("too-many-2", RateLimitExceededError, 429),
            ("error-500", AmplemarketAPIError, 500),
            ("error-503-html", AmplemarketAPIError, 503),
            ("refuse", AmplemarketConnectionError, None),
            ("cut", AmplemarketConnectionError, None),
        ],
    )
    def test_a_fault_that_does_not_pass_ends_it_after_a_bounded_wait(
        self, connect: Connect, fault: str, error: type[AmplemarketAPIError], status: int | None
    ) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.extend([fault] * 50)
            api = connect(sandbox.url)
            with pytest.raises(error) as caught:
                list(api.iter_calls())
        assert type(caught.value) is error
        assert caught.value.status == status
        assert len(list_requests(sandbox)) == 6
        assert len(api.waits) == 5
        assert all(0 <= wait <= 60 for wait in api.waits)

    def test_a_server_that_is_down_is_given_up(self, connect: Connect) -> None:
        sandbox = Sandbox()
        with sandbox:
            api = connect(sandbox.url)
        with pytest.raises(AmplemarketConnectionError, match="no response"):
            list(api.iter_calls())
        assert len(api.waits) == 5

    @pytest.mark.parametrize(
        "fault",
        [
            "not-json",
            "html",
            "empty",
            "not-a-list",
            "row-not-object",
            "giant",
            "gzip",
            "gzip-bomb",
            "short-length",
            "unsized-cut",
            "partial",
            "redirect-loop",
            "loop",
            "next-away",
            "next-http",
        ],
    )
    def test_a_response_that_makes_no_sense_is_an_error_at_once(self, connect: Connect, fault: str) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            api = connect(sandbox.url)
            with pytest.raises(AmplemarketAPIError, match="GET /calls") as caught:
                list(api.iter_calls())
            assert type(caught.value) is AmplemarketAPIError
            assert len(sandbox.log) == 1
            assert api.waits == []
            # The faults are over: the same hook works again.
            assert len(ids(api.iter_calls())) == 30

    @pytest.mark.parametrize("fault", ["giant", "gzip-bomb"])
    def test_a_page_without_bounds_costs_bounded_memory(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        monkeypatch.setattr(client, "MAX_PAGE_SIZE", 2 * MIB)
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            api = connect(sandbox.url)
            tracemalloc.start()
            try:
                with pytest.raises(AmplemarketAPIError):
                    list(api.iter_calls())
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak < 24 * MIB

    @pytest.mark.parametrize("fault", ["no-type", "chunked", "unsized"])
    def test_a_whole_page_in_an_unusual_frame_is_read(self, connect: Connect, fault: str) -> None:
        with Sandbox(calls=make_calls(3, end=END)) as sandbox:
            sandbox.list_faults.append(fault)
            assert len(ids(connect(sandbox.url).iter_calls())) == 3

    def test_a_page_without_links_is_the_last(self, connect: Connect) -> None:
        with Sandbox(calls=make_calls(30, end=END)) as sandbox:
            sandbox.list_faults.append("no-links")
            assert len(ids(connect(sandbox.url).iter_calls())) == 20

    @pytest.mark.parametrize(
        "links", [None, [], "next", {}, {"next": None}, {"next": "?page=2"}, {"next": {}}, {"next": {"href": ""}}]
    )
    def test_a_link_that_is_not_there_ends_the_list(self, connect: Connect, links: object) -> None:
        with RawServer(page({"id": "a"}, _links=links)) as server:
            assert ids(connect(server.url).iter_calls()) == ["a"]
        assert server.paths == ["/calls"]

    @pytest.mark.parametrize("href", ["?page=2", "/calls?page=2", "calls?page=2", "{url}/calls?page=2"])
    @pytest.mark.parametrize("prefix", ["", "/api/v1"])
    def test_a_link_is_followed_below_the_base_url(self, connect: Connect, href: str, prefix: str) -> None:
        with RawServer() as server:
            base = server.url + prefix
            link = {"next": {"href": href.format(url=base)}}
            server.responses += [page({"id": "a"}, _links=link), page({"id": "b"})]
            assert ids(connect(base).iter_calls()) == ["a", "b"]
        assert server.paths == [f"{prefix}/calls", f"{prefix}/calls?page=2"]

    @pytest.mark.parametrize(
        "href",
        [
            "/calls/abc/recording",
            "calls/abc/recording",
            "/calls/%61bc/recording",
            "/calls/abc%2Frecording",
            "/calls/../calls/abc/recording",
            "/calls/abc/recording?page=2",
            "/calls/",
            "/account-info",
            "//127.0.0.1:9/calls",
            "https://127.0.0.1/calls",
            "http://127.0.0.1:9/calls",
            "http://api.example.com/calls",
            "file:///etc/hostname",
            "http://[oops/calls",
            "http://127.0.0.1:port/calls",
            7,
            ["/calls"],
        ],
    )
    def test_a_link_that_leads_elsewhere_is_refused(self, connect: Connect, href: object) -> None:
        with RawServer(page({"id": "a"}, _links={"next": {"href": href}})) as server:
            calls = connect(server.url).iter_calls()
            assert next(calls) == {"id": "a"}
            with pytest.raises(AmplemarketAPIError, match="link to the next page"):
                next(calls)
        assert server.paths == ["/calls"]

    def test_a_link_to_a_recording_on_the_own_host_costs_no_permit(self, connect: Connect) -> None:
        calls = make_calls(1, end=END)
        with Sandbox(calls=calls) as sandbox:
            link = {"next": {"href": f"{sandbox.url}/calls/{calls[0]['id']}/recording"}}
            with RawServer(page(_links=link)) as server, pytest.raises(AmplemarketAPIError, match="elsewhere"):
                list(connect(server.url).iter_calls())
            assert sandbox.log == []

    def test_pages_that_never_end_are_given_up(self, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "MAX_PAGES", 3)
        with (
            Sandbox(calls=make_calls(40, end=END), page_size=5) as sandbox,
            pytest.raises(AmplemarketAPIError, match=r"do not end \(3 read\)"),
        ):
            list(connect(sandbox.url).iter_calls())
        assert len(sandbox.log) == 3

    @pytest.mark.parametrize("body", [b"[" * 200_000, b"\xff\xfe", b"null", b"[]", b'{"calls": null}', b"{}"])
    def test_json_of_another_shape_is_an_error(self, connect: Connect, body: bytes) -> None:
        with RawServer(raw(body)) as server, pytest.raises(AmplemarketAPIError, match="GET /calls: the response"):
            list(connect(server.url).iter_calls())

    def test_a_wait_is_logged_without_the_key(self, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
        with Sandbox() as sandbox, caplog.at_level(logging.DEBUG):
            sandbox.list_faults.extend(["echo-key", "too-many-5"])
            list(connect(sandbox.url).iter_calls())
        assert "trying again in 5 s" in caplog.text
        assert "internal_server_error" in caplog.text
        assert KEY not in caplog.text
