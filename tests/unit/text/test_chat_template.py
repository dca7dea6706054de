"""Chat templates render as transformers renders them, and no further than the sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import CheckpointError, EngineError
from edgekit.text import chat_template as module
from edgekit.text import template_limits
from edgekit.text.chat_template import ChatTemplate

TINY = Path(__file__).parents[3] / "examples" / "edgekit-r1-tiny"
R1_DISTILL = (Path(__file__).parent / "fixtures" / "r1_distill.jinja").read_text(encoding="utf-8")
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
CALL = {"type": "function", "function": {"name": "read", "arguments": '{"rail": "GPU"}'}}
CALL_TEXT = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>read\n"
    '```json\n{"rail": "GPU"}\n```<｜tool▁call▁end｜>'
)
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is 2+2?"}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": " hi\n"},
        {"role": "assistant", "content": "<think>\nsecret</think>\n\nHello"},
        {"role": "user", "content": "again 中 <b>&"},
    ],
    [
        {"role": "user", "content": "power?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "12 W"},
        {"role": "tool", "content": "13 W"},
        {"role": "assistant", "content": "25 W"},
    ],
    [{"role": "user", "content": "power?"}, {"role": "tool", "content": "12 W"}],
]
SOURCES = {
    "r1-distill": R1_DISTILL,
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "white space": "{% for m in messages %}\n  {% if loop.first %}\n  a\n  "
    "{% endif %}\n{% endfor %}",
    "loop control": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}x"
    "{% endfor %}",
    "generation": "{% set x = 'a' %}{% generation %}{% set x = 'b' %}\n b {{ x }}\n"
    "{% endgeneration %} {{ x }} c",
    "no tools": "{{ 'tools' if tools else 'none' }} {{ tools is none }} {{ documents is none }}",
    "undefined": "{{ missing }}|{{ enable_thinking is defined }}",
    "date": "{{ strftime_now('%Y') }}",
}


def _transformers(source: str | None, chat: list[dict[str, Any]], *, prompt: bool) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(TINY))
    rendered = tokenizer.apply_chat_template(
        chat, chat_template=source, tokenize=False, add_generation_prompt=prompt
    )
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS[:2])
def test_the_trained_checkpoint_renders_as_in_transformers(
    chat: list[dict[str, Any]],
    prompt: bool,  # noqa: FBT001
) -> None:
    """The committed checkpoint's own template gives the same prompt, to the character."""
    template = ChatTemplate.from_folder(TINY)
    assert template is not None
    ours = template.render(chat, add_generation_prompt=prompt)
    assert ours == _transformers(None, chat, prompt=prompt)
    assert ours.startswith(BOS)
    assert ours.endswith("<think>\n") is prompt


# transformers 5.23 drops a content of None before the template sees it, so CHATS[2] has its
# expected text below instead.
@pytest.mark.parametrize("chat", [CHATS[0], CHATS[1], CHATS[3]])
@pytest.mark.parametrize("name", SOURCES)
def test_renders_as_in_transformers(name: str, chat: list[dict[str, Any]]) -> None:
    """Settings and helpers agree with transformers on the features templates use."""
    template = ChatTemplate(SOURCES[name], {"bos_token": BOS, "eos_token": EOS})
    assert template.render(chat) == _transformers(SOURCES[name], chat, prompt=True)


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (0, f"{BOS}<｜User｜>What is 2+2?<｜Assistant｜><think>\n"),
        (
            1,
            (
                f"{BOS}Be brief.\n<｜User｜> hi\n<｜Assistant｜>\n\nHello{EOS}"
                "<｜User｜>again 中 <b>&<｜Assistant｜><think>\n"
            ),
        ),
        (
            2,
            (
                f"{BOS}<｜User｜>power?<｜Assistant｜><｜tool▁calls▁begin｜>{CALL_TEXT}\n{CALL_TEXT}"
                f"<｜tool▁calls▁end｜>{EOS}<｜tool▁outputs▁begin｜>"
                "<｜tool▁output▁begin｜>12 W<｜tool▁output▁end｜>\n"
                "<｜tool▁output▁begin｜>13 W<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
                f"25 W{EOS}<｜Assistant｜><think>\n"
            ),
        ),
        (
            3,
            (
                f"{BOS}<｜User｜>power?<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>12 W"
                "<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
            ),
        ),
    ],
)
def test_r1_distill_prompts(chat: int, expected: str) -> None:
    """R1-Distill prompts are as DeepSeek's template writes them."""
    assert ChatTemplate(R1_DISTILL, {"bos_token": BOS}).render(CHATS[chat]) == expected


def test_variables_reach_the_template() -> None:
    """Switches such as enable_thinking are passed on."""
    template = ChatTemplate("{{ 'think' if enable_thinking else 'no' }} {{ tools[0].name }}")
    assert template.render([], tools=[{"name": "t"}], enable_thinking=True) == "think t"


def test_where_a_template_is_read_from(tmp_path: Path) -> None:
    """The .jinja file goes first; named templates are picked by name; none is None."""
    assert ChatTemplate.from_folder(tmp_path) is None
    named = [{"name": "default", "template": "A"}, {"name": "rag", "template": "R"}]
    config = {"chat_template": named, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    rag = ChatTemplate.from_folder(tmp_path, "rag")
    assert rag is not None
    assert rag.render([]) == "R"
    assert rag.tokens == {"bos_token": "<s>"}
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}J")
    default = ChatTemplate.from_folder(tmp_path)
    assert default is not None
    assert default.render([]) == "<s>J"


