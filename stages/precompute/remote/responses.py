"""POST /chat/completions and POST /completions: generated text, log-probabilities of its tokens.

One `GenerationRequest` says what is wanted of either; what a server calls it is decided here:

- Log-probabilities: chat has `logprobs` (true) and `top_logprobs`, the legacy call `logprobs=K`.
- The limit of tokens: `max_tokens`, which every server knows. Hosted models that think demand
  `max_completion_tokens` and refuse the other with a 400 that says so, while a server that doesn't
  know the newer name leaves it out and writes until its context is full. So the older name is the
  one to begin with: it fails loudly.

The sampled token takes the last place of the alternatives in vLLM's chat replies, if it is not
among the most probable ones. Whoever needs the K most probable tokens asks for K + 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .log_probs import Predictions, Tokens, read_log_probs, read_prompt
from .wire import (
    MalformedReplyError,
    a_list,
    a_reply,
    a_text,
    a_whole_number,
    an_object,
    in_order,
    malformed,
    optional,
    with_extra,
)

LimitName = Literal["max_tokens", "max_completion_tokens"]

_UNFINISHED = frozenset({"abort", "error"})
"""Reasons of vLLM and SGLang for a response that the server gave up."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is wanted of generated text; None leaves the choice to the server."""

    max_tokens: int
    limit_name: LimitName = "max_tokens"
    temperature: float | None = None
    top_p: float | None = None
    samples: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alternatives: int | None = None
    """Most probable tokens of which the log-probability is wanted at each place. 0: only that of
    the response's own token; None: no log-probabilities."""
    prompt_alternatives: int | None = None
    """The same of the prompt's tokens: vLLM alone."""
    token_ids: bool = False
    """Tokens by their ids: vLLM's fields, which hosted servers refuse."""
    echo: bool = False
    """Legacy call alone: the prompt's tokens stand before the response's."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the user adds."""


def chat_body(
    model: str, messages: Sequence[Mapping[str, str]], request: GenerationRequest
) -> dict[str, Any]:
    """The request of a chat completion. Raises JobError for an extra field that is set already."""
    body: dict[str, Any] = {"model": model, "messages": [dict(message) for message in messages]}
    body |= _sampling(request)
    if request.alternatives is not None:
        body["logprobs"] = True
        body["top_logprobs"] = request.alternatives
    return with_extra(body, request.extra)


def completion_body(
    model: str, prompt: str | Sequence[int] | Sequence[Sequence[int]], request: GenerationRequest
) -> dict[str, Any]:
    """The request of a completion of a text, of token ids, or of several texts' token ids. Raises
    JobError for an extra field that is set already."""
    written = prompt if isinstance(prompt, str) else list(prompt)
    body: dict[str, Any] = {"model": model, "prompt": written, **_sampling(request)}
    if request.alternatives is not None:
        body["logprobs"] = request.alternatives
    if request.echo:
        body["echo"] = True
    return with_extra(body, request.extra)


