"""Every command and every snippet of the docs does what it is printed to do, in small."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.store.format.manifests import list_teachers
from armada.stages.store.reading.reader import open_cache
from coloured_shapes import CAPTIONS, CLASSES, SIZE, write_shapes
from docs_material import (
    CLASSIFIER,
    WORDS_STUDENT,
    WORDS_TEACHER,
    instructions,
    table,
    write_chats,
    write_instructions,
    write_table,
)
from docs_material import TEXTS as DOCS_TEXTS
from docs_pages import INSTALLED, PAGES, ROOT, Block, Instead, Workplace, blocks
from openai_server import Model, OpenAIServer, serving
from PIL import Image
from recipes_material import write_reviews
from sentence_transformers import SentenceTransformer
from tiny_checkpoints import make_bert, make_bert_classifier
from tiny_embeddings import make_cross_encoder, make_embedding_model, modules
from tiny_generators import make_audioldm2, make_text_to_video, make_wav2vec2
from tiny_language_models import TEXTS, make_causal_lm
from tiny_masked_models import make_masked_lm
from tiny_text_towers import make_clip_of_pictures
from tiny_vlms import make_vlm
from transformers import AutoTokenizer

pytestmark = pytest.mark.long

INSTALL = Instead(
    "pip install -e .",
    f"python {Path(__file__).parents[1] / 'docs_install.py'} {INSTALLED}",
    "nothing is built, and no other package is looked up",
)
SMALL = "the tiny model draws small pictures, on a processor"
START_AT_ONCE = Instead(
    "armada precompute sd.yaml --workers auto",
    "armada precompute --corpus rte.parquet --text-column text_a --text-column text_b "
    "--teacher hash:4 --cache elsewhere --workers auto",
    "worker processes start cold, and import diffusers; as printed in a slow test",
)
WITHOUT_ONNX = (
    ()
    if find_spec("onnxruntime") and find_spec("onnxscript")
    else (Instead("armada export runs/small", "armada export --keys", "onnx is not installed"),)
)
INSTEAD = {
    "real-teachers.md": (
        Instead("height: 512", "height: 32", SMALL),
        Instead("width: 512", "width: 32", SMALL),
        Instead("resize: 128", "resize: 16", SMALL),
        Instead("steps: 20", "steps: 2", "ten times as fast"),
        Instead("rows_per_shard: 128", "rows_per_shard: 64", "the least there is, for ten rows"),
        Instead(
            "sbatch sd.sbatch",
            "for task in 1 2 3 4; do SLURM_ARRAY_TASK_ID=$task bash sd.sbatch; done",
            "no Slurm here: its tasks, one after another",
        ),
        Instead("dask scheduler --s", "dask scheduler --port 0 --s", "another test may have one"),
        Instead("--nthreads 1", "--nthreads 1 --no-nanny", "a nanny's worker starts cold"),
        Instead("--nproc-per-node 8", "--nproc-per-node 2", "two cores"),
        Instead("--set 'seed=[0, 1, 2]'", "--set 'seed=[0, 1]' --set epochs=1", "shorter"),
        Instead("--set temperature=2", "--set temperature=2 --set epochs=1", "shorter"),
        Instead("--set feature=top_k", "--set feature=top_k --set epochs=1", "shorter"),
        Instead("precision: bf16", "precision: bf16\nepochs: 1", "shorter"),
        Instead("--set lora_rank=8", "--set lora_rank=8 --set epochs=1", "shorter"),
    ),
    "language-models.md": (
        Instead("--set max_new_tokens=64 --set max_length=512", "--set max_new_tokens=4", "tiny"),
        Instead("--set max_length=512", "--set epochs=1", "the tiny models take 128; shorter"),
        Instead(
            "--set packing=document_mask", "--set packing=document_mask --set epochs=1", "shorter"
        ),
        Instead("cross_tokenizer=true", "cross_tokenizer=true --set epochs=1", "shorter"),
        Instead("hidden_layers=[28]", "hidden_layers=[2]", "the tiny model has two layers"),
        Instead("max_new_tokens=64", "max_new_tokens=4", "shorter"),
        Instead(
            "lm_eval --model hf --model_args pretrained=runs/text/student --tasks arc_easy,piqa",
            "python -c 'import transformers as t; "
            't.pipeline("text-generation", "runs/text/student")\'',
            "the harness is not installed, and its tasks are downloaded; it opens students so",
        ),
    ),
    "masked-language-models.md": (
        Instead("google-bert/bert-base-uncased", "bert", "a tiny model"),
        Instead("epochs=3", "epochs=1", "shorter"),
        Instead(" --set max_length=64", " --set max_length=32", "fewer tokens"),
    ),
    "embeddings.md": (
        Instead("sentence-transformers/all-MiniLM-L6-v2", "minilm", "a tiny model"),
        Instead("cross-encoder/ms-marco-MiniLM-L6-v2", "cross", "a tiny model"),
        Instead("student_layers=3", "student_layers=1", "the tiny model has two"),
        Instead("student_layers: 3", "student_layers: 1", "likewise"),
        Instead("student_layers: [3, 1]", "student_layers: [2, 1]", "likewise"),
        Instead("seed: [0, 1]", "seed: 0", "shorter"),
        Instead("epochs=3", "epochs=1", "shorter"),
        Instead("--components 128", "--components 8", "there are fourteen rows"),
        Instead("[64, 32]", "[4, 2]", "likewise"),
        Instead("student_layers=2", "student_layers=1", "the tiny model has two"),
        Instead("batch_size: 256", "batch_size: 8", "there are ten rows"),
        Instead("mini_batch_size: 32", "mini_batch_size: 5", "likewise"),
        *WITHOUT_ONNX,
    ),
    "text-towers.md": (
        Instead("openai/clip-vit-base-patch32", "clip", "a tiny model"),
        Instead("sentence-transformers/all-MiniLM-L6-v2", "minilm", "a tiny model"),
        Instead("student_layers: 3", "student_layers: 1", "the tiny model has two"),
        Instead("batch_size: 256", "batch_size: 32", "there are 160 rows"),
        Instead("3.0e-4", "3.0e-3", "the tiny model is not pretrained"),
    ),
    "preferences.md": (Instead("--set lora_rank=8", "--set lora_rank=8 --set epochs=1", "short"),),
    "scored-choices.md": (
        Instead("HuggingFaceTB/SmolLM2-135M-Instruct", WORDS_STUDENT, "a tiny model"),
        Instead("--set temperature=2", "--set temperature=2 --set epochs=1", "shorter"),
        Instead("--output runs/undistilled", "--output runs/undistilled --set epochs=1", "shorter"),
    ),
    "adding-a-teacher.md": (INSTALL,),
    "adding-an-objective.md": (INSTALL,),
}
"""All that is not run as printed."""

RUN_BELOW = {
    "real-teachers",
    "cache-format",
    "comparing",
    "derived-features",
    "choosing-data",
    "static-students",
    "language-models",
    "masked-language-models",
    "embeddings",
    "preferences",
    "adding-a-teacher",
    "adding-an-objective",
    "several-teachers",
    "objectives",
    "training",
    "labels",
    "scored-choices",
    "servers",
    "engines",
    "responses",
    "images-and-sounds",
    "retrieval",
    "text-towers",
}


def page(name: str) -> list[Block]:
    return blocks((ROOT / "docs" / name).read_text(encoding="utf-8"))


def run(place: Workplace, name: str, *more: Instead) -> str:
    """Run a page; returns what it printed."""
    instead = [*INSTEAD.get(name, ()), *more]
    place.write_files(page(name), instead)
    return place.run(page(name), instead)


def rows(cache: Path) -> int:
    return len(open_cache(cache))


@pytest.mark.parametrize(
    ("name", "instead"),
    [("real-teachers.md", START_AT_ONCE), *((n, i) for n in INSTEAD for i in INSTEAD[n])],
)
def test_what_is_replaced_is_there(name: str, instead: Instead) -> None:
    assert any(instead.printed in block.code for block in page(name))


def test_every_page_with_code_is_run() -> None:
    with_code = {
        file.stem for file in PAGES if {block.language for block in page(file.name)} - {"text"}
    }
    assert with_code == RUN_BELOW


# What is cached of a corpus and asked: the array's tasks, Dask, and all of RTE once more.
SHARED = ["2/2/0", "3/2/1", "2/0/2", "3/0/3", "10/7/3", "10/10/0"]
QUICK = ["2/0/2", "3/0/3", "2/0/2", "3/0/3", "10/7/3", "10/4/6"]


@pytest.mark.parametrize(
    ("shared", "more"),
    [
        pytest.param(QUICK, [START_AT_ONCE], id="quick"),
        pytest.param(SHARED, [], id="as printed", marks=pytest.mark.slow),
    ],
)
def test_real_teachers(place: Workplace, shared: list[str], more: list[Instead]) -> None:
    for number, name in enumerate(["rte", "rte-validation", "qqp", "qnli", "sst2"]):
        write_table(place.folder / f"{name}.parquet", 3 * number)
    printed = run(place, "real-teachers.md", *more)
    assert "10 rows, 10 unique; 0 already cached, 10 to compute" in printed
    said = re.findall(r"(\d+) rows, \d+ unique; (\d+) already cached, (\d+) computed", printed)
    # All GPUs of a machine come first, the other teachers last.
    assert ["/".join(numbers) for numbers in said] == ["10/0/10", *shared, *["10/0/10"] * 5]
    others = ("clip", "encoder", "classifier", "words")
    sizes = {name: rows(place.folder / name) for name in ("sd", *others)}
    assert sizes == {"sd": 10 + 6 + 3} | dict.fromkeys(others, 10)
    assert "\nwhole\n" in printed
    assert (place.folder / "sd" / "README.md").is_file()
    _check_students(place.folder / "runs", printed)


def _check_students(runs: Path, printed: str) -> None:
    for name in ("rte-sd", "rte-undistilled", "rte-shuffled"):
        assert len(json.loads((runs / name / "metrics.json").read_bytes())["seeds"]) == 2
    assert json.loads((runs / "rte-clip" / "metrics.json").read_bytes())["processes"] == 2
    assert json.loads((runs / "sst2-kd" / "metrics.json").read_bytes())["objective"] == "kd"
    assert len(re.findall(r"^10 examples, 0 without a label$", printed, re.MULTILINE)) == 4
    assert (runs / "rte-lora" / "student" / "adapter_model.safetensors").is_file()


ENGINE = "vllm:HuggingFaceTB/SmolLM2-1.7B-Instruct"


def test_servers_and_engines(place: Workplace, tmp_path: Path) -> None:
    model = make_causal_lm(tmp_path / "model")
    for name, column in (("corpus", "text"), ("prompts", "prompt")):
        lines = [json.dumps({column: text}) for text in TEXTS]
        (place.folder / f"{name}.jsonl").write_text("\n".join(lines))
    pairs = [json.dumps({"prompt": text, "response": "so it is"}) for text in TEXTS[:4]]
    (place.folder / "dolly.jsonl").write_text("\n".join(pairs))
    shorter = Instead("max_new_tokens=256", "max_new_tokens=5", "a tiny model")
    with serving(OpenAIServer(model=Model(model))) as server:
        run(
            place,
            "servers.md",
            Instead("http://localhost:8000/v1", server.url, "a free port"),
            Instead("http://localhost:8080/v1", server.url, "a free port"),
            Instead("HuggingFaceTB/SmolLM2-135M-Instruct", str(model), "a tiny model"),
            shorter,
        )
    run(place, "engines.md", Instead(ENGINE, f"causal_lm:{model}", "it has no vLLM"), shorter)
    assert rows(place.folder / "cache") == rows(place.folder / "responses") == len(TEXTS)
    assert "generated_top_k" in open_cache(place.folder / "responses").features
    assert rows(place.folder / "given") == 4
    assert (place.folder / "runs" / "given" / "student" / "adapter_model.safetensors").is_file()
    assert "generated_text" in open_cache(place.folder / "engine").features


TINY_VIDEO = "num_frames=2 --set height=32 --set width=32 --set steps=2"


def write_birds(folder: Path) -> None:
    pictures = [{"photo": f"photos/{n}.png", "caption": text} for n, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(pictures), folder / "birds.parquet")
    (folder / "photos").mkdir()
    for number in range(len(TEXTS)):
        Image.new("RGB", (20, 30), (number, 99, 9)).save(folder / f"photos/{number}.png")


def test_images_and_sounds(place: Workplace, tmp_path: Path) -> None:
    models = tmp_path / "models"
    seeing = make_vlm(models / "llava", "llava", TEXTS)
    write_table(place.folder / "rte.parquet")
    write_birds(place.folder)
    made = {
        "llava-hf/llava-1.5-7b-hf": seeing,
        "damo-vilab/text-to-video-ms-1.7b": make_text_to_video(models / "video"),
        "openai/clip-vit-large-patch14": make_clip_of_pictures(models / "clip", TEXTS),
        "cvssp/audioldm2": make_audioldm2(models / "sound"),
        "facebook/wav2vec2-base-960h": make_wav2vec2(models / "wav2vec2"),
    }
    run(
        place,
        "images-and-sounds.md",
        *(Instead(name, str(folder), "a tiny model") for name, folder in made.items()),
        Instead("num_frames=64 --set height=256 --set width=256", TINY_VIDEO, "tiny"),
        Instead("v1-4", "v1-4 --set generator_size=32 --set generator_steps=2", SMALL),
        Instead("audio_seconds=5", "audio_seconds=0.1 --set steps=2", "shorter"),
    )
    assert open_cache(place.folder / "vlm").features == ("pooled", "layer_1")
    assert rows(place.folder / "birds") == len(TEXTS)
    assert open_cache(place.folder / "retrieved")["picture_ids"][:].shape == (10, 3, 16)
    assert rows(place.folder / "bird-photos") == len(TEXTS)
    assert open_cache(place.folder / "video").features == ("video_embedding",)
    assert open_cache(place.folder / "audio").features == ("audio_embedding",)


def test_scored_choices(place: Workplace, tmp_path: Path, hub_models: Path) -> None:
    write_reviews(place.folder / "data")
    write_birds(place.folder)
    seeing = make_vlm(tmp_path / "idefics3", "idefics3", TEXTS)
    smol = Instead("HuggingFaceTB/SmolVLM-256M-Instruct", str(seeing), "a tiny model")
    with serving(OpenAIServer(model=Model(hub_models / WORDS_STUDENT))) as server:
        port = Instead("http://localhost:8000/v1", server.url, "a free port")
        engine = Instead(ENGINE, f"choices:{WORDS_STUDENT}", "it has no vLLM")
        run(place, "scored-choices.md", smol, port, engine)
    assert open_cache(place.folder / "birds").feature_spec("logits").labels == ("sitting", "flying")
    names = {
        "choices": ("logits",),
        "served": ("logits",),
        "engine": ("logits",),
        "aspects": ("aspects",),
        "critic": ("logits", "score"),
    }
    assert {name: open_cache(place.folder / name).features for name in names} == names
    labels = open_cache(place.folder / "choices").feature_spec("logits").labels
    assert labels == ("negative", "positive")
    for name in ("choices", "undistilled"):
        assert (place.folder / "runs" / name / "metrics.json").is_file()


def test_cache_format(place: Workplace) -> None:
    printed = run(place, "cache-format.md")
    assert "1 of 2 examples are not in the cache" in printed
    assert "row 6 of shard 0, truncated: False" in printed
    coded = open_cache(place.folder / "words")
    assert {"top_k", "samples"} < set(coded.features), "what the snippet of a decoder was run on"


def test_comparing(place: Workplace) -> None:
    printed = run(place, "comparing.md")
    (listed,) = [block.code for block in page("comparing.md") if block.language == "text"]
    assert listed in printed
    runs = place.folder / "runs" / "ablation"
    assert len(list(runs.glob("*/seed-*/metrics.json"))) == 14 + 4
    document = json.loads((runs / "ablation.json").read_bytes())
    assert len(document["studies"][0]["conditions"]) == 9
    said = document["studies"][0]["anova"]
    assert f"no analysis of variance: {said}" in printed, "two epochs teach nothing"
    assert "Numbers that are thirds" in (place.folder / "report.html").read_text()


def test_derived_features(place: Workplace) -> None:
    printed = run(place, "derived-features.md")
    assert "explained together: " in printed
    assert "\n300 (2, 16)\n" in printed
    kinds = [teacher.spec.kind for teacher in list_teachers(place.folder / "cache")]
    assert sorted(kinds) == ["derived", "derived", "derived", "hash"]
    run_of = json.loads((place.folder / "run" / "run.json").read_bytes())
    assert run_of["teacher"]["settings"]["components"] == 8


def test_choosing_data(place: Workplace) -> None:
    printed = run(place, "choosing-data.md")
    assert "{'rule': 'select.0 (balance)', 'key_count': 200}" in printed
    metrics = json.loads((place.folder / "runs" / "chosen" / "metrics.json").read_bytes())
    assert metrics["train_examples"] == metrics["selection"]["kept"] < 100


def test_static_students(place: Workplace) -> None:
    printed = run(place, "static-students.md")
    width = open_cache(place.folder / "cache").feature_spec("pooled").shape[0]
    assert f"(2, {width})\n" in printed
    assert open_cache(place.folder / "from-student").feature_spec("pooled").shape == (width,)


def test_retrieval(place: Workplace) -> None:
    printed = run(place, "retrieval.md")
    assert "200 pairs, 200 different query texts, 200 different passages" in printed
    assert printed.count("20 queries, 200 passages\nndcg@10 ") == 2
    assert re.search(r"^spearman +-?0\.\d+$", printed, re.MULTILINE)
    assert "negative_4" in pq.read_schema(place.folder / "mined.parquet").names


def test_language_models(place: Workplace) -> None:
    write_table(place.folder / "corpus.parquet", rows=12)
    write_table(place.folder / "held-out.parquet", first=12)
    write_chats(place.folder / "chats.parquet")
    write_instructions(place.folder / "dolly")
    prompts = (json.dumps({"prompt": f"why {number}"}) + "\n" for number in range(3))
    (place.folder / "prompts.jsonl").write_text("".join(prompts))
    printed = run(place, "language-models.md")
    assert open_cache(place.folder / "responses")["finish"].shape == (3, 4)
    assert "12 rows, 12 unique; 0 already cached, 12 computed" in printed
    held = {name: set(open_cache(place.folder / name).features) for name in ("text-words", "words")}
    assert held["text-words"] >= {"top_k", "samples", "hidden", "token_ids"}
    assert held["words"] >= {"top_k", "generated_ids"}
    assert rows(place.folder / "chat-words") == 2 * 4
    assert "divergence" in printed
    assert printed.count("rouge_l") == 2
    assert (place.folder / "runs/dolly-armada/metrics.json").is_file()
    assert (place.folder / "runs/other/metrics.json").is_file()
    assert (place.folder / "merged" / "model.safetensors").is_file()
    assert open_cache(place.folder / "next-words").teacher.spec.kind == "causal_lm"


def test_masked_language_models(place: Workplace) -> None:
    write_table(place.folder / "corpus.parquet", rows=12)
    write_table(place.folder / "held-out.parquet", first=12)
    texts = [*DOCS_TEXTS, "a [MASK]"]
    make_masked_lm(place.folder / "bert", texts=texts, layers=4)
    printed = run(place, "masked-language-models.md")
    assert "22 rows, 22 unique; 0 already cached, 22 computed" in printed
    assert "teacher_kl" in printed
    assert "'token_str'" in printed
    kept = json.loads((place.folder / "runs/small/student/config.json").read_bytes())
    assert kept["num_hidden_layers"] == 2


def test_embeddings(place: Workplace) -> None:
    write_table(place.folder / "corpus.parquet", rows=14)
    pairs = table(8, 10)
    scored = {"text_a": pairs["text_a"], "text_b": pairs["text_b"]}
    pq.write_table(
        pa.table({**scored, "score": [float(n % 5) for n in range(10)]}),
        place.folder / "pairs.parquet",
    )
    asked = {"query": pairs["text_a"], "positive": pairs["text_b"]}
    pq.write_table(pa.table(asked), place.folder / "questions.parquet")
    checkpoint = make_bert(place.folder / "bert", DOCS_TEXTS)
    make_embedding_model(place.folder / "minilm", checkpoint, layers=[modules().Normalize()])
    make_cross_encoder(
        place.folder / "cross",
        make_bert_classifier(place.folder / "scorer", DOCS_TEXTS, ["relevant"]),
    )
    printed = run(place, "embeddings.md")
    assert "spearman" in printed
    assert "(2, 32)" in printed
    vectors = np.load(place.folder / "arrays" / "features_pooled.npy")
    small = SentenceTransformer(str(place.folder / "runs/small/student"), device="cpu")
    texts = pq.read_table(place.folder / "corpus.parquet")["text"].to_pylist()
    np.testing.assert_allclose(vectors.astype(np.float32), small.encode(texts), atol=2e-3)
    assert "ubinary[32]" in printed
    assert np.load(place.folder / "codes" / "features_pooled.npy").dtype == np.int8
    student = SentenceTransformer(str(place.folder / "runs/questions/student"), device="cpu")
    assert student.prompts == {"query": "query: ", "document": "passage: "}
    rotated = SentenceTransformer(str(place.folder / "runs/matryoshka/student"), device="cpu")
    assert rotated.get_embedding_dimension() == 8
    assert "improvement: over MiniLM, student_layers=" in printed
    assert "Quality, size and speed" in (place.folder / "sizes.html").read_text()


def test_text_towers(place: Workplace) -> None:
    write_shapes(place.folder / "captions.parquet", range(8))
    write_shapes(place.folder / "held-out.parquet", [100], captions=2)
    captions = [caption.format(name) for caption in CAPTIONS for name in CLASSES]
    make_clip_of_pictures(place.folder / "clip", captions, SIZE)
    make_embedding_model(place.folder / "minilm", make_bert(place.folder / "bert", captions))
    printed = run(place, "text-towers.md")
    assert rows(place.folder / "photos") == 9 * len(CLASSES)
    assert "40 captions, 20 pictures\n" in printed
    assert "teacher_image_to_text_success@1" in printed
    assert "40 examples of 20 classes, 0 without a label\n" in printed
    accuracy = re.search(r"^top_5_accuracy +(\d\.\d+)", printed, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.5


def test_preferences(place: Workplace) -> None:
    for name, first in (("train", 0), ("held-out", 10)):
        examples = instructions(first, 10)
        columns = {
            "prompt": examples["instruction"],
            "chosen": examples["response"],
            "rejected": [f"no, {text}" for text in examples["response"].to_pylist()],
        }
        pq.write_table(pa.table(columns), place.folder / f"{name}.parquet")
    printed = run(place, "preferences.md")
    assert rows(place.folder / "reference") == 40
    assert printed.count("reward_accuracy") == 2, "of the run, and of evaluate"
    assert printed.count("preference_margin") == 3


def test_responses(place: Workplace, hub_models: Path) -> None:
    write_instructions(place.folder / "dolly")
    line: dict[str, Any] = {"question": "why?", "response": "so", "log_probs": [-0.5]}
    (place.folder / "said.jsonl").write_text(json.dumps(line) + "\n")
    predicted = _predicted_elsewhere(hub_models / WORDS_TEACHER, line["question"], line["response"])
    (place.folder / "predictions.jsonl").write_text(json.dumps(predicted) + "\n")
    printed = run(
        place,
        "responses.md",
        Instead("HuggingFaceTB/SmolLM2-360M-Instruct", WORDS_TEACHER, "the tiny teacher"),
        Instead("HuggingFaceTB/SmolLM2-135M-Instruct", WORDS_STUDENT, "the tiny student"),
        Instead(
            "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
            CLASSIFIER,
            "a tiny classifier",
        ),
        Instead("{rule: finish}", "{rule: finish, among: [stop, length]}", "few end by themselves"),
        Instead("max_new_tokens=64", "max_new_tokens=4", "shorter"),
        Instead("max_length=512", "max_length=128", "the tiny models take 128"),
        Instead("--set lora_rank=8", "--set lora_rank=8 --set epochs=1", "shorter"),
    )
    assert printed.count("10 prompts, 28 responses") == 4, "three prompts are too long"
    assert "disclaimers" in printed
    assert rows(place.folder / "tokens") == 7
    rejected = pq.read_table(place.folder / "rejected.parquet")["rule"].to_pylist()
    assert "best" in rejected
    assert len(pq.read_table(place.folder / "good.parquet")) == 7
    assert len(pq.read_table(place.folder / "next.parquet")) > 0
    assert "rouge_l" in printed
    assert open_cache(place.folder / "written").teacher.spec.settings["model"] == "someone-else"
    assert open_cache(place.folder / "predicted").feature_spec("top_k").coding.k == 20


def _predicted_elsewhere(model: Path, question: str, response: str) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    turns = [("user", question), ("assistant", response)]
    chat = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    sent = {"model": "served", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 20}
    return Model(model).completion_reply(sent)


def test_adding_a_teacher(place: Workplace) -> None:
    printed = run(place, "adding-a-teacher.md")
    assert "longer texts are cut" in printed
    assert "60 rows, 60 unique; 0 already cached, 60 computed" in printed
    assert "60 rows, 60 unique; 60 already cached, 0 computed" in printed
    cache = open_cache(place.folder / "cache")
    assert (cache.teacher.spec.kind, cache.features) == ("letters", ("share",))
    (row,) = cache.lookup("a bad cab no 1")
    assert cache["share"][row].tolist() == pytest.approx([n / 14 for n in (3, 2, 1, 1, 0, 0, 0)])
    assert (place.folder / "run" / "metrics.json").is_file()
    assert re.search(r"^12 passed", printed, re.MULTILINE)


def test_several_teachers(place: Workplace) -> None:
    run(place, "several-teachers.md")
    lines = (place.folder / "runs/two/log.jsonl").read_text().splitlines()
    assert any("feature.weight" in json.loads(line) for line in lines)
    table = json.loads((place.folder / "runs/which/ablation.json").read_bytes())
    assert len(table["studies"][0]["conditions"]) == 5


def test_around_the_loss(place: Workplace) -> None:
    run(place, "training.md")
    epochs = json.loads((place.folder / "runs/averaged/metrics.json").read_bytes())["epochs"]
    assert ["unaveraged_accuracy" in row for row in epochs] == [False, True, True]
    metrics = json.loads((place.folder / "runs/learned/metrics.json").read_bytes())
    assert [stage["until_step"] for stage in metrics["stages"]] == [6, 12]


def test_objectives(place: Workplace) -> None:
    """Every objective has its line, and what was measured is of some of them, once each."""
    run(place, "objectives.md")
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    about, measured = (
        re.findall(r"^\| `(\w+)` \| .* \| .* \|$", part, re.MULTILINE)
        for part in text.split("## What was measured")
    )
    assert sorted(about) == sorted(OBJECTIVES.built_in)
    assert len(measured) == len(set(measured))
    assert set(measured) <= set(OBJECTIVES.built_in)


def test_labels(place: Workplace) -> None:
    printed = run(place, "labels.md")
    assert "micro_f1" in printed
    metrics = json.loads((place.folder / "runs/feelings/metrics.json").read_bytes())
    assert metrics["validation"].keys() >= {"pearson", "spearman", "mse", "rmse"}
    first = json.loads((place.folder / "topics.jsonl").read_text().splitlines()[0])
    assert set(first["classes"]) <= {"even", "odd", "three"}


def test_adding_an_objective(place: Workplace) -> None:
    printed = run(place, "adding-an-objective.md")
    (said,) = re.findall(r"contrast: ([\d.]+) at first, ([\d.]+) at last", printed)
    first, last = map(float, said)
    assert last < first
    metrics = json.loads((place.folder / "run" / "metrics.json").read_bytes())
    assert metrics["objective"] == "contrast"
    (passed,) = re.findall(r"^(\d+) passed", printed, re.MULTILINE)  # the contract kit, which grows
    assert int(passed) >= 38
