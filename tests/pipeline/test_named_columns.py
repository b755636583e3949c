"""Templates that name text columns: the same prompts, fingerprints and keys as by numbers."""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from armada import open_cache
from armada.cache_schemas.errors import JobError
from armada.pipeline.precompute_job import make_precompute_job
from armada.stages.language.prompt_templates import by_number, doubts, fill_template
from command_line import CommandLine
from openai_server import Model, OpenAIServer, serving
from tiny_checkpoints import make_bert
from tiny_language_models import TEXTS, make_causal_lm

COLUMNS = ("question", "passage")
ROWS = [(one, other) for one, other in pairwise(TEXTS) if one != other]


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a language model and an encoder."""
    root = tmp_path_factory.mktemp("named")
    lines = [{**dict(zip(COLUMNS, row, strict=True)), "answer": "so it is"} for row in ROWS]
    (root / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    make_causal_lm(root / "model")
    make_bert(root / "bert", TEXTS)
    return root


def run(
    armada: CommandLine, folder: Path, cache: Path, *settings: str, columns: Any = COLUMNS
) -> Any:
    return armada(
        *("precompute", "--corpus", folder / "corpus.jsonl", "--cache", cache),
        *(word for column in columns for word in ("--text-column", column)),
        *("--teacher", settings[0]),
        *(word for setting in settings[1:] for word in ("--set", setting)),
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{question}: {passage}", "{1}: {2}"),
        ("{passage}", "{2}"),
        ("{question} {1}", "{question} {1}"),  # as before there were names
        ("{text} {question}", "{text} {question}"),
        ('{"question": {question}}', '{"question": {1}}'),
        ("{questions} {passage} {}", "{questions} {2} {}"),
        ("{{passage}}", "{{2}}"),
        ("none", "none"),
    ],
)
def test_names_become_numbers(template: str, expected: str) -> None:
    assert by_number(template, COLUMNS) == expected


def test_names_of_other_alphabets_and_with_spaces() -> None:
    assert by_number("{Frage Nr.} {вопрос}", ("Frage Nr.", "вопрос")) == "{1} {2}"
    assert by_number("{question} {passage}", COLUMNS, kept=["question"]) == "{question} {2}"


def test_doubts_are_of_what_is_left_out_or_left_as_it_is() -> None:
    (one,) = doubts("{1}", COLUMNS, 2)
    assert one.startswith("text column passage is not in it, so no prompt has it: add {2}")
    assert [*doubts("{1} {2}", COLUMNS, 2)] == [*doubts("{1}", COLUMNS, 1)] == []
    (one,) = doubts("{text} {question}", COLUMNS, 2)
    assert one.startswith("{question} stays as it is beside {text}, which is all text columns")
    (one,) = doubts("{qestion} {2} {1}", COLUMNS, 2)
    assert one == "{qestion} is no text column (question, passage), and stays as it is"
    assert [*doubts("{question} {2} {1}", COLUMNS, 2, kept=["question"])] == []
    with pytest.raises(JobError, match="a prompt has 2 text columns"):
        fill_template("{3}", ("a", "b"))


@pytest.mark.parametrize(
    ("source", "option", "more"),
    [
        ("choices:{}/model", "prompt_template", ('answers=[" sea", " rain"]',)),
        ("choices:{}/model", "user_template", ("text_format=chat", "answers=[sea, rain]")),
        ("encoder:{}/bert", "template", ()),
        (
            "causal_lm:{}/model",
            "prompt_template",
            ("text_format=plain", "response_column=false", "max_new_tokens=2"),
        ),
    ],
    ids=["choices", "chat", "encoder", "causal_lm"],
)
def test_names_and_numbers_are_one_teacher(
    armada: CommandLine, folder: Path, tmp_path: Path, source: str, option: str, more: Any
) -> None:
    teacher, cache = source.format(folder), tmp_path / "cache"
    by_names = f'{option}="{{passage}} of {{question}} is"'
    first = run(armada, folder, cache, teacher, by_names, *more)
    assert first.code == 0, first.err
    assert "WARNING" not in first.err.upper()
    again = run(armada, folder, cache, teacher, f'{option}="{{2}} of {{1}} is"', *more)
    assert f"{len(ROWS)} already cached, 0 computed" in again.out + again.err


def test_an_encoder_reads_what_the_template_names(
    armada: CommandLine, folder: Path, tmp_path: Path
) -> None:
    """The text is the template's, whatever else the row has."""
    named = run(
        armada, folder, tmp_path / "named", f"encoder:{folder}/bert", 'template="{passage}"'
    )
    assert "text column question is not in it, so no prompt has it: add {1}" in named.err
    run(armada, folder, tmp_path / "alone", f"encoder:{folder}/bert", columns=COLUMNS[1:])
    found, alone = open_cache(tmp_path / "named"), open_cache(tmp_path / "alone")
    name = found.features[0]
    np.testing.assert_array_equal(
        found[name][found.lookup(ROWS)], alone[name][alone.lookup([row[1] for row in ROWS])]
    )


