"""Topics: one grammar, both ways, and nothing outside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.topics import DOWN, TYPES, UP, WITH_ID, Device, Topic, up_filters
from edgekit.errors import MessageError

SEGMENTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@st.composite
def topics(draw: st.DrawFn) -> Topic:
    """Any topic of the grammar."""
    channel = draw(st.sampled_from((*UP, *DOWN)))
    kind = draw(st.sampled_from(TYPES[channel]) if channel in TYPES else SEGMENTS)
    device = Device(draw(SEGMENTS), draw(SEGMENTS))
    return Topic(device, channel, kind, draw(SEGMENTS) if channel in WITH_ID else None)


def matches(pattern: str, topic: str) -> bool:
    """Whether a filter without ``#`` matches, as MQTT 5 section 4.7 says."""
    wanted, have = pattern.split("/"), topic.split("/")
    return len(wanted) == len(have) and all(
        w in {"+", h} for w, h in zip(wanted, have, strict=True)
    )


@given(topics())
def test_topics_read_back(topic: Topic) -> None:
    """What is written is read as the same topic, and begins with the device's own path."""
    assert Topic.parse(str(topic)) == topic
    assert str(topic).startswith(f"ek/{topic.device.path}/")


@given(st.text(max_size=80) | st.lists(st.text(max_size=6) | SEGMENTS, max_size=8).map("/".join))
def test_what_is_read_is_written_alike(text: str) -> None:
    """A text is refused by name, or is the very text that its topic is written as."""
    try:
        topic = Topic.parse(text)
    except MessageError:
        return
    assert str(topic) == text


@given(topics())
def test_filters_match_one_direction(topic: Topic) -> None:
    """The cloud's filters match what devices publish, the device's what it is sent, each once."""
    up = [f for f in up_filters() if matches(f, str(topic))]
    own = [f for f in up_filters(topic.device.tenant) if matches(f, str(topic))]
    down = [f for f in topic.device.down_filters if matches(f, str(topic))]
    assert (len(up), len(own), len(down)) == ((1, 1, 0) if topic.channel in UP else (0, 0, 1))


@given(topics(), SEGMENTS)
def test_filters_are_the_devices_own(topic: Topic, other: str) -> None:
    """A device's filters match no other device's topics."""
    if other != topic.device.device:
        filters = Device(topic.device.tenant, other).down_filters
        assert not any(matches(f, str(topic)) for f in filters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ek/acme/device/o1/m", "is not ek/TENANT/device/DEVICE/CHANNEL"),
        ("te/acme/device/o1/m/batch", "is not ek/TENANT/device/DEVICE/CHANNEL"),
        ("ek/acme/site/o1/m/batch", "is not ek/TENANT/device/DEVICE/CHANNEL"),
        ("ek/acme/device/+/m/batch", r"device '\+' is not 1 to 64"),
        ("ek//device/o1/m/batch", "tenant '' is not 1 to 64"),
        ("ek/$SYS/device/o1/m/batch", "tenant '\\$SYS' is not"),
        ("ek/acme/device/o1/x/batch", "channel 'x' is not one of m, a, status, ack, cmd"),
        ("ek/acme/device/o1/m/other", "channel m has no type 'other'"),
        ("ek/acme/device/o1/m/batch/7", "topics of channel m have no id"),
        ("ek/acme/device/o1/cmd/job", "topics of channel cmd need an id"),
        ("ek/acme/device/o1/cmd/job/7\n", r"id '7\\n' is not"),
        ("ek/acme/device/" + "x" * 65 + "/m/batch", "is not 1 to 64"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    """Each fault is named."""
    with pytest.raises(MessageError, match=message):
        Topic.parse(text)