def _sampling(request: GenerationRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {request.limit_name: request.max_tokens}
    if request.samples != 1:
        fields["n"] = request.samples
    if request.stop:
        fields["stop"] = list(request.stop)
    if request.token_ids:
        fields |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    named = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "prompt_logprobs": request.prompt_alternatives,
    }
    return fields | {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Choice:
    """One response. `finish_reason` is the server's own word, None where it has none."""

    text: str
    finish_reason: str | None
    reasoning: str | None
    """What the model thought, where the server keeps it apart from the text."""
    refusal: str | None
    predictions: Predictions | None
    """All generated tokens, also those that are not in the text: of thinking, special ones, and of
    a stop string. After `echo`, the prompt's tokens come first."""
    prompt: Predictions | None
    """The prompt's tokens: `prompt_logprobs`."""

    @property
    def declined(self) -> bool:
        """Whether a filter or the model itself refused to respond."""
        return self.refusal is not None or self.finish_reason == "content_filter"


def read_chat(reply: object, count: int = 1) -> list[Choice]:
    """The `count` responses of a chat completion.

    Raises MalformedReplyError for missing, duplicated and unfinished ones, for text without tokens
    where there are log-probabilities, and for what are no log-probabilities."""
    fields = a_reply(reply)
    prompt = read_prompt(
        fields.get("prompt_logprobs"), fields.get("prompt_token_ids"), "prompt_logprobs"
    )
    return [
        _chat_choice(item, f"choices[{index}]", prompt)
        for index, item in enumerate(_choices(fields, count))
    ]


def read_completion(reply: object, count: int = 1) -> list[Choice]:
    """The `count` responses of a legacy completion. Raises MalformedReplyError as `read_chat`."""
    return [
        _completion_choice(item, f"choices[{index}]")
        for index, item in enumerate(_choices(a_reply(reply), count))
    ]


def _choices(reply: dict[str, Any], count: int) -> list[dict[str, Any]]:
    items = a_list(reply.get("choices"), "choices")
    if len(items) == 1 and count > 1:
        raise MalformedReplyError(
            f"choices has 1 of {count} responses: the server may not know `n`; ask for one sample"
        )
    return in_order(items, "choices", count, "responses")


def _chat_choice(item: dict[str, Any], name: str, prompt: Predictions | None) -> Choice:
    message = an_object(item.get("message"), f"{name}.message")
    thought = message.get("reasoning_content", message.get("reasoning"))
    refusal = optional(message.get("refusal"), f"{name}.message.refusal", a_text)
    text = optional(message.get("content"), f"{name}.message.content", a_text) or ""
    return Choice(
        text=text,
        finish_reason=_finish(item, name),
        reasoning=optional(thought, f"{name}.message.reasoning", a_text),
        refusal=refusal or None,
        predictions=_predictions(item, name, text),
        prompt=prompt,
    )


def _completion_choice(item: dict[str, Any], name: str) -> Choice:
    text = a_text(item.get("text"), f"{name}.text")
    return Choice(
        text=text,
        finish_reason=_finish(item, name),
        reasoning=None,
        refusal=None,
        predictions=_predictions(item, name, text),
        prompt=read_prompt(
            item.get("prompt_logprobs"), item.get("prompt_token_ids"), f"{name}.prompt_logprobs"
        ),
    )


def _finish(item: dict[str, Any], name: str) -> str | None:
    reason = optional(item.get("finish_reason"), f"{name}.finish_reason", a_text)
    if reason in _UNFINISHED:
        raise MalformedReplyError(f"{name} was given up by the server: finish_reason {reason!r}")
    return reason


def _predictions(item: dict[str, Any], name: str, text: str) -> Predictions | None:
    read = read_log_probs(item.get("logprobs"), f"{name}.logprobs")
    if read is None:
        return None
    if text and not len(read):
        raise MalformedReplyError(f"{name}.logprobs has no tokens, and the text has some")
    ids = optional(item.get("token_ids"), f"{name}.token_ids", a_list)
    return read if ids is None else _with_ids(read, ids, f"{name}.token_ids")


def _with_ids(read: Predictions, ids: list[Any], name: str) -> Predictions:
    """Predictions of tokens that a server also lists by their ids."""
    if len(ids) != len(read):
        raise MalformedReplyError(f"{name} has {len(ids)} ids for {len(read)} log-probabilities")
    for at, (listed, own) in enumerate(zip(ids, read.tokens.ids, strict=True)):
        if own not in (None, a_whole_number(listed, f"{name}[{at}]")):
            raise malformed(f"{name}[{at}]", listed, f"{own} as in the log-probabilities")
    # The strings of a server that lists ids spell no tokens: parts of characters are made whole.
    nothing: list[None] = [None] * len(ids)
    return replace(read, tokens=Tokens([*nothing], [*nothing], ids))
