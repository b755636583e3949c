"""The loss of a language model against plain torch on whole logits; packing; what it is worth."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada.cache_schemas.errors import JobError, StudentSourceError
from armada.stages.corpus.labels import MISSING, NO_LABELS
from armada.stages.distill.adapters import with_adapters
from armada.stages.distill.batches import DistillDataset
from armada.stages.distill.language.batches import Counts, pack
from armada.stages.distill.language.evaluation import TokenSums, respond, response_metrics
from armada.stages.distill.language.source import check_vocab_size, load_language_student
from armada.stages.distill.language.student import LanguageStudent
from armada.stages.distill.language.trainer import LanguageModel, only_rows
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import ObjectiveOptions
from armada.stages.distill.objectives.undistilled import UndistilledObjective
from armada.stages.distill.processes import Processes
from armada.stages.distill.settings import LoraSettings, StudentSettings
from armada.stages.language.recipe import Recipe
from armada.stages.language.tokens import encode_texts
from tiny_language_models import FAMILIES, TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make_causal_lm(root / name, name) for name in FAMILIES}


def student_of(folder: Path, **settings: Any) -> tuple[LanguageStudent, Any]:
    return load_language_student(
        StudentSettings(student=str(folder), **settings), LoraSettings(), NO_LABELS, [], 0.1
    )


def model_of(student: LanguageStudent) -> LanguageModel:
    sizes = Sizes(student.dim, 1, False, None)
    return LanguageModel(student, UndistilledObjective(ObjectiveOptions(), sizes))


def texts_of(tokenizer: Any, pairs: bool = False) -> Any:
    recipe = Recipe(text_format="plain") if pairs else Recipe()
    examples = [(text, text[::-1]) if pairs else (text,) for text in TEXTS]
    return encode_texts(tokenizer, recipe, examples, 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_is_that_of_whole_logits(folders: dict[str, Path], family: str) -> None:
    student, tokenizer = student_of(folders[family])
    texts = texts_of(tokenizer, pairs=True)
    rows = pack(texts, "none", 100, 0)
    batch = rows.pad(np.arange(len(TEXTS)))
    found = model_of(student).eval()(**batch)["loss"]
    plain = AutoModelForCausalLM.from_pretrained(folders[family])
    total = []
    for text in range(len(TEXTS)):
        ids = torch.from_numpy(texts.of(text).astype(np.int64))[None]
        labels = ids[0, 1:].clone()
        labels[: texts.prompts[text] - 1] = -100
        logits = plain(ids).logits[0, :-1].float()
        total.append(F.cross_entropy(logits, labels, reduction="sum"))
    expected = torch.stack(total).sum() / int(texts.predicted.sum())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_head_narrower_than_the_model(tmp_path: Path) -> None:
    student, tokenizer = student_of(make_causal_lm(tmp_path, "opt", word_embed_proj_dim=16))
    batch = pack(texts_of(tokenizer), "none", 100, 0).pad(np.arange(2))
    states = student(batch["input_ids"], batch["attention_mask"])
    assert student.dim == states.shape[-1] == 16


def test_rows_that_were_repeated_change_nothing(folders: dict[str, Path]) -> None:
    student, tokenizer = student_of(folders["llama"])
    rows = pack(texts_of(tokenizer), "none", 100, 0)
    model = model_of(student)
    alone = rows.pad(np.array([0, 1, 2]))
    repeated = rows.pad(np.array([0, 1, 2, 2]))
    only_rows(repeated, 3)
    one, other = model(**alone), model(**repeated)
    torch.testing.assert_close(one["loss"], other["loss"])
    gradients = []
    for each in (one, other):
        model.zero_grad()
        each["loss"].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


def test_one_word_in_two_processes_counts_as_much_as_in_one(folders: dict[str, Path]) -> None:
    """The other process has none, and gradients are averaged."""
    student, tokenizer = student_of(folders["llama"])
    batch = pack(texts_of(tokenizer), "none", 100, 0).pad(np.array([2]))
    batch |= {"predicted_at": batch["predicted_at"][:1], "targets": batch["targets"][:1]}
    model, counts = model_of(student), Counts(1)
    alone = model(**batch, counts=counts)["loss"].detach()
    model.processes = Processes(rank=0, count=2)
    assert model(**batch, counts=counts)["loss"].detach() == 2 * alone > 0


def test_word_sums_do_not_depend_on_batches(folders: dict[str, Path]) -> None:
    student, tokenizer = student_of(folders["opt"])
    texts = texts_of(tokenizer)
    rows = pack(texts, "none", 100, 1)
    dataset = DistillDataset(rows, np.full(len(rows), MISSING), {})
    model = model_of(student).eval()
    found = []
    for size in (1, 4, 6):
        sums = TokenSums()
        for start in range(0, len(dataset), size):
            places = list(range(start, min(start + size, len(dataset))))
            sums.add(model, dataset.__getitems__(places), rows)
        found.append(sums.metrics())
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-5)
    assert found[0]["perplexity"] == pytest.approx(math.exp(found[0]["loss"]))
    nats = found[0]["loss"] * int(texts.predicted.sum())
    of_text = sum(len(text.encode()) for text in TEXTS)
    assert found[0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / of_text)


def test_responses_are_those_of_each_prompt_alone(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    texts = texts_of(tokenizer, pairs=True)
    prompts = [texts.of(n)[: texts.prompts[n]].tolist() for n in range(len(TEXTS))]
    ends = [tokenizer.eos_token_id]
    together = respond(model, tokenizer, prompts, 6, 4, ends)
    assert together == [respond(model, tokenizer, [each], 6, 1, ends)[0] for each in prompts]


def test_response_metrics_by_hand() -> None:
    found = response_metrics(
        ["The cat sat!", "a b c d", ""], ["the  cat sat", "a x c y", "something"]
    )
    # Longest common subsequences of 3 of 3, 2 of 4, and none.
    assert found["rouge_l"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["exact_match"] == pytest.approx(1 / 3)
    numbers = response_metrics(["35", "-5", "It is 3.5."], ["3.5", "5", "it is 3.5"])
    assert numbers["exact_match"] == pytest.approx(1 / 3)
    assert response_metrics(["звёзды сияют"], ["Звёзды сияют!"])["rouge_l"] == 1


def test_a_folders_own_wishes_do_not_make_a_response_less_greedy(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    plain = respond(model, tokenizer, [[5, 6, 7]], 8, 1, ())
    wishes = {"repetition_penalty": 5.0, "num_beams": 2, "min_new_tokens": 8}
    model.generation_config.update(**wishes)
    assert respond(model, tokenizer, [[5, 6, 7]], 8, 1, ()) == plain
    assert model.generation_config.num_beams == 2


def test_adapters_train_alone_and_start_at_nothing(folders: dict[str, Path]) -> None:
    before = AutoModelForCausalLM.from_pretrained(folders["llama"])
    ids = torch.arange(9)[None]
    expected = before(ids).logits
    adapted = with_adapters(
        before, LoraSettings(lora_rank=3, lora_targets=("q_proj", "v_proj")), "CAUSAL_LM"
    )
    torch.testing.assert_close(adapted(ids).logits, expected)
    student = LanguageStudent(adapted, NO_LABELS, 0.0)
    training = [name for name, p in student.named_parameters() if p.requires_grad]
    assert len(training) == 2 * 2 * 2
    assert all("lora_" in name for name in training)
    weight, _ = student.head_weights
    assert not weight.requires_grad


def test_layers_that_are_not_there_get_no_adapters(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    with pytest.raises(JobError, match=r"lora_targets \['q_proj'\].*GPT2LMHeadModel"):
        with_adapters(model, LoraSettings(lora_rank=2, lora_targets=("q_proj",)), "CAUSAL_LM")


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "lm_head"), ("gpt2", "lm_head"), ("gpt2", "wte")]
)
def test_the_head_gets_no_adapter(folders: dict[str, Path], family: str, target: str) -> None:
    """Nor do embeddings that are the head, too."""
    model = AutoModelForCausalLM.from_pretrained(folders[family])
    with pytest.raises(JobError, match=rf"^lora_targets \['{target}'\]: the head, and"):
        with_adapters(model, LoraSettings(lora_rank=2, lora_targets=(target,)), "CAUSAL_LM")


def test_embeddings_that_are_not_the_head_may_have_adapters(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    adapted = with_adapters(
        model, LoraSettings(lora_rank=2, lora_targets=("embed_tokens",)), "CAUSAL_LM"
    )
    assert sum(p.requires_grad for p in adapted.parameters()) == 2


def test_a_tokenizer_with_more_words_than_the_model(folders: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"])
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(StudentSourceError, match="has 321 tokens, the model 320; resize"):
        check_vocab_size(model, tokenizer, "x")


@pytest.mark.parametrize("kind", ["scratch:bert", "scratch:t5"])
def test_other_models_are_no_language_models(kind: str) -> None:
    settings = StudentSettings(student=kind, student_vocab_size=300)
    with pytest.raises(StudentSourceError, match=r"not a causal language model|encoder-decoder"):
        load_language_student(settings, LoraSettings(), NO_LABELS, TEXTS, 0.1)


@pytest.mark.parametrize("kind", ["scratch:llama", "scratch:opt", "scratch:gpt2"])
def test_a_student_from_scratch_writes_any_text(kind: str) -> None:
    settings = StudentSettings(student=kind, student_vocab_size=300, student_hidden_size=32)
    student, tokenizer = load_language_student(settings, LoraSettings(), NO_LABELS, TEXTS, 0.1)
    text = "Übermäßig 界 STARS\n shine"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert student.language_model.config.vocab_size == len(tokenizer)
    assert student.language_model.config.eos_token_id == tokenizer.eos_token_id
