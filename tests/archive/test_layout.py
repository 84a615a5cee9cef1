"""Every call has one place below the root, whatever the API says of it, and is found there again."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_provider_amplemarket.archive.layout import DEFAULT_KEY, FIELDS, Layout, Place
from airflow_provider_amplemarket.calls import Call
from airflow_provider_amplemarket.exceptions import AmplemarketConfigurationError

ID = "0190c5d8-1111-4222-8333-444455556666"
CALL: Call = {
    "id": ID,
    "from": "+15550100",
    "to": "+44 20 7946 0000",
    "direction": "outbound",
    "duration": 61,
    "answered": True,
    "human": False,
    "start_date": "2026-11-20T23:30:08-05:00",
    "external": False,
    "disposition_id": None,
    "disposition_name": "Call back / later",
    "user_id": "u-7",
    "user_email": "anna@example.com",
}


def test_by_default_recordings_lie_by_date_in_utc() -> None:
    assert Layout().place(CALL) == Place(f"date=2026-11-21/{ID}.mp3", f"date=2026-11-21/{ID}.json", "date=2026-11-21")


@pytest.mark.parametrize("start", [{}, {"start_date": None}, {"start_date": "soon"}, {"start_date": 7}])
@pytest.mark.parametrize("key", [DEFAULT_KEY, "{id}.mp3", "{user_id}/{start_date:%Y}/{id}.mp3"])
def test_calls_without_a_date_lie_together(start: dict[str, Any], key: str) -> None:
    place = Layout(key).place({"id": ID, **start})
    assert place == Place(f"undated/{ID}.mp3", f"undated/{ID}.json", "undated")


def test_the_place_before_the_date_was_known_is_known() -> None:
    assert Layout("{id}").undated(CALL) == Layout("{id}").place({"id": ID})


@pytest.mark.parametrize(
    ("key", "audio", "sidecar", "folder"),
    [
        ("{id}", ID, f"{ID}.json", ""),
        ("{id}.mp3", f"{ID}.mp3", f"{ID}.json", ""),
        ("a/b/{id}.tar.mp3", f"a/b/{ID}.tar.mp3", f"a/b/{ID}.tar.json", "a/b"),
        ("{id}/audio.mp3", f"{ID}/audio.mp3", f"{ID}/audio.json", ""),
        ("a/{id}/{id}.mp3", f"a/{ID}/{ID}.mp3", f"a/{ID}/{ID}.json", "a"),
        ("{id}/{id}.mp3", f"{ID}/{ID}.mp3", f"{ID}/{ID}.json", ""),
        ("{id}/{user_id}", f"{ID}/u-7", f"{ID}/u-7.json", ""),
        ("{start_date:%Y/%m/%d}/{id}.mp3", f"2026/11/21/{ID}.mp3", f"2026/11/21/{ID}.json", "2026/11/21"),
        (
            "{start_date}/{id}.mp3",
            f"2026-11-21T04:30:08+00:00/{ID}.mp3",
            f"2026-11-21T04:30:08+00:00/{ID}.json",
            "2026-11-21T04:30:08+00:00",
        ),
        ("{user_email}/{id}.mp3", f"anna@example.com/{ID}.mp3", f"anna@example.com/{ID}.json", "anna@example.com"),
        ("{to}/{id}.mp3", f"+44_20_7946_0000/{ID}.mp3", f"+44_20_7946_0000/{ID}.json", "+44_20_7946_0000"),
        ("{disposition_name}/{id}", f"Call_back___later/{ID}", f"Call_back___later/{ID}.json", "Call_back___later"),
        ("{disposition_id}/{task_id}/{id}", f"unknown/unknown/{ID}", f"unknown/unknown/{ID}.json", "unknown/unknown"),
        ("{answered}-{human}-{duration}/{id}", f"true-false-61/{ID}", f"true-false-61/{ID}.json", "true-false-61"),
        ("{{x}}/{id}.mp3", f"{{x}}/{ID}.mp3", f"{{x}}/{ID}.json", "{x}"),
        ("x={id}.mp3", f"x={ID}.mp3", f"x={ID}.json", ""),
        ("{id}{{{user_id}.mp3", f"{ID}{{u-7.mp3", f"{ID}{{u-7.json", ""),
        ("{{{id}}}.mp3", f"{{{ID}}}.mp3", f"{{{ID}}}.json", ""),
        ("{direction}{user_id}/{id}", f"outboundu-7/{ID}", f"outboundu-7/{ID}.json", "outboundu-7"),
    ],
)
def test_a_key_is_made_of_the_call_s_fields(key: str, audio: str, sidecar: str, folder: str) -> None:
    place = Layout(key).place(CALL)
    assert place == Place(audio, sidecar, folder)
    assert Layout(key).find([ID], [audio]) == {ID: [place]}


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("", "unknown"),
        (".", "unknown"),
        ("..", "unknown"),
        ("../../etc", ".._.._etc"),
        ("/root", "_root"),
        ("a\\b", "a_b"),
        ("a\nb\x00c", "a_b_c"),
        ("ä", "_"),
        ("{id}", "_id_"),
        ("x" * 500, "x" * 128),
        ("." * 500, "unknown"),
        (["a"], "__a__"),
        (0, "0"),
        (False, "false"),
        (1.5, "1.5"),
    ],
)
def test_what_is_not_plain_in_a_value_is_replaced(value: object, part: str) -> None:
    assert Layout("{direction}/{id}.mp3").place({**CALL, "direction": value}).audio == f"{part}/{ID}.mp3"


@pytest.mark.parametrize("call_id", [None, "", "..", "a/b", "a b", 7, "x" * 129, "a\n"], ids=ascii)
def test_a_call_without_a_plain_id_has_no_place(call_id: object) -> None:
    for place in (Layout().place, Layout().undated):
        with pytest.raises(ValueError, match="not a plain token"):
            place({**CALL, "id": call_id})


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, "cannot be used"),
        (7, "cannot be used"),
        ("", r"must contain \{id\}"),
        ("recordings.mp3", r"must contain \{id\}"),
        ("{{id}}.mp3", r"must contain \{id\}"),
        ("{id", "expected '}'"),
        ("id}", "Single '}'"),
        ("{}/{id}", "is not a field of a call"),
        ("{0}/{id}", "is not a field of a call"),
        ("{transcript}/{id}", "is not a field of a call"),
        ("{id.__class__}/{id}", "is not a field of a call"),
        ("{from[0]}/{id}", "is not a field of a call"),
        ("{id!r}", "only start_date takes a format"),
        ("{start_date!s}/{id}", "only start_date takes a format"),
        ("{id:>9}", "only start_date takes a format"),
        ("{start_date:{id}}/{id}", "only start_date takes a format"),
        ("{user_id}{id}.mp3", r"; write \{user_id\}/\{id\}$"),
        ("{id}{duration}.mp3", r"; write \{id\}/\{duration\}$"),
        ("{start_date:%Y-%m-%d}{id}.mp3", r"; write \{start_date:%Y-%m-%d\}/\{id\}$"),
        ("{start_date:%Y/}{id}", r"; write \{start_date:%Y\}/\{id\}$"),
        ("{id}{start_date:-%Y}", r"; write \{id\}/\{start_date:%Y\}$"),
        ("{start_date:/}{id}", r"; write \{start_date\}/\{id\}$"),
        ("{id}/{user_id}{id}", r"; write \{user_id\}/\{id\}$"),
        ("{id}.json", "the sidecars"),
        ("{id}.JSON", "the sidecars"),
        ("/{id}.mp3", "not a relative path"),
        ("a//{id}.mp3", "not a relative path"),
        ("a/./{id}.mp3", "not a relative path"),
        ("../{id}.mp3", "not a relative path"),
        ("{id}/", "not a relative path"),
        ("s3://bucket/{id}.mp3", "not a relative path"),
        ("a\\{id}.mp3", "not a relative path"),
        ("a\n/{id}.mp3", "not a relative path"),
        ("{id}.mp3\n", "not a relative path"),
    ],
    ids=ascii,
)
def test_a_key_that_cannot_work_is_refused(key: Any, why: str) -> None:
    with pytest.raises(AmplemarketConfigurationError, match=f"^key=.* cannot be used: .*{why}|^key={key!r} {why}"):
        Layout(key)


@pytest.mark.parametrize(
    ("refused", "better"),
    [
        ("{start_date:%Y/}{id}", "{start_date:%Y}/{id}"),
        ("{id}{start_date:_%Y_}", "{id}/{start_date:%Y}"),
        ("{start_date:/}{id}", "{start_date}/{id}"),
        ("{user_id}{id}", "{user_id}/{id}"),
    ],
)
def test_what_is_proposed_instead_of_a_refused_key_can_be_used(refused: str, better: str) -> None:
    with pytest.raises(AmplemarketConfigurationError) as problem:
        Layout(refused)
    assert str(problem.value).rpartition("write ")[2] == better
    assert ID in Layout(better).place(CALL).audio


def test_the_known_fields_are_named_where_a_field_is_unknown() -> None:
    with pytest.raises(AmplemarketConfigurationError, match="direction, duration"):
        Layout("{who}/{id}")


@pytest.mark.parametrize(
    "audio",
    [
        "",
        ID,
        f"{ID}.mp3",
        f"date=2026-11-20/{ID}.mp3.part",
        "date=2026-11-20/a.b.mp3",
        "date=2026-11-20/.mp3",
        f"date=2026-11-20/{'x' * 129}.mp3",
        f"other/undated/{ID}.mp3",
        f"date=2026-11-20/{ID}.mp3\n",
    ],
)
def test_other_objects_are_no_recordings(audio: str) -> None:
    assert Layout().find([ID, "b"], [audio]) == {}


def test_a_sidecar_without_audio_is_found() -> None:
    place = Layout().place(CALL)
    assert Layout().find([ID], [place.sidecar]) == {ID: [place]}
    assert Layout().find([ID], [place.sidecar, place.audio]) == {ID: [place]}


def test_an_id_that_stands_twice_is_the_same_both_times() -> None:
    assert Layout("{id}/{id}.mp3").find(["a", "b"], ["a/b.mp3"]) == {}


@pytest.mark.parametrize("key", [DEFAULT_KEY, "{user_id}/{id}.mp3"])
def test_what_lies_undated_is_found(key: str) -> None:
    assert Layout(key).find([ID], [f"undated/{ID}.mp3"]) == {ID: [Layout(key).undated(CALL)]}


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("{start_date:%Y-%m-%d}-{id}.mp3", "direction", "outbound"),
        ("{disposition_name}-{id}.mp3", "disposition_name", "no-answer"),
        ("{user_id}_{id}.mp3", "user_id", "user_7"),
    ],
)
def test_a_recording_is_found_where_the_id_follows_another_field(key: str, field: str, value: str) -> None:
    place = Layout(key).place({**CALL, field: value})
    assert Layout(key).find(["other", ID], [place.audio]) == {ID: [place]}


plain_ids = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=128)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text(), max_size=2))
starts = st.one_of(st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"), st.none(), st.just("soon"))
calls = st.builds(
    lambda fields, start, call_id: {**fields, "start_date": start, "id": call_id},
    st.dictionaries(st.sampled_from(FIELDS), values),
    starts,
    plain_ids,
)
keys = st.sampled_from(
    [
        DEFAULT_KEY,
        "{id}",
        "{direction}/{id}.mp3",
        "{start_date:%Y/%m}/{from}.{to}/{id}.mp3",
        "{id}/{disposition_name}.mp3",
        ".{user_email}/{id}",
        "{id}/{id}-{task_id}.{human}",
    ]
)


@settings(deadline=None)
@given(keys, calls)
def test_no_call_leaves_the_archive(key: str, call: Call) -> None:
    place = Layout(key).place(call)
    for name in (place.audio, place.sidecar):
        assert name.isprintable()
        assert name.isascii()
        assert "\\" not in name
        assert not any(part in ("", ".", "..") for part in name.split("/"))
        assert name.startswith(f"{place.folder}/" if place.folder else "")
    assert place.audio != place.sidecar
    # Many calls share a folder, because each is listed.
    assert Layout(key).place({**call, "id": f"{call['id'][:9]}x"}).folder == place.folder


@settings(deadline=None)
@given(keys, calls)
def test_every_recording_is_found_again(key: str, call: Call) -> None:
    place = Layout(key).place(call)
    assert Layout(key).find([call["id"]], [place.audio]) == {call["id"]: [place]}
    undated = Layout(key).undated(call)
    assert Layout(key).find([call["id"]], [undated.audio]) == {call["id"]: [undated]}


@settings(deadline=None)
@given(keys, calls, calls)
def test_no_two_calls_share_a_place(key: str, one: Call, other: Call) -> None:
    assume(one["id"] != other["id"])
    places = [Layout(key).place(one), Layout(key).place(other)]
    assert len({name for place in places for name in (place.audio, place.sidecar)}) == 4


literals = st.text("/-_.=ab{}", max_size=3).map(lambda text: text.replace("{", "{{").replace("}", "}}"))
fields = st.sampled_from(["{id}", *(f"{{{name}}}" for name in FIELDS), "{start_date:%Y/%m}"])
any_keys = st.lists(st.tuples(literals, fields), min_size=1, max_size=4).map(
    lambda parts: "".join(literal + field for literal, field in parts) + ".mp3"
)
#: Values that look like parts of ids, so that a name could be read in two ways.
tricky = st.text("01234567-_abcdef", max_size=4) | st.integers(0, 99)
tricky_calls = st.builds(
    lambda fields, start, call_id: {**fields, "start_date": start, "id": str(call_id)},
    st.dictionaries(st.sampled_from(FIELDS), tricky),
    starts,
    st.uuids(),
)


@pytest.mark.no_cover
@settings(deadline=None, max_examples=500)
@given(any_keys, tricky_calls, tricky_calls)
def test_no_two_calls_with_uuids_share_a_place_whatever_the_key(key: str, one: Call, other: Call) -> None:
    assume(one["id"] != other["id"])
    try:
        layout = Layout(key)
    except AmplemarketConfigurationError:
        return
    places = [layout.place(one), layout.place(other)]
    assert len({name for place in places for name in (place.audio, place.sidecar)}) == 4


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ("{duration}{id}.mp3", {"id": "1-a", "duration": 1}, {"id": "11-a", "duration": ""}),
        ("{user_id}{id}.mp3", {"id": "c", "user_id": "ab"}, {"id": "bc", "user_id": "a"}),
        ("{id}{duration}.mp3", {"id": "a", "duration": 12}, {"id": "a1", "duration": 2}),
    ],
)
def test_a_key_that_could_give_two_calls_one_name_is_refused(key: str, one: Call, other: Call) -> None:
    with pytest.raises(AmplemarketConfigurationError, match="only text outside the braces"):
        Layout(key)
