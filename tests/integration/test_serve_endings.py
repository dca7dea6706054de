"""Where answers end, and how their text is told: vLLM's fields of load generators, plain texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serve_cases import NAME, SUM, build_example, served, settle

from device.api.service import Service

SAID = "58 + 67 = 125"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    with served(build_example(tmp_path_factory.mktemp("serve"))) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as made:
        yield made
    settle(server[1])


def _ask(client: openai.OpenAI, body: dict[str, Any], **more: Any) -> Any:
    values: dict[str, Any] = {"model": NAME, "messages": SUM, "temperature": 0, **more}
    return client.chat.completions.create(**values, extra_body=body)


def test_an_answer_goes_on_behind_its_end(client: openai.OpenAI) -> None:
    """With ignore_eos it has as many tokens as are asked for, end tokens among them, unseen."""
    ended = _ask(client, {}, max_tokens=120)
    assert ended.choices[0].finish_reason == "stop"
    count = ended.usage.completion_tokens
    assert count < 100
    done = _ask(client, {"ignore_eos": True}, max_tokens=120)
    assert done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 120
    text = done.choices[0].message.content
    assert text.startswith(SAID)
    assert "<｜end" not in text
    stream = _ask(
        client,
        {"ignore_eos": True},
        max_tokens=120,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = stream
    assert last.usage.completion_tokens == 120
    assert all(chunk.usage is None for chunk in chunks)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == text


def test_usage_may_be_told_all_along(client: openai.OpenAI) -> None:
    """With vLLM's option each chunk says what it took so far, and the last what it took."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(_ask(client, {}, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == _ask(client, {}).usage.completion_tokens
    texts = list(
        client.completions.create(
            model=NAME, prompt="To be", max_tokens=5, stream=True, stream_options=options
        )
    )
    assert [text.usage and text.usage.completion_tokens for text in texts][-1] == 5
    assert all(text.usage for text in texts)


def test_an_answer_does_not_end_before_its_time(client: openai.OpenAI) -> None:
    """With min_tokens end tokens cannot be chosen, and stop strings do nothing until then."""
    count = _ask(client, {}).usage.completion_tokens
    same = _ask(client, {"min_tokens": count})
    assert (same.choices[0].message.content, same.usage.completion_tokens) == (SAID, count)
    longer = _ask(client, {"min_tokens": count + 5}, max_tokens=120)
    assert longer.usage.completion_tokens >= count + 5
    assert longer.choices[0].message.content.startswith(SAID)
    stopped = _ask(client, {"min_tokens": count}, stop=["carry", "8"])
    assert stopped.choices[0].message.content == SAID
    both = _ask(client, {"min_tokens": 7, "ignore_eos": True}, max_tokens=9)
    assert both.usage.completion_tokens == 9


def test_a_stop_string_is_found_once_there_are_enough(client: openai.OpenAI) -> None:
    """The text of the first tokens is not searched, what follows is."""
    reasoning = _ask(client, {}, logprobs=True)
    tokens = [token.token for token in reasoning.choices[0].logprobs.content]
    first = next(index for index, token in enumerate(tokens) if token in tokens[index + 1 :])
    done = _ask(client, {"min_tokens": first + 1}, stop=[tokens[first]])
    assert first + 1 < done.usage.completion_tokens < len(tokens)


def test_a_continuation_is_the_model_s_own_text(
    client: openai.OpenAI, server: tuple[str, Service]
) -> None:
    """Tags of reasoning stay in it, whole and streamed: what is sent back goes on from there."""
    template = server[1].model.template
    assert template is not None
    prompt = template.render(SUM)
    asked: dict[str, Any] = {"model": NAME, "prompt": prompt, "temperature": 0, "max_tokens": 100}
    chat = _ask(client, {}).choices[0].message
    expected = f"{chat.model_extra['reasoning']}</think>\n\n{SAID}"
    assert client.completions.create(**asked).choices[0].text == expected
    stream = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_offsets_of_tokens_count_on_through_a_stream(
    client: openai.OpenAI, server: tuple[str, Service]
) -> None:
    """Each token stands at its offset, whole and streamed, in characters that tokens share, too."""
    encode = server[1].model.tokenizer.encode
    bias = dict.fromkeys(map(str, encode("中é€")), 100)  # bytes of characters, in any order
    split: dict[str, Any] = {"logit_bias": bias, "seed": 3, "temperature": 1}
    template = server[1].model.template
    assert template is not None
    beyond: dict[str, Any] = {
        "prompt": template.render(SUM),
        "max_tokens": 90,
        "extra_body": {"ignore_eos": True},
    }
    asked: dict[str, Any] = {"model": NAME, "prompt": "To be", "temperature": 0, "max_tokens": 12}
    for more in ({}, split, beyond):
        asked = {**asked, "logit_bias": {}, "temperature": 0, "logprobs": 1, **more}
        choice = client.completions.create(**asked).choices[0]
        assert choice.logprobs is not None
        offsets, tokens = choice.logprobs.text_offset or [], choice.logprobs.tokens or []
        assert len(offsets) == asked["max_tokens"]
        assert ("\ufffd" in "".join(tokens)) is (more is split)
        assert any(map(server[1].model.tokenizer.is_special, tokens)) is (more is beyond)
        for offset, token in zip(offsets, tokens, strict=True):
            hidden = "\ufffd" in token or server[1].model.tokenizer.is_special(token)
            assert hidden or choice.text[offset:].startswith(token)
            assert offset <= len(choice.text)
        streamed = [
            offset
            for chunk in client.completions.create(**asked, stream=True)
            if chunk.choices[0].logprobs is not None
            for offset in chunk.choices[0].logprobs.text_offset or []
        ]
        assert streamed == offsets
