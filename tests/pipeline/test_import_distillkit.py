"""Folders of DistillKit in a cache: bytes that are worked out by hand, and whole imports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.pipeline.caches.distillkit_codec import (
    CompressionSettings,
    bounded,
    decoded,
    unpacked,
)
from armada.stages.store.codec.top_k import decode_top_k
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from tiny_language_models import TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

K = 5
SETTINGS: dict[str, Any] = {
    "d": 300,
    "k": K,
    "exact_k": K,
    "exact_dtype": "float32",
    "polynomial_terms": None,
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
    "error_diffusion": False,
    "normalize_t": False,
}
BFLOAT16 = {"exact_dtype": "bfloat16"}
TOLD = ("rows", "value_dtype", "compression.exact_dtype", "compression.polynomial_terms")
Row = dict[str, Any]


def settings(**changed: Any) -> CompressionSettings:
    return CompressionSettings.model_validate(SETTINGS | changed)


def of_bytes(*text: str) -> np.ndarray:
    """Rows of bytes, each written in hexadecimal."""
    return np.array([list(bytes.fromhex(each)) for each in text], np.uint8)


def test_ids_are_packed_from_the_highest_bit() -> None:
    assert (settings(d=1000, k=2, exact_k=2).id_bits, settings(d=1000).id_bytes) == (10, 7)
    # 0000000001 1111111110 and four zeros
    assert unpacked(of_bytes("007fe0"), 10, 2).tolist() == [[1, 1022]]
    assert unpacked(of_bytes("e5", "0f"), 4, 2).tolist() == [[14, 5], [0, 15]]
    assert [settings(d=d).id_bits for d in (2, 3, 4, 5, 131072, 131073)] == [1, 2, 2, 3, 17, 18]


@pytest.mark.parametrize(
    ("changed", "text", "wanted"),
    [
        # -0.5 and -2 in float32, little-endian
        ({"k": 2, "exact_k": 2}, "000000bf000000c0", [-0.5, -2]),
        # the same as differences: -0.5, then -0.5 - 2
        ({"k": 2, "exact_k": 2, "delta_encoding": True}, "000000bf000000c0", [-0.5, -2.5]),
        ({"k": 2, "exact_k": 2, "exact_dtype": "bfloat16"}, "00bf00c0", [-0.5, -2]),
        ({"k": 2, "exact_k": 2, "exact_dtype": "float16"}, "00b800c0", [-0.5, -2]),
        ({"k": 1, "exact_k": 1, "exact_dtype": "float64"}, "000000000000e0bf", [-0.5]),
        # -0.5, and the line -2 - t through t = 0, 1, 2
        (
            {"k": 4, "exact_k": 1, "polynomial_terms": [0, 1]},
            "000000bf" + "000000c0" + "000080bf",
            [-0.5, -2, -3, -4],
        ),
        # the same line with t = 0, 1/2, 1
        (
            {"k": 4, "exact_k": 1, "polynomial_terms": [0, 1], "normalize_t": True},
            "000000bf" + "000000c0" + "000080bf",
            [-0.5, -2, -2.5, -3],
        ),
        ({"k": 2, "exact_k": 0, "polynomial_terms": ["sqrt"]}, "000000c0", [0, -2]),
        # -1, then 0.5 (q - 8) of four bits, q = 7, 4, 0, and nothing of the fourth
        (
            {
                "k": 5,
                "exact_k": 1,
                "residual_bins": [{"scale_dtype": "float16", "element_bits": 4, "num_elements": 3}],
            },
            "000080bf" + "0038" + "7400",
            [-1, -0.5, -2, -4, 0],
        ),
        # -2 + s, -2 - s of one bit each, s = 0.5
        (
            {
                "k": 2,
                "exact_k": 0,
                "polynomial_terms": [0],
                "residual_bins": [{"scale_dtype": "float32", "element_bits": 1, "num_elements": 2}],
            },
            "000000c0" + "0000003f" + "80",
            [-1.5, -2.5],
        ),
    ],
)
def test_values_by_hand(changed: Row, text: str, wanted: list[float]) -> None:
    found = settings(**changed)
    rows = of_bytes(text, text)
    assert found.value_bytes == rows.shape[1]
    assert decoded(found, rows).tolist() == [wanted, wanted]
    assert decoded(found, rows[:1]).tolist() == [wanted]


def test_a_curve_is_held_to_what_is_certain() -> None:
    log_probs = np.log(np.array([[0.5, 0.2, 0.1], [0.5, 0.9, 0.1], [0.5, 0.5, 0.5]], np.float32))
    found = np.exp(bounded(log_probs, 1))
    np.testing.assert_allclose(found[0], [0.5, 0.2, 0.1], rtol=1e-6)
    # At most the last exact one, then together at most the half that it leaves.
    np.testing.assert_allclose(found[1], [0.5, 0.5 * 5 / 6, 0.5 / 6], rtol=1e-6)
    np.testing.assert_allclose(found[2], [0.5, 0.25, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(bounded(log_probs, 3), log_probs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal_lm(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def raw_rows(folder: Path) -> list[Row]:
    """Rows as the sampler has them before it compresses: shuffled, a pad token behind each text,
    all tokens but the first predicted."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for text in reversed(TEXTS):
        ids = [*tokenizer(text)["input_ids"], tokenizer.pad_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        top = logits.log_softmax(1).topk(K)
        found.append(
            {"input_ids": ids, "token_ids": top.indices.tolist(), "top_values": top.values.tolist()}
        )
    return found


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


BYTES = pa.list_(pa.list_(pa.uint8()))
SCHEMAS = {
    "raw": {
        "token_ids": pa.list_(pa.list_(pa.int32())),
        "top_values": pa.list_(pa.list_(pa.float32())),
    },
    "compressed": {"compressed_logprobs": BYTES, "bytepacked_indices": BYTES},
}


def write(folder: Path, form: str, rows: list[Row], keys: Row | None = None) -> Path:
    """Two files, of row groups of two rows, and the settings."""
    folder.mkdir()
    schema = pa.schema({"input_ids": pa.list_(pa.uint64()), **SCHEMAS[form]})
    for number, part in enumerate((rows[:4], rows[4:])):
        table = pa.Table.from_pylist(part, schema)
        pq.write_table(table, folder / f"data_{number}.parquet", row_group_size=2)
    if keys is not None:
        (folder / "compression_config.yaml").write_text(yaml.safe_dump(keys))
    return folder


def packed(ids: list[int], bits: int) -> list[int]:
    """Ids as one number of so many bits each, in whole bytes."""
    text = "".join(format(each, f"0{bits}b") for each in ids)
    return [*int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")]


def compressed(row: Row, exact_dtype: str = "float32", bits: int = 9) -> Row:
    """A row of the layout with bytes, its values as they are."""
    values = [
        torch.tensor(each, dtype=getattr(torch, exact_dtype)).view(torch.uint8).tolist()
        for each in row["top_values"]
    ]
    ids = [packed(each, bits) for each in row["token_ids"]]
    return {
        "input_ids": row["input_ids"],
        "compressed_logprobs": values,
        "bytepacked_indices": ids,
    }


def curved(row: Row) -> Row:
    """The same with a parabola through the last three values, after the exact ones."""
    through = np.linalg.inv(np.vander(np.arange(3), increasing=True))
    numbers = [[*each[:-3], *(through @ each[-3:])] for each in row["top_values"]]
    return compressed(row | {"top_values": numbers})


def words(corpus: Path, source: Path, folder: Path, **keys: Any) -> list[object]:
    options = {"tokenizer": folder, "top_k": K, "end_token": "false", **keys}
    given = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    named = ["--name", "elsewhere", "--declare", "model=tiny", "--corpus", corpus]
    return [
        *("cache", "import", corpus.parent / "cache", source, *named),
        *("--text-column", "text", *given, "--quiet"),
    ]


def kept(cache: Path) -> Any:
    """Ids and log-probabilities of all texts."""
    opened = open_cache(cache)
    rows = opened.find(keys_to_array([example_key((text,)) for text in TEXTS]))
    coding = opened.feature_spec("top_k").coding
    assert coding is not None
    return decode_top_k(coding, opened.ragged("top_k").gather(rows).values)


def test_predictions_are_those_of_causal_lm(
    armada: CommandLine, corpus: Path, folder: Path, raw_rows: list[Row]
) -> None:
    named = ("--teacher", f"causal_lm:{folder}", "--cache", corpus.parent / "local")
    options = ("--set", f"top_k={K}", "--set", "end_token=false")
    armada.done("precompute", "--corpus", corpus, "--text-column", "text", *named, *options)
    theirs = kept(corpus.parent / "local")
    half = [compressed(row, "bfloat16") for row in raw_rows]
    curve = SETTINGS | {"exact_k": K - 3, "polynomial_terms": [0, 1, 2]}
    forms = {
        "raw": (write(corpus.parent / "raw", "raw", raw_rows), 0.02),
        "exact": (
            write(corpus.parent / "exact", "compressed", half, SETTINGS | BFLOAT16),
            0.05,
        ),
        # Through three values there is a curve without an error.
        "curve": (
            write(corpus.parent / "curve", "compressed", [curved(row) for row in raw_rows], curve),
            0.02,
        ),
    }
    for form, (source, bound) in forms.items():
        cache = corpus.parent / form / "cache"
        given = words(corpus, source, folder)
        given[2] = cache
        said = armada.done(*given)
        assert f"{len(TEXTS)} rows; 0 already cached, {len(TEXTS)} imported as top_k" in said
        assert f"{len(TEXTS)} already cached, 0 imported" in armada.done(*given)
        ours = kept(cache)
        np.testing.assert_allclose(ours.log_probs_Nk, theirs.log_probs_Nk, atol=bound)
        if form != "exact":
            np.testing.assert_array_equal(ours.ids_Nk, theirs.ids_Nk)
        spec = open_cache(cache).teacher.spec
        assert (spec.kind, spec.weights, spec.settings["model"]) == ("imported", {}, "tiny")
        assert spec.settings["layout"] == "distillkit"
        told = {name: spec.settings.get(name) for name in TOLD}
        assert (
            tuple(told.values())
            == {
                "raw": ("raw", "float32", None, None),
                "exact": ("compressed", None, "bfloat16", ()),
                "curve": ("compressed", None, "float32", ("0", "1", "2")),
            }[form]
        )


def test_a_student_learns_from_them(
    armada: CommandLine, corpus: Path, folder: Path, raw_rows: list[Row]
) -> None:
    rows = [compressed(row) for row in raw_rows]
    armada.done(
        *words(corpus, write(corpus.parent / "sampled", "compressed", rows, SETTINGS), folder)
    )
    output = corpus.parent / "student"
    options = ("task=language", "epochs=1", "objective=tokens", "feature=top_k", "end_token=false")
    armada.done(
        *("distill", "--student", folder, "--train", corpus, "--text-column", "text"),
        *("--output", output, "--cache", corpus.parent / "cache"),
        *(word for option in options for word in ("--set", option)),
    )
    losses = json.loads((output / "metrics.json").read_text())["train_losses"]
    assert 0 < losses["loss"] < 20


def _with(row: Row, **changed: Any) -> Row:
    return row | changed


def _in_place(lists: list[list[Any]], at: int, values: list[Any]) -> list[list[Any]]:
    return [*lists[:at], values, *lists[at + 1 :]]


def test_bad_rows(armada: CommandLine, corpus: Path, folder: Path, raw_rows: list[Row]) -> None:
    first = raw_rows[0]
    ids, values = first["token_ids"], first["top_values"]
    for number, (bad, told) in enumerate(
        [
            ({"token_ids": ids[:-2], "top_values": values[:-2]}, "places for"),
            ({"token_ids": ids[:-1]}, "token_ids holds"),
            ({"top_values": _in_place(values, 1, [float("nan")] * K)}, "is not a number"),
            ({"top_values": _in_place(values, 1, [3.5] * K)}, "may be logits"),
            ({"top_values": _in_place(values, 1, [-0.1] * K)}, "sum up to"),
            ({"top_values": _in_place(values, 1, [-np.inf] * K)}, "no token is predicted"),
            ({"top_values": _in_place(values, 1, [-9.0, None, -9, -9, -9])}, "holds null"),
            ({"top_values": None}, "holds nothing"),
            ({"top_values": _in_place(values, 1, [-9.0])}, "has 1 to 5 numbers"),
            ({"token_ids": _in_place(ids, 1, [99999, 1, 2, 3, 4])}, "has no such token"),
            ({"token_ids": _in_place(ids, 1, [-1, 1, 2, 3, 4])}, "which is no id"),
            ({"token_ids": _in_place(ids, 1, [7, 7, 2, 3, 4])}, "have the id 7"),
        ]
    ):
        rows = [_with(first, **bad), *raw_rows[1:]]
        source = write(corpus.parent / f"raw{number}", "raw", rows)
        refused = armada(*words(corpus, source, folder))
        assert (refused.code, told in refused.error) == (2, True), (told, refused.error)
        assert "texts.jsonl row 6" in refused.error
    result = armada(*words(corpus, source, folder, skip_bad_rows="true"))
    assert (result.code, told in result.err) == (0, True)
    # Ids of -inf are memory as it was.
    absent = {
        "token_ids": _in_place(ids, 1, [1, 2, 3, 4, 2**31 - 1]),
        "top_values": _in_place(values, 1, [-1, -2, -3, -4, -np.inf]),
    }
    # A place for what comes behind the text, as training by DistillKit has them, is left out.
    longer = {
        name: [*raw_rows[1][name], raw_rows[1][name][0]] for name in ("token_ids", "top_values")
    }
    rows = [_with(first, **absent), _with(raw_rows[1], **longer), *raw_rows[2:]]
    source = write(corpus.parent / "absent", "raw", rows)
    assert f"{len(TEXTS) - 1} already cached, 1 imported" in armada.done(
        *words(corpus, source, folder)
    )
    given = words(corpus, source, folder)
    given[2] = corpus.parent / "other"
    assert f"{len(TEXTS)} imported" in armada.done(*given)
    np.testing.assert_array_equal(
        kept(corpus.parent / "other").log_probs_Nk[:-1],
        kept(corpus.parent / "cache").log_probs_Nk[:-1],
    )


def test_rows_and_texts_that_lack_each_other(
    armada: CommandLine, corpus: Path, folder: Path, raw_rows: list[Row]
) -> None:
    other = raw_rows[0] | {"input_ids": [*raw_rows[0]["input_ids"][:-3], 3, 3, 3]}
    null = raw_rows[0] | {"input_ids": None}
    source = write(corpus.parent / "some", "raw", [other, *raw_rows[1:], raw_rows[1], null])
    refused = armada(*words(corpus, source, folder))
    assert f"1 of {len(TEXTS) + 2} rows have no predictions" in refused.error
    assert "row 8: input_ids holds nothing" in refused.error
    result = armada(*words(corpus, source, folder, skip_bad_rows="true"))
    assert result.code == 0
    assert "1 of the features match no row of the corpus" in result.err
    assert "texts.jsonl row 6: no predictions of its tokens" in result.err
    assert "row 7: has the tokens of an earlier row" in result.err
    refused = armada(*words(corpus, source, folder, end_token="true", skip_bad_rows="true"))
    assert "none of its rows begins with the tokens of a row of the corpus" in refused.error


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"codebook": 3}, "'codebook' is unknown"),
        ({"k": "many"}, "compression key 'k'"),
        ({"k": 10**12}, "compression key 'k'"),
        ({"exact_k": 6}, "exact_k: 6 is above k, 5"),
        ({"exact_k": 4}, "neither polynomial_terms nor residual_bins"),
        ({"exact_dtype": "float8"}, "exact_dtype"),
        ({"exact_dtype": "float16"}, "these are not the settings with which it was written"),
        ({"d": 600}, "has 6 bytes in each place"),
        ({"d": 64}, "means ids of 6 bits"),
        (
            {"exact_k": 4, "residual_bins": [dict.fromkeys(("num_elements", "element_bits"), 64)]},
            "residual_bins",
        ),
        ({"exact_k": 4, "polynomial_terms": ["cos"]}, "polynomial_terms"),
        ({"k": 3, "exact_k": 3}, "'top_k': 5 is above the 3 tokens"),
    ],
)
def test_settings_that_cannot_be(
    armada: CommandLine,
    corpus: Path,
    folder: Path,
    raw_rows: list[Row],
    changed: Row,
    told: str,
) -> None:
    rows = [compressed(row) for row in raw_rows]
    source = write(corpus.parent / "sampled", "compressed", rows, SETTINGS | changed)
    refused = armada(*words(corpus, source, folder))
    assert (refused.code, told in refused.error) == (2, True), refused.error


