"""Students with adapters: what of them trains, what leaves, and that other libraries, which put the
adapters on the base again, give the numbers that armada gives."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import armada
import peft
import pytest
import torch
from armada.cache_schemas.errors import JobError, StudentSourceError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages import adapters
from armada.stages.adapters import quiet_peft
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.adapters import with_adapters
from armada.stages.distill.settings import LoraSettings, StudentSettings
from armada.stages.distill.student import ClassifierStudent, PooledStudent, Student
from armada.stages.distill.student_source import load_student
from armada.stages.distill.training import train
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.classifier import ClassifierOptions, ClassifierTeacher
from armada.stages.pretrained import quiet_transformers
from safetensors.torch import load_file, save_file
from saved_students import save_untrained
from tiny_checkpoints import make_byte_tokenizer, make_llama, save_quietly
from tiny_runs import NUMBERS, TEXTS, TWO_CLASSES, Bench, changed, train_logged, weights
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

NAMED = LabelSpace(task="classification", num_labels=3, names=("bad", "fair", "good"))
ASKED = [*TEXTS[:4], "it", TEXTS[-1]]
"""Texts of different lengths."""

FAMILIES = {
    "llama": {"score"},
    "qwen2": {"score"},
    "opt": {"score"},
    "gpt2": {"score"},
    "bert": {"classifier"},
    "roberta": {"classifier"},
    "distilbert": {"classifier", "pre_classifier"},
    "deberta-v2": {"classifier", "pooler"},
    "modernbert": {"classifier", "head"},
    "xlnet": {"logits_proj", "sequence_summary"},
}
"""Families of checkpoints without a head, and what of their classifiers trains whole."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a family: the transformer and its tokenizer."""
    root = tmp_path_factory.mktemp("bases")

    def make(family: str) -> Path:
        if not (root / family).exists():
            torch.manual_seed(1)
            small = {"student_hidden_size": 32, "student_heads": 4, "student_vocab_size": 200}
            chosen = StudentSettings(student=f"scratch:{family}", pooling="mean", **small)
            student, tokenizer = load_student(chosen, NAMED, TEXTS, 0.1)
            # Rows to spare, as real models have: some tokenizers add a word when they are read.
            student.model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
            save_quietly(student.model, root / family)
            tokenizer.save_pretrained(root / family)
        return root / family

    return make


def make(
    source: Path, space: LabelSpace = NAMED, lora: dict[str, Any] | None = None, **settings: Any
) -> tuple[Student, Any]:
    """A student with adapters, as it is drawn."""
    torch.manual_seed(0)
    chosen = StudentSettings(student=str(source), **settings)
    asked = LoraSettings(**{"lora_rank": 2} | (lora or {}))
    return load_student(chosen, space, TEXTS, 0.1, asked)


