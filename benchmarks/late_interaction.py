"""Students with a vector for each token, beside those with one vector, and beside the same student
trained by sentence-transformers.

    python benchmarks/late_interaction.py MINILM TRAIN TEST

MINILM is a folder of a sentence encoder; TRAIN and TEST are Parquet files with the columns `text`
and `image_id` (captions of COCO): two captions of a picture are a query and its passage. All
students begin with the encoder's first three layers and learn from pairs alone (`contrastive`;
`MultiVectorMultipleNegativesRankingLoss` of the same similarity), in the same batches' size and
rate. Each run is a process of its own, by turns, one round a seed; sentence-transformers opens and
measures all of them:

    ndcg@10, recall@1   of the first captions of TEST, each among all its second captions
    seconds             of training: tokens made, steps taken, without imports and models
    MiB                 most memory of the process
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embedding_runs import (
    add_training_options,
    in_a_process,
    most_memory,
    spread,
    train_by_sentence_transformers,
    training_keys,
    training_options,
)

LAYERS, DIM, TEMPERATURE = 3, 128, 0.05


def main() -> None:
    options = read_options()
    if options.run is not None:
        print(json.dumps(RUNS[options.run](options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.work = Path(temporary)
        for name, file in (("train", options.train), ("test", options.test)):
            pq.write_table(pairs_of(file, options.rows), options.work / f"{name}.parquet")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
        for seed in options.seeds:
            for name in RUNS:
                found[name].append(call(options, name, seed))
                print(name, seed, found[name][-1], file=sys.stderr, flush=True)
        show(found)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    add_training_options(parser, 1e-4)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def pairs_of(file: Path, most: int) -> pa.Table:
    """The first two different captions of each picture."""
    captions: dict[Any, dict[str, None]] = {}
    table = pq.read_table(file, columns=["image_id", "text"])
    for picture, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        captions.setdefault(picture, {})[text] = None
    rows = [list(each)[:2] for each in captions.values() if len(each) > 1][:most]
    return pa.table({"query": [one for one, _ in rows], "passage": [two for _, two in rows]})


def call(options: argparse.Namespace, run: str, seed: int) -> dict[str, Any]:
    return in_a_process(
        __file__,
        *(options.encoder, options.train, options.test),
        *("--run", run, "--work", options.work, "--seed", seed, *training_options(options)),
    )


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    print("| student | ndcg@10 | recall@1 | seconds, median | MiB, most |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        figures = [spread([run[each] for run in runs]) for each in ("ndcg@10", "recall@1")]
        seconds, most = median(run["seconds"] for run in runs), max(run["MiB"] for run in runs)
        print(f"| {name} | {' | '.join(figures)} | {seconds:.1f} | {most:.0f} |")
    pairs = zip(found["tokens"], found["tokens, sentence-transformers"], strict=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    print("\ntime by that of sentence-transformers, by round:", *(f"{each:.2f}" for each in ratios))


# --- One process each


def by_armada(options: argparse.Namespace, name: str, **keys: Any) -> dict[str, Any]:
    """A run of `distill`."""
    import armada

    output = options.work / f"{name}-{options.seed}"
    report = armada.distill(
        train=options.work / "train.parquet",
        text_column=["query", "passage"],
        task="embedding",
        objective="contrastive",
        similarity_temperature=TEMPERATURE,
        student=options.encoder,
        student_layers=LAYERS,
        output=output,
        **training_keys(options),
        **keys,
    )
    return measured(options, output / "student", report["train_seconds"])


def of_one_vector(options: argparse.Namespace) -> dict[str, Any]:
    return by_armada(options, "one")


def of_tokens(options: argparse.Namespace) -> dict[str, Any]:
    return by_armada(options, "tokens", pooling="none", embedding_dim=DIM)


def by_sentence_transformers(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens by its trainer and its loss."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        MultiVectorEncoder,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
    )
    from sentence_transformers.multi_vector_encoder.losses import (
        MultiVectorMultipleNegativesRankingLoss,
    )
    from sentence_transformers.multi_vector_encoder.scoring import colbert_scores

    def similarity(*given: Any, **more: Any) -> Any:
        return colbert_scores(*given, **more, length_normalize=True)

    torch.manual_seed(options.seed)
    model = MultiVectorEncoder(str(options.encoder), device="cpu", similarity_fn_name="meanmaxsim")
    encoder = model[0].auto_model.encoder
    encoder.layer = torch.nn.ModuleList(list(encoder.layer)[:LAYERS])
    model[0].auto_model.config.num_hidden_layers = LAYERS
    torch.nn.init.orthogonal_(model[1].linear.weight)  # as armada's begins
    output = options.work / f"other-{options.seed}"
    seconds = train_by_sentence_transformers(
        options,
        output,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        model=model,
        train_dataset=Dataset.from_dict(pq.read_table(options.work / "train.parquet").to_pydict()),
        loss=MultiVectorMultipleNegativesRankingLoss(
            model, scale=1 / TEMPERATURE, similarity_fct=similarity
        ),
    )
    return measured(options, output / "student", seconds)


def measured(options: argparse.Namespace, student: Path, seconds: float) -> dict[str, Any]:
    used = most_memory()  # before it is evaluated
    rows = pq.read_table(options.work / "test.parquet").to_pydict()
    ranks = ranks_of(student, rows["query"], rows["passage"])
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    figures = {"ndcg@10": float(gains.mean()), "recall@1": float((ranks == 0).mean())}
    return {"seconds": seconds, "MiB": used, **figures}


def ranks_of(student: Path, queries: list[str], passages: list[str]) -> Any:
    """How many passages are more similar to each query than its own."""
    import sentence_transformers

    declared = json.loads((student / "config_sentence_transformers.json").read_text())
    model = getattr(sentence_transformers, declared["model_type"])(str(student), device="cpu")
    alike = model.similarity(model.encode_query(queries), model.encode_document(passages)).numpy()
    return (alike > alike.diagonal()[:, None]).sum(axis=1)


RUNS = {
    "one vector": of_one_vector,
    "tokens": of_tokens,
    "tokens, sentence-transformers": by_sentence_transformers,
}


if __name__ == "__main__":
    main()
