"""Options of the teacher `openai`: what is requested of an endpoint, and how fast."""

from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ....cache_schemas.features import StoredDtype
from ....cache_schemas.teachers import SettingValue
from ...language.prompt_templates import check_template
from ..teachers.causal_options import CausalOptions, TokenOptions
from ..teachers.choices_options import OF_ANSWERS, ScoredAnswers, choices_of, settings_of
from ..teachers.options import TextOptions


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take. Prices are of a million tokens, and of one request."""

    patience_s: float = 600.0
    requests: int | None = None
    cost: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    request_price: float = 0.0

    def cost_of(self, input_tokens: int, output_tokens: int) -> float:
        """The price of a request that takes so many tokens."""
        tokens = input_tokens * self.input_price + output_tokens * self.output_price
        return tokens / 1e6 + self.request_price


ApiName = Literal[
    "embeddings", "chat", "completions", "given", "choices", "images", "rerank", "score"
]

_OF_ALL = frozenset({"api"})
_OF_GENERATION = _OF_ALL | frozenset(
    {"text_format", "response_column", "max_new_tokens", "limit_name", "temperature", "top_p"}
    | {"responses_per_prompt", "seed", "stop", "thinking", "tokenizer", "top_k", "token_ids"}
)
OF_API: dict[str, frozenset[str]] = {
    "embeddings": _OF_ALL | {"dimensions", "store_dtype", "template", "lowercase"},
    "chat": _OF_GENERATION | {"system_prompt", "user_template"},
    "completions": _OF_GENERATION | {"prompt_template"},
    "given": _OF_ALL
    | {"text_format", "prompt_template", "user_template", "system_prompt", "end_token"}
    | {"max_length", "tokenizer", "top_k", "own_log_probs"},
    "choices": _OF_ALL
    | {"text_format", "prompt_template", "user_template", "system_prompt", "end_token"}
    | {"max_length", "tokenizer", "store_dtype", *OF_ANSWERS},
    "images": _OF_ALL | {"size", "store_dtype", "template", "lowercase"},
    "rerank": _OF_ALL | {"store_dtype"},
    "score": _OF_ALL | {"store_dtype"},
}
"""API -> the options that are its settings."""


class OpenAIOptions(ScoredAnswers, TextOptions):
    """Options of the teacher `openai`. Those `of_a_run` are the server's place, pace and price."""

    templates: ClassVar[frozenset[str]] = TextOptions.templates | CausalOptions.templates
    of_a_run: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "key_variable", "concurrency", "requests_per_minute", "tokens_per_minute"}
        | {"timeout", "patience", "texts_per_request", "probes", "accept_change"}
        | {"image_encoder", "keep_images", "documents_name", "batch", "echo"}
        | {"max_requests", "max_cost", "input_price", "output_price", "request_price"}
    )

    api: ApiName = Field(
        default="embeddings",
        description="the API: embeddings; responses to prompts by chat or completions; "
        "predictions of given responses by given; scored choices by choices; pictures by images; "
        "scores of pairs, of a query and a document, by rerank or score",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="numbers of an embedding that the server is to shorten it to; default: as many "
        "as the model has",
    )
    store_dtype: StoredDtype = Field(default="float32", description="dtype of stored features")

    text_format: Literal["text", "plain", "chat"] = Field(
        default="plain",
        description="text format of students that learn from responses: plain or chat; api=chat "
        "has chat; text, where all of a text is predicted, is for api=given alone",
    )
    end_token: bool = Field(
        default=True,
        description="end given texts with the tokenizer's end-of-sequence token (given); score the "
        "token that ends a response, too (choices, where it is false by default)",
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="maximum tokens of a given text, or of a prompt with its longest answer "
        "(choices); longer ones are truncated; default 1024",
    )
    response_column: bool = Field(
        default=False,
        description="the last text column is a given response, of which nothing is sent (chat, "
        "completions)",
    )
    prompt_template: str = Field(
        default="{text}\n",
        description="prompt of completions, choices and given; {text} is the segments, with blank "
        "lines between them; or {1}, {2}, ..., or names of columns, are single ones",
    )
    user_template: str | None = Field(
        default=None,
        description="user's turn that api=chat makes of the segments, as prompt_template; default "
        "{text}",
    )
    system_prompt: str | None = Field(default=None, description="system message of a chat")
    echo: bool = Field(
        default=False,
        description="read log-probabilities of given tokens by echo and logprobs, which servers "
        "other than vLLM have, in place of prompt_logprobs (choices)",
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="maximum tokens of a response (chat, completions)"
    )
    limit_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="the server's name of that maximum"
    )
    temperature: float = Field(
        default=0.0, ge=0, le=100, description="0: greedy; else tokens are sampled"
    )
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="sample from the tokens with this much of the mass"
    )
    responses_per_prompt: int = Field(
        default=1, ge=1, le=1024, description="responses to each prompt; several have to be sampled"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="of sampled responses")
    stop: tuple[str, ...] = Field(default=(), description="strings that end a response")
    thinking: Literal["cut", "keep"] = Field(
        default="cut", description="thoughts before a response: cut, or kept in <think> marks"
    )
    tokenizer: str | None = Field(
        default=None,
        description="folder or hub id of the server's tokenizer: keep the responses' tokens, as "
        "its ids, and their log-probabilities",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="most probable tokens to keep in the place of each token of a response; needs "
        "tokenizer",
    )
    own_log_probs: bool = Field(
        default=False,
        description="keep the log-probability of each of a given text's own tokens (given)",
    )
    token_ids: bool = Field(
        default=False,
        description="ask for tokens by their ids, which vLLM and SGLang can give",
    )

    size: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$",
        description="size of the pictures, such as 512x512; default: the server's",
    )
    image_encoder: str | None = Field(
        default=None,
        description="embeds the pictures of api=images: transformers:PATH_OR_ID or "
        "open_clip:FOLDER",
    )
    keep_images: bool = Field(default=False, description="keep the pictures too, as PNG files")
    documents_name: Literal["documents", "texts"] = Field(
        default="documents",
        description="the server's name for documents of api=rerank; TEI's is texts",
    )

    base_url: str = Field(
        default="https://api.openai.com/v1",
        description="URL of the server, up to the part that all of its endpoints begin with",
    )
    key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that has the key; the key itself is never written down",
    )
    concurrency: int | Literal["auto"] = Field(
        default="auto",
        description="requests in flight; auto: as many as bring more replies a second, up to 256",
    )
    requests_per_minute: int | None = Field(default=None, ge=1, description="limit of the server")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="limit of the server")
    batch: bool = Field(
        default=False,
        description="send requests by the provider's batch service, which answers within a day "
        "for less (embeddings, chat, completions)",
    )
    timeout: float = Field(
        default=120.0, gt=0, description="seconds after which a request has failed"
    )
    patience: float = Field(
        default=600.0,
        ge=0,
        description="seconds for which a request that fails is sent again, before the run ends",
    )
    texts_per_request: int = Field(
        default=32,
        ge=1,
        le=2048,
        description="texts of one request (embeddings), or documents of a query (rerank, score)",
    )
    probes: int = Field(
        default=3,
        ge=1,
        le=64,
        description="requests for one text at first, to see whether all replicas of the server "
        "answer alike",
    )
    accept_change: bool = Field(
        default=False,
        description="go on although the server names another model or system fingerprint than it "
        "did before",
    )
    max_requests: int | None = Field(
        default=None, ge=1, description="requests after which a run ends"
    )
    max_cost: float | None = Field(
        default=None, gt=0, description="cost at which a run ends, by the prices"
    )
    input_price: float = Field(default=0.0, ge=0, description="price of a million input tokens")
    output_price: float = Field(default=0.0, ge=0, description="price of a million output tokens")
    request_price: float = Field(default=0.0, ge=0, description="price of a request")

    @field_validator("prompt_template", "user_template")
    @classmethod
    def _holds_the_text(cls, template: str | None) -> str | None:
        return template and check_template(template)

    @field_validator("base_url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        return check_base_url(url)

    @field_validator("concurrency")
    @classmethod
    def _is_some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 65_536:
            raise ValueError("is not from 1 to 65,536")
        return value

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "OpenAIOptions":
        if self.max_cost and not (self.input_price or self.output_price or self.request_price):
            raise ValueError(
                "max_cost: there are no prices; set input_price, output_price or request_price"
            )
        return self

    @model_validator(mode="after")
    def _is_of_its_api(self) -> "OpenAIOptions":
        settings = type(self).model_fields.keys() - self.of_a_run
        for name in sorted(self.model_fields_set & settings - OF_API[self.api]):
            known = ", ".join(api for api, own in OF_API.items() if name in own)
            raise ValueError(f"{name}: is for api={known}; leave it out, or set api")
        return self

    @model_validator(mode="after")
    def _has_a_batch_service(self) -> "OpenAIOptions":
        if self.batch and self.api not in ("embeddings", "chat", "completions"):
            raise ValueError(f"batch: api={self.api} has no batch service; leave it out")
        return self

    @model_validator(mode="after")
    def _embeds_pictures(self) -> "OpenAIOptions":
        if self.api == "images" and self.image_encoder is None:
            raise ValueError(
                "image_encoder: is not set; api=images needs one: transformers:PATH_OR_ID or "
                "open_clip:FOLDER"
            )
        if self.api != "images" and (self.image_encoder or self.keep_images):
            raise ValueError("image_encoder, keep_images: are for api=images; leave them out")
        return self

    @model_validator(mode="after")
    def _reads_what_is_given(self) -> "OpenAIOptions":
        if self.api != "given":
            if self.text_format == "text":
                raise ValueError("text_format: text is for api=given; use plain or chat")
            return self
        if self.tokenizer is None or self.top_k is None:
            raise ValueError("tokenizer, top_k: are not set; api=given needs both")
        self.token_options()
        return self

    @model_validator(mode="after")
    def _scores_choices(self) -> "OpenAIOptions":
        if self.api == "choices":
            if self.tokenizer is None or not self.answers:
                raise ValueError("tokenizer, answers: are not set; api=choices needs both")
            choices_of(self)
        elif self.echo:
            raise ValueError("echo: is for api=choices; leave it out")
        return self

    @model_validator(mode="after")
    def _generates(self) -> "OpenAIOptions":
        if self.api not in ("chat", "completions"):
            return self
        if self.max_new_tokens is None:
            raise ValueError(f"max_new_tokens: is not set; api={self.api} needs it")
        if self.responses_per_prompt > 1 and not self.temperature:
            raise ValueError(
                f"responses_per_prompt: {self.responses_per_prompt} greedy ones would be the same; "
                "set temperature above 0, or leave it out"
            )
        if self.tokenizer is None and (self.top_k or self.token_ids):
            raise ValueError("top_k, token_ids: need tokenizer; set it to the server's")
        return self

    def settings(self) -> dict[str, SettingValue]:
        """The settings in the fingerprint: those of the API that are set."""
        settings = super().settings() | ({"text_format": "chat"} if self.api == "chat" else {})
        if self.api == "choices":
            settings = {**settings, **settings_of(choices_of(self))}
            del settings["text_format"]
        own = OF_API[self.api] | {"prompt_format"}
        return {k: v for k, v in settings.items() if k in own and v is not None}

    def token_options(self) -> TokenOptions:
        """The options of api=given as those of every teacher that predicts tokens. Raises
        ValueError."""
        names = OF_API["given"] & TokenOptions.model_fields.keys()
        given = {name: getattr(self, name) for name in names}
        return TokenOptions(**{k: v for k, v in given.items() if v is not None})

    @property
    def most_in_flight(self) -> int:
        """The highest number of requests in flight."""
        return 256 if self.concurrency == "auto" else int(self.concurrency)

    @property
    def limits(self) -> Limits:
        """What a run may take."""
        return Limits(
            self.patience,
            self.max_requests,
            self.max_cost,
            self.input_price,
            self.output_price,
            self.request_price,
        )


def check_base_url(url: str) -> str:
    """The URL without a slash at its end. Raises ValueError for what is no URL of a server."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is no URL of a server, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "has more than scheme, host and path; a key belongs into the environment variable that "
            "key_variable names"
        )
    return url.rstrip("/")
