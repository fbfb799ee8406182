"""The client's decisions: what it sends, what it makes of what comes, how it goes on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.client import ChatOptions, Chunk, GenerateOptions, asked, http
from baton.client.answer import Answer, Logprob
from baton.client.course import Attempt, Course
from baton.client.gateways import Gateways, Tries
from baton.deadlines import UNLIMITED, Deadlines
from baton.errors import (
    TABLE,
    AnswerFinished,
    BatonError,
    CapacityError,
    DeadlineExceeded,
    GatewayLost,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    UnsupportedParameter,
    from_code,
    from_openai,
)

A, B = "http://a:8000", "http://b:8000"


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tries(
    *urls: str, clock: Clock, patience: float = 10.0, deadline: float = math.inf
) -> tuple[Tries, Gateways]:
    gateways = Gateways(urls or (A, B), random.Random(0))
    made = Tries(gateways, patience=patience, deadline=deadline, clock=clock, rng=random.Random(0))
    return made, gateways


class TestAsked:
    def test_names_are_those_of_the_frameworks(self) -> None:
        made = asked.generate(
            [1, 2], GenerateOptions(max_new_tokens=5, min_new_tokens=2, logit_bias={7: 1.0}, n=3)
        )
        assert made.path == "/v1/completions"
        assert made.body["prompt"] == [1, 2]
        assert made.body["max_tokens"] == 5
        assert made.body["min_tokens"] == 2
        assert made.body["logit_bias"] == {"7": 1.0}
        assert made.n == made.body["n"] == 3
        assert made.body["stream"] is made.body["return_token_ids"] is True

    def test_a_text_is_a_message(self) -> None:
        made = asked.chat("hi", ChatOptions(logprobs=2, session="s"))
        assert made.path == "/v1/chat/completions"
        assert made.body["messages"] == [{"role": "user", "content": "hi"}]
        assert (made.body["logprobs"], made.body["top_logprobs"]) == (True, 2)
        assert made.headers == {"X-Baton-Session": "s"}

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"max_tokens": 3}, "'max_tokens' is not an option; did you mean 'max_new_tokens'?"),
            ({"tools": []}, "'tools' is not an option"),
            ({"beam": 4}, "'beam' is not an option"),
        ],
    )
    def test_unknown_options_are_refused_by_name(self, options: Any, says: str) -> None:
        with pytest.raises(UnsupportedParameter, match="^" + says.replace("?", r"\?")):
            asked.generate("hi", options)

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": math.nan},
            {"stop": {1, 2}},
            {"deadlines": {"lunch": 3.0}},
            {"deadlines": {"total": 0.0}},
            {"deadline": -1.0},
        ],
    )
    def test_what_cannot_be_sent_is_refused(self, options: Any) -> None:
        with pytest.raises(InvalidRequest):
            asked.generate("hi", options)

    def test_deadlines_that_were_given_are_sent_and_no_others(self) -> None:
        some = asked.generate("hi", {"deadlines": {"first_token": 5.0}, "deadline": 60.0})
        assert some.phases_left(2.0, started=False) == {"first_token": 3.0, "total": 58.0}
        assert some.phases_left(20.0, started=True) == {"total": 40.0}
        whole = Deadlines(**{**asked.fields(UNLIMITED), "queue": 4.0})
        assert asked.generate("hi", {"deadlines": whole}).phases_left(1.0, started=False) == {
            "queue": 4.0
        }
        assert asked.generate("hi", {}).phases_left(1.0, started=False) == {}


class TestTries:
    def test_another_gateway_is_asked_at_once(self) -> None:
        clock = Clock()
        made, _ = tries(A, B, clock=clock)
        first = made.next()
        made.failed(first.url, GatewayLost("gone"))
        second = made.next()
        assert {first.url, second.url} == {A, B}
        assert (first.wait, second.wait) == (0.0, 0.0)
        made.failed(second.url, GatewayLost("gone, too"))
        assert 0.0 < made.next().wait <= 0.2

    def test_it_stays_with_the_gateway_that_got_on(self) -> None:
        clock = Clock()
        made, _ = tries(A, B, clock=clock)
        first = made.next()
        made.failed(first.url, GatewayLost("gone"))
        second = made.next()
        made.got_on(second.url)
        clock.now += 100.0
        assert made.next() == second

    def test_retry_after_is_waited_for(self) -> None:
        clock = Clock()
        made, _ = tries(A, clock=clock)
        made.failed(A, QueueFull("full", retry_after=4.0))
        assert 4.0 <= made.next().wait <= 5.0
        clock.now += made.next().wait
        assert made.next().wait == 0.0

    def test_it_gives_up_when_its_patience_would_end_first(self) -> None:
        clock = Clock()
        made, _ = tries(A, clock=clock)
        with pytest.raises(QueueFull, match="full") as told:
            made.failed(A, QueueFull("full", retry_after=11.0))
        assert told.value.retry_after == 11.0

    def test_patience_counts_from_the_first_failure_without_a_token(self) -> None:
        clock = Clock()
        made, _ = tries(A, clock=clock)
        clock.now += 100.0  # a long prompt
        made.failed(A, GatewayLost("one"))
        clock.now += 9.0
        made.got_on(A)
        made.failed(A, GatewayLost("two"))
        with pytest.raises(GatewayLost, match="three"):
            for _ in range(100):
                clock.now += 1.0
                made.failed(A, GatewayLost("three"))
        assert 1114.0 <= clock.now <= 1119.0, "by then a pause of up to 5 s would be too long"

    def test_what_another_try_cannot_mend_is_raised_at_once(self) -> None:
        made, _ = tries(A, B, clock=Clock())
        with pytest.raises(ModelNotFound):
            made.failed(made.next().url, ModelNotFound("no such model"))

    def test_the_deadline_ends_it_and_names_itself(self) -> None:
        clock = Clock()
        made, _ = tries(A, B, clock=clock, deadline=3.0)
        clock.now += 3.0
        with pytest.raises(DeadlineExceeded, match="'total': 3 s"):
            made.failed(A, GatewayLost("cut"))

    def test_calls_begin_with_gateways_that_were_reached(self) -> None:
        clock = Clock()
        gateways = Gateways([A, [B]], random.Random(0))

        def call() -> Tries:
            return Tries(
                gateways, patience=9.0, deadline=math.inf, clock=clock, rng=random.Random(0)
            )

        assert {call().next().url for _ in range(2)} == {A, B}, "in turn"
        gateways.lost(A, clock.now)
        assert {call().next().url for _ in range(4)} == {B}
        clock.now += 10.0
        assert {call().next().url for _ in range(2)} == {A, B}

    @pytest.mark.parametrize("url", ["a:8000", "ftp://a", "http://", "http://a?x=1", ""])
    def test_what_is_no_gateway_is_refused(self, url: str) -> None:
        with pytest.raises(InvalidRequest, match="URL of a gateway"):
            Gateways([url], random.Random())

    def test_urls_as_openais_clients_take_them(self) -> None:
        assert Gateways(["http://a:8000/v1/"], random.Random()).urls == (A,)
        with pytest.raises(InvalidRequest, match="no gateway"):
            Gateways([[]], random.Random())


class FakeGateway:
    """Says an answer as a gateway does, from where a request stands."""

    def __init__(self, n: int, length: int) -> None:
        self.n = n
        self._length = length

    def token(self, choice: int, index: int) -> int:
        return 1000 * choice + index

    def text(self, choice: int) -> str:
        return "".join(f"<{self.token(choice, i)}>" for i in range(self._length))

    def events(self, body: Any) -> Iterator[str]:
        resume = body.get("baton_resume")
        choices, had = range(self.n), 0
        if resume is not None:
            assert {"seed", "prompt_digest", "workers"} <= resume.keys()
            assert "n" not in body
            choices, had = (
                range(resume["choice"], resume["choice"] + 1),
                len(resume["generated_ids"]),
            )
            expected = [self.token(resume["choice"], i) for i in range(had)]
            assert resume["generated_ids"] == expected
            if had == self._length:
                raise AnswerFinished("finished", finish_reason="length", param="baton_resume")
        told = {"request_id": "r", "seed": 5, "prompt_digest": "d", "workers": "w"}
        yield self._event([{"index": choices[0], "text": ""}], baton=told, prompt_token_ids=[1] * 9)
        for index in range(had, self._length):
            for choice in choices:
                token = self.token(choice, index)
                said = {"index": choice, "text": f"<{token}>", "token_ids": [token]}
                yield self._event([said])
        for choice in choices:
            yield self._event([{"index": choice, "text": "", "finish_reason": "length"}])
        usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
        yield self._event([], usage=usage)
        yield "[DONE]"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return json.dumps({"model": "m", "choices": choices, **more})


def run(gateway: FakeGateway, cuts: list[int]) -> tuple[Answer, list[Chunk]]:
    """All of a call whose attempts are cut behind so many events."""
    clock = Clock()
    made, _ = tries(clock=clock)
    answer = Answer()
    wanted = asked.generate("hi", GenerateOptions(n=gateway.n))
    course = Course(wanted, "m", made, answer)
    seen: list[Chunk] = []
    left = iter(cuts)
    while (attempt := course.next()) is not None:
        clock.now += attempt.wait
        try:
            follow(gateway, attempt, course, seen, next(left, 10**9))
        except BatonError as error:
            seen += course.failed(error)
    return answer, seen


def follow(
    gateway: FakeGateway, attempt: Attempt, course: Course, seen: list[Chunk], cut: int
) -> None:
    for count, data in enumerate(gateway.events(attempt.body)):
        if count == cut:
            break
        seen += course.take(data)
    course.ended()


class TestCourse:
    @given(
        n=st.integers(1, 4), length=st.integers(1, 6), cuts=st.lists(st.integers(1, 40), max_size=8)
    )
    def test_wherever_it_is_cut_nothing_is_lost_or_repeated(
        self, n: int, length: int, cuts: list[int]
    ) -> None:
        gateway = FakeGateway(n, length)
        answer, seen = run(gateway, cuts)
        assert len(answer.choices) == n
        for choice in answer.choices:
            assert choice.text == gateway.text(choice.index)
            assert choice.tokens == [gateway.token(choice.index, i) for i in range(length)]
            assert choice.finish_reason == "length"
            mine = [chunk for chunk in seen if chunk.choice == choice.index]
            assert "".join(chunk.text for chunk in mine) == choice.text
            assert [c.finish_reason for c in mine if c.finish_reason] == ["length"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 9
        assert answer.usage.completion_tokens == n * length
        assert answer.seed == 5
        assert answer.resumed <= len(cuts)

    def test_what_ends_a_stream_before_its_first_chunk_sends_it_again_whole(self) -> None:
        gateway = FakeGateway(2, 3)
        answer, _ = run(gateway, [0, 0])
        assert answer.text == gateway.text(0)
        assert answer.resumed == 0

    def test_error_events_that_another_try_mends(self) -> None:
        made, _ = tries(clock=Clock())
        course = Course(asked.generate("hi", {}), "m", made, Answer())
        attempt = course.next()
        assert attempt is not None
        for event in list(FakeGateway(1, 4).events(attempt.body))[:3]:
            list(course.take(event))
        lost = from_code("no_worker", "all gone").to_openai()
        with pytest.raises(CapacityError, match="all gone") as error:
            list(course.take(json.dumps(lost)))
        list(course.failed(error.value))
        again = course.next()
        assert again is not None
        told = {"seed": 5, "prompt_digest": "d", "workers": "w"}
        had = {"choice": 0, "generated_ids": [0, 1]}
        assert again.body["baton_resume"] == told | had

    @pytest.mark.parametrize(("calls", "reason"), [([], "stop"), ([{"index": 0}], "tool_calls")])
    def test_an_end_that_was_not_heard(self, calls: list[dict[str, Any]], reason: str) -> None:
        made, _ = tries(clock=Clock())
        answer = Answer()
        course = Course(asked.chat("hi", {}), "m", made, answer)
        told = {"request_id": "r", "seed": 5, "prompt_digest": "d", "workers": "w"}
        said = {"index": 0, "delta": {"tool_calls": calls}, "token_ids": [7]}
        course.next()
        list(course.take(json.dumps({"model": "m", "baton": told, "choices": [said]})))
        list(course.failed(GatewayLost("cut")))
        course.next()
        ended = AnswerFinished("finished", finish_reason="stop", param="baton_resume")
        [chunk] = course.failed(ended)
        assert chunk.finish_reason == answer.finish_reason == reason
        assert course.next() is None

    @pytest.mark.parametrize("data", ["[]", "nonsense", "3"])
    def test_what_is_no_event_is_not_taken_for_one(self, data: str) -> None:
        made, _ = tries(clock=Clock())
        course = Course(asked.generate("hi", {}), "m", made, Answer())
        with pytest.raises(BatonError, match="no event"):
            list(course.take(data))

    def test_another_server_is_told_apart(self) -> None:
        made, _ = tries(clock=Clock())
        course = Course(asked.generate("hi", {}), "m", made, Answer())
        course.next()
        list(course.take('{"choices": [{"index": 0, "text": "hi"}]}'))
        list(course.take("[DONE]"))
        with pytest.raises(BatonError, match="no gateway of Baton's") as error:
            course.ended()
        with pytest.raises(BatonError, match="no gateway of Baton's"):
            list(course.failed(error.value))


def test_chats_and_completions_say_logprobs_each_in_their_way() -> None:
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.0}]
    chat = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": top}]}
    completion = {
        "tokens": ["a"],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"a": -0.1, "b": -2.0}],
    }
    expected = [Logprob("a", -0.1, (("a", -0.1), ("b", -2.0)))]
    for said in (chat, completion):
        answer = Answer()
        list(answer.add({"choices": [{"index": 0, "text": "a", "logprobs": said}]}))
        assert answer.logprobs == expected


def test_tool_calls_add_up() -> None:
    answer = Answer()
    parts: list[dict[str, Any]] = [
        {"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a": '}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "c2", "function": {"name": "now", "arguments": "{}"}},
    ]
    for part in parts:
        list(answer.add({"choices": [{"index": 0, "delta": {"tool_calls": [part]}}]}))
    calls = [(call.id, call.name, call.arguments) for call in answer.tool_calls]
    assert calls == [("c1", "add", '{"a": 1}'), ("c2", "now", "{}")]


@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_error_arrives_as_it_was_sent(code: str) -> None:
    error = from_code(code, "what went wrong")
    error.param = "seed"
    for name in error.details:
        kind = type(getattr(error, name))
        setattr(error, name, kind("7"))
    body = json.loads(json.dumps(error.to_openai()))
    back = from_openai(body)
    assert (type(back), back.message, back.param) == (type(error), "what went wrong", "seed")
    assert back.to_openai() == error.to_openai()


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (503, b"<html>no upstream</html>", "no_capacity"),
        (502, b"<html>bad gateway</html>", "gateway_lost"),
        (404, b"{}", "invalid_request"),
    ],
)
def test_answers_of_others_on_the_way(status: int, body: bytes, code: str) -> None:
    response = httpx.Response(status, content=body, headers={"Retry-After": "3"})
    error = http.refused(A, response)
    assert error.code == code
    assert str(status) in error.message
    if isinstance(error, CapacityError):
        assert error.retry_after == 3.0
