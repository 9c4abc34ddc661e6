"""The body of OpenAI's chat completions: what a model of text takes of it, and what each other field is told.

Reference: OpenAI's API, create chat completion.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from max_zimage.enhancer.chat import ChatModel, Message
from max_zimage.sampling.ranges import MAX_SEED
from max_zimage.serving.errors import bad_request, over_limit

_TOOLS = "tools are not called here; leave it out"
_ELSE = "has no meaning for the models of this server; leave it out"
ELSEWHERE = MappingProxyType(
    dict.fromkeys(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"), _TOOLS)
    | dict.fromkeys(
        (
            "frequency_penalty", "presence_penalty", "repetition_penalty", "min_p", "logit_bias", "logprobs",
            "top_logprobs", "modalities", "audio", "prediction", "reasoning_effort", "service_tier", "store",
            "verbosity", "web_search_options",
        ),
        _ELSE,
    )
    | {
        "stop": "answers end where the model ends them, or at max_tokens; leave it out",
        "response_format": "answers are plain text; leave it out",
    }
)  # fmt: skip
"""Fields of OpenAI's and of other servers' -> why they are refused."""

SAMPLING = ("temperature", "top_p", "top_k")


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: Annotated[None, Field(description="Is not told to models here.")] = None


class StreamOptions(BaseModel):
    """How a stream looks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    include_usage: Annotated[bool | None, Field(description="Whether a last chunk counts tokens.")] = None


class ChatRequest(BaseModel):
    """What the route takes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    model: Annotated[str | None, Field(description="The enhancer's name, or nothing.")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="Of the answer; the most there may be if not given.")] = (
        None
    )
    max_completion_tokens: Annotated[int | None, Field(ge=1, description="The same, by its newer name.")] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, description="0 is greedy; 0.6 if not given.")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="0.95 if not given.")] = None
    top_k: Annotated[int | None, Field(ge=0, description="0 is all; 20 if not given.")] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="The same words again; random if not given.")] = (
        None
    )
    n: Annotated[Literal[1] | None, Field(description="One answer.")] = None
    stream: Annotated[bool | None, Field(description="Answer with server-sent events.")] = None
    stream_options: StreamOptions | None = None
    drafts: Annotated[
        bool | None, Field(description="With stream: chunks without choices, whose draft is the answer so far.")
    ] = None
    user: Annotated[str | None, Field(max_length=512, description="Goes into the server's log.")] = None
    safety_identifier: Annotated[str | None, Field(max_length=512, description="The same, by its newer name.")] = None


def messages_of(body: ChatRequest, most: int) -> tuple[Message, ...]:
    """The conversation, as text.

    Args:
        body: The request.
        most: Characters that all messages may have together.

    Raises:
        ApiError: 400 for what is no text, for no question at its end, or for too much.
    """
    found = []
    for index, each in enumerate(body.messages):
        place = f"messages.{index}.content"
        parts = [each.content] if isinstance(each.content, str) else [_text(part, place) for part in each.content]
        found.append(Message(role="system" if each.role == "developer" else each.role, content="\n".join(parts)))
    if found[-1].role != "user":
        raise bad_request(f"messages: the last one must be a user's, got one of {found[-1].role}", "messages")
    if (length := sum(len(each.content) for each in found)) > most:
        raise over_limit("messages", length, most, "characters")
    return tuple(found)


def _text(part: Part, place: str) -> str:
    if part.type != "text" or part.text is None:
        message = f"{place}: the models of this server read text only, got a part of type {part.type[:40]!r}; send text"
        raise bad_request(message, "messages")
    return part.text


def tokens_of(body: ChatRequest, model: ChatModel) -> int:
    """Tokens that the answer may have.

    Raises:
        ApiError: 400 for two limits that differ, or more than the model writes.
    """
    given, newer = body.max_tokens, body.max_completion_tokens
    if given is not None and newer is not None and given != newer:
        message = f"max_tokens: another name of max_completion_tokens, and they are {given} and {newer}; leave one out"
        raise bad_request(message, "max_tokens")
    tokens, name = (given, "max_tokens") if newer is None else (newer, "max_completion_tokens")
    if tokens is not None and tokens > model.most_tokens:
        raise over_limit(name, tokens, model.most_tokens, "tokens of an answer")
    return model.most_tokens if tokens is None else tokens


def sampling_of(body: ChatRequest, model: ChatModel) -> dict[str, Any]:
    """How words are drawn, by fields that the model honours.

    Raises:
        ApiError: 400 for others.
    """
    given = {name: value for name in SAMPLING if (value := getattr(body, name)) is not None}
    for name in given:
        if name not in model.sampling:
            message = f"{name}: {model.name} draws words in its own way, and honours seed alone; leave it out"
            raise bad_request(message, name)
    if body.drafts and not (body.stream and model.drafts):
        reason = "come with stream; set that too" if model.drafts else f"are not made by {model.name}"
        raise bad_request(f"drafts: {reason}, or leave it out", "drafts")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options: of a stream; set stream to true, or leave it out", "stream_options")
    return given