def trained(student: Student) -> Student:
    """The student with other numbers in whatever of it trains."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return student.eval()


def save(
    folder: Path,
    student: Student,
    tokenizer: Any,
    source: Path | str,
    revision: str | None = None,
) -> Path:
    base = adapters.named_base(str(source), revision, StudentSourceError)
    return save_untrained(folder, student, tokenizer, **base)


def logits(student: Any, tokenizer: Any) -> torch.Tensor:
    """Of one padded batch, by a student of armada or a model of transformers."""
    batch = tokenizer(ASKED, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = student.eval()(**batch)
    return output[1] if isinstance(output, tuple) else output.logits


def whole(student: Student) -> set[str]:
    """The modules that train without being adapters."""
    names = [n for n, p in student.model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert all(".modules_to_save.default." in name for name in names)
    return {name.partition(".modules_to_save")[0].rpartition(".")[2] for name in names}


def piped(model: Any, tokenizer: Any) -> torch.Tensor:
    """What `pipeline` says of each class, in the order of the labels."""
    classify = pipeline("text-classification", model, tokenizer=tokenizer, top_k=None)
    said = [{row["label"]: row["score"] for row in rows} for rows in classify(ASKED, batch_size=3)]
    return torch.tensor([[row[name] for name in NAMED.names or ()] for row in said])


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without what transformers reports of a head that it draws before the adapters bring it."""
    with quiet_transformers(), quiet_peft():
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_trains_whole_and_libraries_give_the_same_logits(
    base: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    student, tokenizer = make(base(family))
    assert isinstance(student, ClassifierStudent)
    assert whole(student) == FAMILIES[family]
    expected = logits(trained(student), tokenizer)
    assert expected.std(0).min() > 1e-4  # texts do differ
    folder = save(tmp_path / "run" / "student", student, tokenizer, base(family))
    assert not (folder / "model.safetensors").exists()

    opened = armada.load_student(folder.parent)
    with torch.no_grad():
        torch.testing.assert_close(opened(**opened.encode(ASKED)), expected, rtol=0, atol=1e-5)
    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = AutoConfig.from_pretrained(folder, subfolder="task")
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
        torch.testing.assert_close(logits(model, tokenizer), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(piped(model, tokenizer), expected.softmax(1), rtol=0, atol=1e-5)
        told = {"num_labels": 3, "pad_token_id": config.pad_token_id}
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, **told)
        torch.testing.assert_close(logits(model, tokenizer), expected, rtol=0, atol=1e-5)
    assert config.architectures == [type(student.classifier).__name__]
    assert config.problem_type == "single_label_classification"


def test_what_transformers_makes_of_two_classes_without_being_told(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    """The labels of the base, which are two where it has none; their names it cannot know."""
    student, tokenizer = make(base("llama"), TWO_CLASSES)
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path, student, tokenizer, base("llama"))
    with quiet_libraries():
        classify = pipeline(
            "text-classification", str(folder), function_to_apply="none", top_k=None
        )
        said = [{row["label"]: row["score"] for row in rows} for rows in classify(ASKED)]
    found = torch.tensor([[row["LABEL_0"], row["LABEL_1"]] for row in said])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_scores_leave_too(base: Callable[[str], Path], tmp_path: Path) -> None:
    student, tokenizer = make(base("roberta"), NUMBERS)
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path, student, tokenizer, base("roberta"))
    with quiet_libraries():
        config = AutoConfig.from_pretrained(folder, subfolder="task")
        model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    torch.testing.assert_close(logits(model, tokenizer).relu(), expected, rtol=0, atol=1e-5)
    assert config.problem_type == "regression"


@pytest.mark.parametrize(
    ("family", "pooling", "trains"),
    [
        ("bert", "mean", set()),
        ("bert", "cls", set()),
        ("roberta", "pooler", {"pooler"}),
        ("distilbert", "context", set()),
        ("llama", "mean", set()),
    ],
)
def test_a_transformer_below_another_pooling_has_them(
    base: Callable[[str], Path], tmp_path: Path, family: str, pooling: str, trains: set[str]
) -> None:
    student, tokenizer = make(base(family), pooling=pooling)
    assert isinstance(student, PooledStudent)
    assert whole(student) == trains
    beside = {n for n, p in student.named_parameters() if p.requires_grad and "model." not in n}
    context = {"pooler.dense.weight", "pooler.dense.bias"} if pooling == "context" else set()
    assert beside == {"head.linear.weight", "head.linear.bias"} | context
    if "pooler" not in trains:
        assert not [
            n for n, _ in student.model.named_parameters() if "pooler" in n and "lora_" in n
        ]
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path, student, tokenizer, base(family))
    opened = armada.load_student(folder)
    with torch.no_grad():
        torch.testing.assert_close(opened(**opened.encode(ASKED)), expected, rtol=0, atol=1e-5)
    batch = tokenizer(ASKED, padding=True, return_tensors="pt")
    with torch.no_grad(), quiet_libraries():
        states = student.backbone(**batch).last_hidden_state
        found = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    torch.testing.assert_close(found, states, rtol=0, atol=1e-5)


