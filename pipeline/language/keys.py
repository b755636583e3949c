"""The keys of a `distill` job that language models, causal or masked, read, beside those of all
students."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from ...cache_schemas.errors import JobError
from ...cache_schemas.teachers import TeacherSpec
from ...stages.corpus.reading import prompt_columns
from ...stages.distill.objectives.options import SOURCE, TokensOptions
from ...stages.distill.settings import LanguageSettings
from ...stages.language.masking import MaskSettings
from ...stages.language.prompt_templates import by_number, doubts
from ...stages.language.recipe import LATER, Recipe
from ..jobs import make
from ..messages import LOGGER
from ..objective_keys import CacheKeys

_TOKEN_KEYS = ("token_cache", "token_teacher", "token_feature")


class LanguageKeys(LanguageSettings):
    """Keys of students that are language models: text format, if there is no token teacher,
    packing, and the predicted part."""

    text_format: Literal["text", "plain", "chat"] | None = Field(
        default=None,
        description="text: predict all segments; plain: predict the last one, with the others as "
        "prompt; chat: the same, formatted by the tokenizer's chat template; default as for the "
        "teacher, or text (task=language)",
    )
    prompt_template: str | None = Field(
        default=None,
        description="prompt of text_format=plain; {text} is the segments before the last one; or "
        "{1}, {2}, ..., or names of columns, are single ones",
    )
    user_template: str | None = Field(
        default=None,
        description="user's turn that text_format=chat makes of the segments before the last one",
    )
    system_prompt: str | None = Field(default=None, description="system message (text_format=chat)")
    end_token: bool | None = Field(
        default=None, description="end every text with the tokenizer's end-of-sequence token"
    )
    template_date: Any = Field(
        default=None,
        description="date given to chat templates that use one (text_format=chat)",
    )
    template_options: Any = Field(
        default=None,
        description="further variables of the chat template, such as {enable_thinking: false} "
        "(text_format=chat)",
    )
    chat_prompt: Literal["template", "answered", "appended"] | None = Field(
        default=None,
        description="prompt of a chat: template: its generation prompt; answered: what it writes "
        "before an answer; appended: the response follows the generation prompt",
    )

    def recipe(self, teachers: Sequence[TeacherSpec], text_columns: Sequence[str]) -> Recipe:
        """The recipe of a run, as that of all its teachers of tokens. Raises JobError where the job
        contradicts a teacher, or one of them another."""
        columns = prompt_columns(text_columns)
        recipes = [self._recipe_of(teacher, columns) for teacher in teachers]
        for teacher, recipe in zip(teachers, recipes, strict=True):
            if recipe != recipes[0]:
                raise JobError(
                    f"teachers: texts of {teacher.kind}:{teacher.name} and "
                    f"{teachers[0].kind}:{teachers[0].name} are formatted differently; precompute "
                    "both with the same settings"
                )
        return recipes[0] if recipes else self._recipe_of(None, columns)

    def _recipe_of(self, teacher: TeacherSpec | None, columns: Sequence[str]) -> Recipe:
        own = {name: getattr(self, name) for name in Recipe.model_fields}
        chosen = {name: value for name, value in own.items() if value is not None}
        for name in {"prompt_template", "user_template"} & chosen.keys():
            chosen[name] = by_number(chosen[name], columns)
        if teacher is None:
            recipe = make(Recipe, chosen)
            name = "user_template" if recipe.text_format == "chat" else "prompt_template"
            if recipe.has_prompt and name in chosen:
                for doubt in doubts(chosen[name], columns, len(columns) - 1):
                    LOGGER.warning(f"{name}: {doubt}")
            return recipe
        lacking = Recipe.model_fields.keys() - LATER.keys() - teacher.settings.keys()
        if lacking:
            raise JobError(
                f"job key 'teacher': {teacher.kind}:{teacher.name} does not record how texts were "
                f"formatted ({', '.join(sorted(lacking))} are missing); name another"
            )
        settings = teacher.settings
        known = make(
            Recipe, {name: settings[name] for name in Recipe.model_fields if name in settings}
        )
        # Caches of earlier versions lack the date of their chats.
        open_to_job = {"template_date"} - settings.keys()
        given = make(Recipe, known.model_dump() | chosen)
        for name in chosen.keys() - open_to_job:
            ours, theirs = getattr(given, name), getattr(known, name)
            if ours != theirs:
                raise JobError(
                    f"job key {name!r}: {ours!r}, but the teacher was run with {theirs!r}; leave "
                    f"it out"
                )
        return given


def _optional(name: str) -> Any:
    """A key that is a setting of masks where it is given."""
    field = MaskSettings.model_fields[name]
    return Field(
        default=None,
        description=f"{field.description}; default {field.default:g} (task=masked_language)",
    )


class MaskKeys(BaseModel):
    """Keys of students that are masked language models: as the teacher's options of that name."""

    mask_share: float | None = _optional("mask_share")
    mask_token_share: float | None = _optional("mask_token_share")
    random_token_share: float | None = _optional("random_token_share")
    mask_seed: int | None = _optional("mask_seed")
    masks_per_text: int | None = _optional("masks_per_text")

    @property
    def masks(self) -> MaskSettings:
        """How texts are masked. Raises JobError."""
        given = {name: getattr(self, name) for name in MaskSettings.model_fields}
        return make(MaskSettings, {k: v for k, v in given.items() if v is not None})


