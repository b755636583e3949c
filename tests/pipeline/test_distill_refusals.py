"""What `armada distill` refuses: one line, exit code 2, nothing written."""

import re

import pytest
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels

# --- corpus and cache


def test_texts_that_were_never_asked(distill_bench, tmp_path, refused, write_parquet):
    texts = [f"never asked {n}" if n % 5 == 2 else text for n, text in enumerate(TEXTS)]
    file = write_parquet("more", {"text": texts, "label": class_labels(len(texts))})
    line = refused(*distill_bench.words(tmp_path / "run", train=file))
    assert line.startswith(
        f"11 of 53 rows are not in the cache of teacher {distill_bench.hash[:8]}"
    )
    assert "run `armada precompute` on them" in line
    first = [f"{file} row {row + 1}" for row in (2, 7, 12, 17, 22)]
    assert line.endswith("First: " + "; ".join(first))


def test_segments_in_another_order_are_other_texts(distill_bench, tmp_path, refused):
    words = distill_bench.words(tmp_path / "run", text_column="b")
    line = refused(*words, "--text-column", "a", "--text-column", "c")
    assert line.startswith("52 of 53 rows are not in the cache")  # in one row, a is b


@pytest.mark.parametrize(
    ("teacher", "changes", "settings", "words"),
    [
        ("made_up", {}, [], "key 'feature' is missing; the teacher has embedding, logits"),
        ("made_up", {}, ["feature=pooled"], "feature 'pooled': .* has embedding, logits"),
        ("hash", {"objective": "kd"}, [], "feature 'logits': .* has embedding"),
        ("hash", {"teacher": "hash:6"}, [], "'hash:6': is not a fingerprint; name one, .*hash:6"),
        (
            "hash",
            {"objective": "kd"},
            [],
            "feature 'logits': .* has embedding; .*classifier:SO",
        ),
        ("hash", {"teacher": "zzzz"}, [], "teacher 'zzzz': is not in the cache; it holds .*hash:6"),
        ("hash", {"teacher": None}, [], "holds several teachers; choose one: "),
        ("hash", {"cache": None}, [], "key 'cache' is missing; only control=undistilled runs"),
        ("made_up", {"objective": "kd"}, ["num_labels=4"], "logits have 3 classes, the task 4"),
        (
            "made_up",
            {"objective": "kd", "label_column": "score"},
            [],
            "the teacher's feature has 3 numbers, the task 1 outputs; choose a teacher of the same",
        ),
        ("hash", {"label_column": None}, [], "key 'label_column' is missing"),
        *(
            (
                "hash",
                {"label_column": None, "objective": "feature"},
                [f"{key}={value}"],
                f"{key}': '?{value}'? is about labels, and job key 'label_column' is missing; name "
                f"it, or leave {key} out",
            )
            for key, value in (("task", "classification"), ("num_labels", 3))
        ),
        ("hash", {"label_column": "colour"}, [], "colour"),
        ("hash", {"text_column": "words"}, [], "words"),
        ("hash", {}, ["metric=pearson"], "'pearson' is not one of accuracy, macro_f1, matthews"),
        ("hash", {}, ["metric=f1"], "'f1' is not one of accuracy, macro_f1, matthews"),
        ("hash", {"validation": None}, ["metric=accuracy"], "'accuracy' needs a validation set"),
        (
            "hash",
            {},
            ["encoding=utf-8"],
            "'utf-8': applies only to .jsonl, .* and the corpus is .parquet; le",
        ),
        ("hash", {}, ["delimiter=;"], "';': applies only to .csv, .tsv files, .* leave it out"),
        (
            "hash",
            {"student": "https://me:pw@host/a"},
            [],
            "source https://host/a: looks like a URL",
        ),
        ("hash", {"label_column": "score"}, ["metric=accuracy"], "not one of pearson, spearman"),
        ("hash", {}, ["num_labels=2"], "label 2 is not a whole number from 0 to 1"),
        ("hash", {"label_column": "name"}, ["task=regression"], "labels are text, not numbers"),
        (
            "hash",
            {"objective": "feature", "control": "random-aligner"},
            [],
            "objective 'feature' has no aligner",
        ),
        (
            "hash",
            {"objective": "feature", "control": "smoothed"},
            [],
            "control smoothed: is for class logits, and objective 'feature' reads other features",
        ),
        ("hash", {"control": "class-means"}, [], "is for class logits, and objective 'armada'"),
        (
            "hash",
            {"student": "scratch:bert"},
            ["lora_rank=2"],
            "has no pretrained weights to adapt; leave it",
        ),
        (
            "hash",
            {},
            ["lora_rank=2", "student_from_scratch=true"],
            "has no pretrained weights to adapt",
        ),
        ("hash", {}, ["lora_rank=2", "student_layers=1"], "to a whole checkpoint; save the"),
        ("hash", {}, ["lora_dropout=0.1"], "lora_dropout: need lora_rank; set it too"),
        ("hash", {"objective": "armda"}, [], "'armda' is unknown; did you mean 'armada'"),
        (
            "hash",
            {},
            ["temperature=learned"],
            "key 'temperature': 'learned': Input should be a valid",
        ),
        ("hash", {"student": "./nowhere"}, [], "./nowhere: no such folder"),
        ("hash", {}, ["max_length=65"], "max_length 65: the model takes at most 64 tokens"),
        ("hash", {}, ["max_length=3"], "max_length 3: leaves no room"),
        ("hash", {}, ["student_layers=3"], "the checkpoint has 2 layers"),
        ("hash", {}, ["device=cuda:99"], "device"),
        ("hash", {"train": "nowhere.parquet"}, [], "nowhere.parquet"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_what_does_not_fit(distill_bench, tmp_path, refused, teacher, changes, settings, words):
    prefix = {"teacher": getattr(distill_bench, teacher)[:8]}
    given = distill_bench.words(tmp_path / "run", **prefix | changes)
    line = refused(*given, *(word for setting in settings for word in ("--set", setting)))
    assert re.search(words, line), line


def test_a_prefix_of_two_teachers(distill_bench, tmp_path, refused):
    line = refused(*distill_bench.words(tmp_path / "run"), "--set", "teacher=''")
    assert "is the prefix of several teachers" in line


def test_a_folder_that_is_no_cache(distill_bench, tmp_path, refused):
    line = refused(*distill_bench.words(tmp_path / "run", cache=distill_bench.student))
    assert "this is not an armada cache" in line


def test_a_column_of_numbers_is_no_text(distill_bench, tmp_path, refused):
    line = refused(*distill_bench.words(tmp_path / "run", text_column="score"))
    assert "column 'score' holds double, not text" in line


# --- labels


@pytest.mark.parametrize("label", [3, -1, 7])
def test_a_validation_label_that_training_has_not(
    distill_bench, tmp_path, refused, write_parquet, label
):
    labels = class_labels(len(VALIDATION_TEXTS))
    labels[4] = label
    file = write_parquet("other", {"text": VALIDATION_TEXTS, "label": labels})
    line = refused(*distill_bench.words(tmp_path / "run", validation=file))
    hint = " (a missing label is null or -100)" if label == -1 else ""
    assert line == f"{file} row 5: label {label} is not a whole number from 0 to 2{hint}"


def test_a_validation_name_that_training_has_not(distill_bench, tmp_path, refused, write_parquet):
    names = ["low"] * len(VALIDATION_TEXTS)
    names[9] = "lower"
    file = write_parquet("other", {"text": VALIDATION_TEXTS, "name": names})
    words = distill_bench.words(tmp_path / "run", validation=file, label_column="name")
    assert refused(*words) == f"{file} row 10: label 'lower' is not one of high, low, middle"


@pytest.mark.parametrize("missing", [None, -100, float("nan"), ""])
def test_no_label_at_all(distill_bench, tmp_path, refused, write_parquet, missing):
    file = write_parquet("none", {"text": TEXTS, "label": [missing] * len(TEXTS)})
    line = refused(*distill_bench.words(tmp_path / "run", train=file))
    assert line.startswith(f"corpus {file}: no row has a label")


@pytest.mark.parametrize("column", ["label", "name", "score"])
def test_no_label_to_validate_by(distill_bench, tmp_path, refused, write_parquet, column):
    nothing = {"name": "", "label": -100, "score": float("nan")}[column]
    labels = [nothing] * len(VALIDATION_TEXTS)
    file = write_parquet("none", {"text": VALIDATION_TEXTS, column: labels})
    words = distill_bench.words(tmp_path / "run", validation=file, label_column=column)
    assert refused(*words) == f"corpus {file}: no row has a label; nothing to validate by"


# --- keys of the job


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epoch=3", "key 'epoch' is unknown; did you mean 'epochs'?"),
        ("epochs=0", "key 'epochs': 0: .*greater than or equal to 1 .passes over the training set"),
        ("learning_rate=0", "key 'learning_rate': 0: .*greater than 0"),
        (
            "control=noisy",
            "control 'noisy': is not none, undistilled, random-aligner, shuffled, permuted-classes",
        ),
        ("control=noise=-1", "control 'noise=-1': is not none"),
        ("alpha=2", "key 'alpha': 2: .*less than or equal to 1"),
        ("schedule=both", "key 'schedule': 'both': .*'alternate' or 'joint'"),
        ("warmup_ratio=1", "key 'warmup_ratio': 1: .*less than 1"),
        ("seed=-1", "key 'seed'"),
        ("seed=4294967296", "key 'seed'"),
        ("seed=[]", "key 'seed'"),
        ("seed=[1, 2, 1]", "key 'seed': .*one seed is given twice"),
        ("seed=first", "key 'seed'"),
        ("student_layers=[", "the value is not YAML"),
        ("epochs", "is not KEY=VALUE"),
        ("average_from=0.5", "average_from: needs average; set average=mean or average=ema"),
    ],
)
def test_keys(distill_bench, tmp_path, refused, setting, words):
    line = refused(*distill_bench.words(tmp_path / "run"), "--set", setting)
    assert re.search(words, line), line


def test_a_separator_without_labels(distill_bench, tmp_path, refused):
    words = distill_bench.words(tmp_path / "run", label_column=None)
    line = refused(*words, "--set", "label_separator=;")
    assert line.startswith("job key 'label_separator': ';' parts labels, and job key")


def test_a_rate_for_adamw_is_not_one_for_sgd(distill_bench, tmp_path, refused):
    words = distill_bench.words(tmp_path / "run")
    at = next(n for n, word in enumerate(words) if str(word).startswith("learning_rate="))
    line = refused(*words[: at - 1], *words[at + 1 :], "--set", "optimizer=sgd")
    assert line.startswith("job key 'learning_rate' is missing: the default is for AdamW")
    line = refused(*words[: at - 1], *words[at + 1 :], "--set", "optimizer=adam")
    assert "Input should be 'sgd' or 'dot'" in line


@pytest.mark.parametrize("key", ["train", "text_column", "student", "output"])
def test_keys_that_are_missing(distill_bench, tmp_path, refused, key):
    words = distill_bench.words(tmp_path / "run")
    at = words.index(f"--{key.replace('_', '-')}")
    line = refused(*words[:at], *words[at + 2 :])
    assert line.startswith(f"job key '{key}' is missing (")


def test_job_files_that_are_none(tmp_path, refused):
    job = tmp_path / "job.yaml"
    for content, words in [("- a\n", "is not a mapping"), ("a: [", "cannot be read")]:
        job.write_text(content)
        assert words in refused("distill", job)
    assert "cannot be read" in refused("distill", tmp_path / "no.yaml")
