"""Conversations and tools as OpenAI's API has them, and as a chat template reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from device.api.errors import ApiError
from device.runtime.grammar import Tools
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.tool_calls import ToolForm, as_text, describe_tools, form_of

Name = Annotated[str, msgspec.Meta(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message's content."""

    type: Literal["text", "refusal"]
    text: str = ""
    refusal: str = ""


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """What a call calls; ``arguments`` is a JSON object's text, and so read by OpenAI's client."""

    name: Name
    arguments: str = "{}"
    parsed_arguments: Any = None

    def as_template(self) -> dict[str, str]:
        """Return it as a chat template reads it; some clients write nothing for no arguments."""
        return {"name": self.name, "arguments": self.arguments.strip() or "{}"}


class CallMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A call in an assistant's message; ``index`` is what streaming clients leave in it."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation; what clients echo of an answer is taken, and has no effect."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CallMessage] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    parsed: Any = None
    audio: None = None
    function_call: None = None

    def as_template(self) -> dict[str, Any]:
        """Return it as a chat template reads it; ``developer`` is the newer name of ``system``.

        Raises:
            ApiError: It lacks what its role has.
        """
        text = self.content
        if isinstance(text, list):
            text = "".join(part.text or part.refusal for part in text)
        calls = self.tool_calls or []
        thought = self.reasoning_content or self.reasoning
        if text is None and self.role == "assistant" and (thought or self.refusal):
            text = self.refusal or ""  # it was cut in its reasoning, or is all refusal
        if text is None and not (self.role == "assistant" and calls):
            raise ApiError(400, f"a message of role {self.role} has no content", param="messages")
        if calls and self.role != "assistant":
            raise ApiError(400, f"a message of role {self.role} calls no tools", param="messages")
        made: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        if calls:
            made["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.as_template()}
                for call in calls
            ]
        if self.tool_call_id is not None:
            made["tool_call_id"] = self.tool_call_id
        if self.role == "assistant" and thought:
            made["reasoning_content"] = thought
        return made


class Function(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function that may be called; without ``parameters`` it takes none."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The name of a function."""

    name: Name


class NamedTool(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A schema that an answer is held to."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def usable_tools(
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    template: ChatTemplate | None,
    *,
    parallel: bool,
) -> Tools | None:
    """Return the tools that an answer may or must call; None: there are none.

    Raises:
        ApiError: A tool has to be called that is not there, or two have one name.
    """
    if choice == "none" or template is None or not tools:
        if choice not in {None, "none", "auto"}:
            raise ApiError(400, "tool_choice asks for tools, and there are none", param="tools")
        return None
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have the same name", param="tools")
    kept = list(tools)
    if isinstance(choice, NamedTool):
        kept = [tool for tool in tools if tool.function.name == choice.function.name]
        if not kept:
            raise ApiError(400, f"there is no tool {choice.function.name!r}", param="tool_choice")
    return Tools(
        all=tuple(msgspec.to_builtins(tool) for tool in kept),
        form=tool_form(template),
        is_required=choice not in {None, "auto"},
        is_parallel=parallel,
    )


def render(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    variables: Mapping[str, Any],
) -> str:
    """Return a conversation as the model reads it, tools included.

    Templates that know tools get them as data; to others they are told in words.

    Raises:
        ApiError: A message lacks what its role has, or the template does not read a variable.
        EngineError: The template refuses the conversation.
    """
    unread = sorted(set(variables) - (template.variables - {"messages", "tools"}))
    if unread:
        raise ApiError(
            400,
            f"the chat template reads no {unread[0]!r:.80} from chat_template_kwargs",
            param="chat_template_kwargs",
        )
    plain = [message.as_template() for message in messages]
    described = [msgspec.to_builtins(tool) for tool in tools]
    manner = template.manner
    if manner is None:
        plain = as_text(plain, tool_form(template))
    else:
        plain = [manner.hand_over(one) if "tool_calls" in one else one for one in plain]
    if described and "tools" not in template.variables:
        words = describe_tools(described, tool_form(template))
        if plain[0]["role"] == "system":
            plain[0] = {**plain[0], "content": f"{plain[0]['content']}\n\n{words}"}
        else:
            plain.insert(0, {"role": "system", "content": words})
        described = []
    return template.render(plain, tools=described or None, **variables)


def tool_form(template: ChatTemplate) -> ToolForm:
    """Return the form that a model writes calls in."""
    return form_of(template.source) if template.manner is None else template.manner.form