def test_folders_that_are_none(
    armada: CommandLine, corpus: Path, folder: Path, raw_rows: list[Row]
) -> None:
    rows = [compressed(row) for row in raw_rows]
    source = write(corpus.parent / "sampled", "compressed", rows)

    def refused(**keys: Any) -> str:
        result = armada(*words(corpus, source, folder, **keys))
        assert result.code == 2
        return str(result.error)

    config = source / "compression_config.yaml"
    assert "compression_config.yaml: is not there" in refused()
    for text, told in (
        ("[1, 2]", "is no mapping"),
        ("!!python/object/apply:os.system [ls]", "cannot be read"),
        ("{", "cannot be read"),
        ("a: " + "b" * 2**17, "is longer than"),
    ):
        config.write_text(text)
        assert told in refused()
    config.write_text(yaml.safe_dump(SETTINGS))
    assert "'own_log_probs': true: rows of DistillKit have no" in refused(own_log_probs="true")
    without = [
        word for word in words(corpus, source, folder) if not str(word).startswith("tokenizer")
    ]
    without.remove("--set")
    assert "'tokenizer' is missing" in armada(*without).error
    file = source / "data_1.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    assert "data_1.parquet: cannot be read" in refused()
    file.unlink()
    whole = (source / "data_0.parquet").read_bytes()
    (source / "data_0.parquet").write_bytes(
        whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :]
    )
    assert "cannot be read" in refused()
    for columns, told in (
        (("packed_indices", "exact_values", "coeffs"), "from which log-probabilities cannot be"),
        (("token_ids",), "has neither columns"),
        (("token_ids", "top_values"), "is list<item: list<item: uint8>>, not lists of lists of"),
    ):
        schema = pa.schema({"input_ids": pa.list_(pa.uint64()), **dict.fromkeys(columns, BYTES)})
        pq.write_table(schema.empty_table(), source / "data_0.parquet")
        assert told in refused().replace("element", "item")
    pq.write_table(pa.table({"text": ["a"]}), source / "data_0.parquet")
    assert "no column 'input_ids'" in refused()
    (source / "data_0.parquet").unlink()
    assert "has no Parquet files" in refused()