def test_a_server_is_sent_what_the_template_names(
    armada: CommandLine, folder: Path, tmp_path: Path
) -> None:
    with serving(OpenAIServer(model=Model(folder / "model"))) as server:
        said = run(
            armada,
            folder,
            tmp_path / "cache",
            "openai:toy",
            f"base_url={server.url}",
            *("api=completions", "max_new_tokens=2", "probes=1"),
            'prompt_template="{passage} of {question} is"',
        )
        assert said.code == 0, said.err
        assert {f"{other} of {one} is" for one, other in ROWS} <= server.paid.keys()


def test_a_question_of_the_options_is_no_column(
    armada: CommandLine, folder: Path, tmp_path: Path
) -> None:
    said = run(
        armada,
        folder,
        tmp_path / "cache",
        f"choices:{folder}/model",
        *('answers=[" no", " yes"]', 'questions=["Of rain?"]'),
        'prompt_template="{passage} {question}"',
    )
    assert said.code == 0, said.err
    assert "text column question is not in it, so no prompt has it: add {1}" in said.err
    (spec,) = open_cache(tmp_path / "cache").features
    assert spec == "aspects"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ('prompt_template="{answer}"', "has {3}, and a prompt has 2 text columns"),
        ('prompt_template="{qestion}"', "has no {text}"),
    ],
)
def test_what_a_prompt_does_not_have_is_refused(
    armada: CommandLine, folder: Path, tmp_path: Path, template: str, told: str
) -> None:
    settings, columns = (template, "text_format=plain"), (*COLUMNS, "answer")
    said = run(armada, folder, tmp_path, f"causal_lm:{folder}/model", *settings, columns=columns)
    assert told in said.error


@pytest.mark.parametrize("template", ["hello", "{qestion}"])
def test_a_text_that_is_always_the_same_is_refused(
    armada: CommandLine, folder: Path, tmp_path: Path, template: str
) -> None:
    said = run(
        armada, folder, tmp_path / "cache", f"encoder:{folder}/bert", f'template="{template}"'
    )
    assert said.error == (
        f"template {template!r}: has no {{text}}, so all texts would be the same; add it, or {{1}} "
        "to {2}, or names of text columns"
    )
    assert not (tmp_path / "cache").exists()


def test_pictures_have_no_number() -> None:
    job = make_precompute_job(
        {
            **{"corpus": "c.jsonl", "cache": "cache", "teacher": "vlm:folder"},
            **{"text_column": ["picture:photo", "title?", "body"], "picture": "given"},
            "template": "{body}, {title}, {photo}",
        }
    )
    assert job.options["template"] == "{2}, {1}, {photo}"


def test_a_student_may_name_them_too(
    armada: CommandLine, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "armada")
    line = [
        *("distill", "--train", folder / "corpus.jsonl", "--student", folder / "model"),
        *(word for column in (*COLUMNS, "answer") for word in ("--text-column", column)),
        *("--output", tmp_path / "run", "--control", "undistilled", "--quiet"),
        *(
            word
            for each in ("task=language", "text_format=plain", "epochs=1")
            for word in ("--set", each)
        ),
    ]
    armada.done(*line, "--set", 'prompt_template="{passage} "')
    card = json.loads((tmp_path / "run" / "student" / "armada_language.json").read_bytes())
    assert card["recipe"]["prompt_template"] == "{2} "