def test_a_base_of_a_hub_keeps_its_name(
    base: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of the folder that it was fetched to."""
    student, tokenizer = make(base("bert"))
    monkeypatch.setattr(adapters, "resolve", lambda source, revision, error: base("bert"))
    folder = save(tmp_path, student, tokenizer, "team/model", "abc")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["base_model_name_or_path"], config["revision"]) == ("team/model", "abc")
    files = [file for file in folder.rglob("*.json") if file.name != "tokenizer.json"]
    assert not [file for file in files if str(base("bert")) in file.read_text()]
    armada.load_student(folder)


def test_the_folder_of_a_student_is_the_same_each_time(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    student, tokenizer = make(base("bert"))
    one, other = (
        save(tmp_path / name, student, tokenizer, base("bert")) for name in ("one", "other")
    )
    for file in (each for each in one.rglob("*") if each.is_file()):
        assert file.read_bytes() == (other / file.relative_to(one)).read_bytes(), file
    targets = json.loads((one / "adapter_config.json").read_bytes())["target_modules"]
    assert targets == sorted(targets)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_training_changes_adapters_and_heads_alone(
    bench: Bench, tmp_path: Path, pooling: str
) -> None:
    run = replace(bench, pooling=pooling).run(tmp_path, epochs=1, lora_rank=2)
    before = weights(run)
    train(run)
    names = {name for name in changed(run, before) if name.startswith("student.model.")}
    kept = {name for name, p in run.model.named_parameters() if not p.requires_grad}
    assert names
    assert not names & kept
    assert all("lora_" in name or ".classifier.modules_to_save." in name for name in names)


def test_halves_change_losses_by_their_rounding(bench: Bench, tmp_path: Path) -> None:
    halves, whole_numbers = (
        train_logged(
            bench.run(tmp_path / precision, dropout=0.0, epochs=1, lora_rank=2, precision=precision)
        )[1]
        for precision in ("bf16", "float32")
    )
    assert halves != whole_numbers
    assert halves == pytest.approx(whole_numbers, rel=0.05)


def test_the_same_seed_draws_the_same_student(base: Callable[[str], Path]) -> None:
    one, other = (make(base("deberta-v2"))[0].state_dict() for _ in range(2))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)


def test_before_it_learns_a_student_says_what_it_says_without_adapters(
    base: Callable[[str], Path],
) -> None:
    student, tokenizer = make(base("bert"))
    torch.manual_seed(0)
    plain, _ = load_student(StudentSettings(student=str(base("bert"))), NAMED, TEXTS, 0.1)
    torch.testing.assert_close(logits(student, tokenizer), logits(plain, tokenizer))


# --- as teachers


def test_a_classifier_teaches(base: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(base("deberta-v2"), tmp_path / "base"))
    student, tokenizer = make(source)
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path / "run" / "student", student, tokenizer, source)
    options = ClassifierOptions(pooled=True)
    teacher = ClassifierTeacher(str(folder.parent), options, torch.device("cpu"))
    logit_spec, pooled_spec = teacher.spec.features
    assert logit_spec.labels == NAMED.names
    assert pooled_spec.shape == (student.dim,)
    teacher.load()
    examples = [Example(example_key((text,)), (text,)) for text in ASKED]
    with torch.inference_mode():
        found = torch.tensor(teacher.encode(examples).features["logits"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # The same wherever it lies, and its base; another one where either has changed.
    fingerprint = teacher.spec.fingerprint
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    card, elsewhere = moved / "armada_student.json", Path(source.rename(tmp_path / "elsewhere"))
    card.write_text(card.read_text().replace(str(source), str(elsewhere)))
    config = moved / "adapter_config.json"
    config.write_text(config.read_text().replace(str(source), str(elsewhere)))
    again = ClassifierTeacher(str(moved), options, torch.device("cpu"))
    assert again.spec.fingerprint == fingerprint
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))
    other = ClassifierTeacher(str(moved), options, torch.device("cpu"))
    assert other.spec.fingerprint != fingerprint
    with pytest.raises(TeacherSourceError, match=f"source {source}: no such folder"):
        ClassifierTeacher(str(folder), options, torch.device("cpu"))


def test_a_half_precise_teacher_has_its_adapters(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    student, tokenizer = make(base("llama"))
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path, student, tokenizer, base("llama"))
    teacher = ClassifierTeacher(
        str(folder), ClassifierOptions(dtype="bfloat16"), torch.device("cpu")
    )
    teacher.load()
    assert {p.dtype for p in teacher._model.parameters()} == {torch.bfloat16}
    examples = [Example(example_key((text,)), (text,)) for text in ASKED]
    with torch.inference_mode():
        found = torch.tensor(teacher.encode(examples).features["logits"]).float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_adapters_of_nobody_knows_which_model_teach_nothing(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = save(tmp_path, *make(base("bert")), base("bert"))
    card = folder / "armada_student.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"base": None}))
    with pytest.raises(TeacherSourceError, match="holds an adapter; merge it into its base"):
        ClassifierTeacher(str(folder), ClassifierOptions(), torch.device("cpu"))


# --- refused


def test_another_base_in_its_place(base: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(base("bert"), tmp_path / "base"))
    folder = save(tmp_path / "student", *make(source), source)
    armada.load_student(folder)
    model = AutoModel.from_pretrained(source)
    model.embeddings.word_embeddings.weight.data += 1
    save_quietly(model, source)
    with pytest.raises(StudentSourceError, match=f"made for {source} with digest") as caught:
        armada.load_student(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacking", ["classifier", "lora_B"])
def test_adapters_that_lack_a_weight(
    base: Callable[[str], Path], tmp_path: Path, lacking: str
) -> None:
    folder = save(tmp_path, *make(base("bert")), base("bert"))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if lacking not in n}, file)
    with pytest.raises(StudentSourceError, match=f"student {folder}: adapters: .*{lacking}"):
        armada.load_student(folder)


def test_names_that_no_layer_has(base: Callable[[str], Path]) -> None:
    with pytest.raises(JobError, match=r"lora_targets \['q_proj'\].*BertForSequenceClass"):
        make(base("bert"), lora={"lora_targets": ("q_proj",)})


def test_a_head_that_is_called_as_layers_are(base: Callable[[str], Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base("bert"))
    with pytest.raises(
        JobError, match=r"has transformer layers with the name of its head \(bert.*self.value\)"
    ):
        with_adapters(model, LoraSettings(lora_rank=2), "SEQ_CLS", whole=["value"])


def test_a_pooler_that_nothing_reads_gets_no_adapter(base: Callable[[str], Path]) -> None:
    student, _ = make(base("bert"), pooling="mean", lora={"lora_targets": ("dense",)})
    adapted = {n for n, p in student.model.named_parameters() if p.requires_grad}
    assert adapted
    assert not any("pooler" in name for name in adapted)


def test_a_model_without_room_for_padding(tmp_path: Path) -> None:
    source = make_llama(tmp_path / "base", TEXTS)
    tokenizer = make_byte_tokenizer(TEXTS, bos="</s>", eos="</s>", pad=None, ends=True)
    tokenizer.save_pretrained(source)
    model = AutoModel.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    save_quietly(model, source)
    with pytest.raises(StudentSourceError, match="every text ends with </s>, which is also"):
        make(source)
    model.resize_token_embeddings(len(tokenizer) + 1)
    save_quietly(model, source)
    student, tokenizer = make(source)
    expected = logits(trained(student), tokenizer)
    folder = save(tmp_path / "student", student, tokenizer, source)
    opened = armada.load_student(folder)
    with torch.no_grad():
        torch.testing.assert_close(opened(**opened.encode(ASKED)), expected, rtol=0, atol=1e-5)