def require_same_masks(teacher: TeacherSpec, masks: MaskSettings, max_length: int | None) -> None:
    """Refuse a teacher that has not read texts under these masks, cut to that many tokens. What a
    job says holds for runs without a teacher, too, so that all are on equal terms."""
    shown = f"{teacher.kind}:{teacher.name}"
    if "mask_share" not in teacher.settings:
        raise JobError(
            f"job key 'teacher': {shown} predicts no masked tokens; name a masked_lm teacher"
        )
    ours = masks.model_dump() | ({} if max_length is None else {"max_length": max_length})
    for name, own in ours.items():
        if (theirs := teacher.settings.get(name)) != own:
            raise JobError(
                f"job key {name!r}: is {own}, and {shown} was run with {theirs}; set "
                f"{name}={theirs}"
            )


def with_token_teacher(keys: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Keys of a job in which a teacher of tokens beside that of a feature, which earlier releases
    named by `token_cache`, `token_teacher` and `token_feature`, is one of several teachers. `known`
    are the keys of jobs; others are options of objectives. Raises JobError."""
    given = {key: keys[key] for key in _TOKEN_KEYS if keys.get(key) is not None}
    rest = {key: value for key, value in keys.items() if key not in _TOKEN_KEYS}
    if not given:
        return rest
    if rest.get("teachers") or rest.get("objectives") or rest.get("objective") == "tokens":
        raise JobError(
            f"{', '.join(given)}: named a teacher of tokens beside that of a feature; name both in"
            " `teachers`, and what is learned from each in `objectives`"
        )
    LOGGER.warning(
        f"{', '.join(given)}: deprecated, removed in the next release; name both teachers in "
        "`teachers`, and what is learned from each in `objectives`"
    )
    own = {key: rest.pop(key) for key in CacheKeys.model_fields if key in rest}
    options = {**(rest.pop("options", None) or {})}
    options |= {key: rest.pop(key) for key in [*rest] if key not in known}
    tokens = {key: value for key, value in own.items() if key not in ("teacher", "feature")}
    if "token_cache" in given:
        tokens.pop("expect_digest", None)
    tokens |= {key.removeprefix("token_"): value for key, value in given.items()}
    return {
        **rest,
        "teachers": {SOURCE: own, "tokens": {**tokens, "control": "none"}},
        "objective": None,
        "objectives": [
            {
                "name": "tokens",
                "teacher": "tokens",
                **{key: v for key, v in options.items() if key in TokensOptions.model_fields},
            },
            {
                "name": rest.get("objective") or "armada",
                "teacher": SOURCE,
                **{
                    key: v
                    for key, v in options.items()
                    if key == "alpha" or key not in TokensOptions.model_fields
                },
            },
        ],
    }