def test_an_unknown_name_lists_the_known_ones() -> None:
    """Asking for a template that is not there names those that are."""
    with pytest.raises(CheckpointError, match=r"'rag'\. It has: default"):
        ChatTemplate.from_config({"chat_template": "x"}, "rag")
    with pytest.raises(CheckpointError, match="neither"):
        ChatTemplate.from_config({"chat_template": 7})


def test_a_template_can_refuse() -> None:
    """raise_exception and missing fields give one error with the template's own words."""
    with pytest.raises(EngineError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([])
    with pytest.raises(EngineError, match="does not accept these messages"):
        ChatTemplate("{{ messages[0]['content'] + 'x' }}").render([{"role": "user"}])


def test_a_mistake_in_a_template_is_the_checkpoints() -> None:
    """A syntax error is found when the template is read, not at the first prompt."""
    with pytest.raises(CheckpointError, match="mistake"):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ 'a' * 100000000 }}",
        "{{ [1] * 100000000 }}",
        "{{ 10 ** 100000000 }}",
        "{% for i in range(100000000) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    """Internals, mutation and runaway sizes end in an error."""
    with pytest.raises(EngineError):
        ChatTemplate(source).render([])


def test_sizes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template too long to compile and a prompt too long to hold are refused."""
    monkeypatch.setattr(module, "MAX_RENDERED_CHARS", 100)
    template = ChatTemplate("{% for i in range(60) %}xx{% endfor %}")
    with pytest.raises(EngineError, match="more than 100 characters"):
        template.render([])
    monkeypatch.setattr(module, "MAX_TEMPLATE_CHARS", 10)
    with pytest.raises(CheckpointError, match="more than the 10"):
        ChatTemplate("{{ 'a longer template' }}")


def test_only_plain_data_enters_the_sandbox() -> None:
    """An object with methods is refused rather than handed to a checkpoint's program."""
    with pytest.raises(EngineError, match="plain JSON"):
        ChatTemplate("x").render([{"role": "user", "content": Path()}])


ENDLESS = {
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops over messages": "{% for a in 'x' * 100000 %}{% for b in 'x' * 100000 %}{% endfor %}"
    "{% endfor %}",
    "recursive macro": "{% macro f(n) %}{% if n %}{% set x = f(n - 1) %}{% set y = f(n - 1) %}"
    "{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{% for a in range(9999) %}{% set x = range(99999) | list | sort %}{% endfor %}",
    "doubled list": "{% set s = namespace(x=[1]) %}{% for a in range(60) %}"
    "{% set s.x = s.x + s.x %}{% endfor %}",
    "doubled string": "{% set s = namespace(x='1') %}{% for a in range(60) %}"
    "{% set s.x = s.x + s.x %}{% endfor %}",
    "doubled by ~": "{% set s = namespace(x='1') %}{% for a in range(60) %}"
    "{% set s.x = s.x ~ s.x %}{% endfor %}",
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.timeout(30)
def test_work_is_limited(name: str) -> None:
    """A template that works without end is stopped, though it writes nothing."""
    with pytest.raises(EngineError, match=r"it takes more than|it joins strings to"):
        ChatTemplate(ENDLESS[name]).render(CHATS[0])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('%1500000000d' % 1) | length }}",
        "{{ ('%*d' % (1500000000, 1)) | length }}",
        "{{ ('%1500000000d' | format(1)) | length }}",
        "{{ '{:>1500000000}'.format(1) | length }}",
        "{{ '{:>{}}'.format(1, 1500000000) | length }}",
        "{{ 'a'.ljust(1500000000) | length }}",
        "{{ 'a' | center(1500000000) | length }}",
        "{{ 'a\nb' | indent(1500000000) | length }}",
        "{{ '\t'.expandtabs(1500000000) | length }}",
        "{{ ('a' * 100000).replace('a', 'b' * 100000) | length }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) | length }}",
    ],
)
def test_padding_is_limited(source: str) -> None:
    """What pads or repeats a string to gigabytes is refused before it does."""
    with pytest.raises(EngineError, match=r"makes \d+ characters|formats with a width"):
        ChatTemplate(source).render(CHATS[0])


def test_padding_within_limits_is_jinja_s_own() -> None:
    """Formats, padding and replacements of ordinary length work as ever."""
    source = (
        "{{ '%5d' % 3 }}|{{ 7 % 4 }}|{{ '%s-%d' | format('a', 3) }}|{{ '{}-{:>3}'.format('a', 1) }}"
        "|{{ 'a' | center(5) }}|{{ 'x\ny' | indent(2) }}|{{ 'aba' | replace('a', 'cc') }}"
        "|{{ 'aba'.replace('a', '', 1) }}"
    )
    shown = ChatTemplate(source).render(CHATS[0])
    assert shown == "    3|3|a-3|a-  1|  a  |x\n  y|ccbcc|ba"


def test_a_rendering_does_not_count_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one rendering's, and a chat of a hundred turns is far below it."""
    monkeypatch.setattr(template_limits, "MAX_STEPS", 500)
    template = ChatTemplate(R1_DISTILL, {"bos_token": BOS})
    for _ in range(20):
        template.render(CHATS[1] * 20)


def test_concatenation_is_jinja_s_own() -> None:
    """Joining with ~ writes numbers, none and undefined values as jinja2 does."""
    source = "{{ 1 ~ 'a' ~ none ~ missing ~ (2 ~ 3) ~ true }}"
    assert ChatTemplate(source).render(CHATS[0]) == "1aNone23True"
