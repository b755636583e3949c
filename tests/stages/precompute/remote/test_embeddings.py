"""Replies with embeddings, in each form that servers have."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from armada.cache_schemas.errors import JobError
from armada.stages.precompute.remote.embeddings import body, read
from armada.stages.precompute.remote.wire import MalformedReplyError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

Matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def reply_of(vectors: Any) -> dict[str, Any]:
    items = [{"index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    return {"object": "list", "model": "m", "data": items}


@given(Matrices, st.randoms(), st.booleans())
def test_reads_every_form_bit_for_bit_in_any_order(
    matrix: Any, order: Any, in_base64: bool
) -> None:
    packed = [
        base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() if in_base64 else row.tolist()
        for row in matrix
    ]
    reply = reply_of(packed)
    order.shuffle(reply["data"])
    found = read(json.loads(json.dumps(reply)), len(matrix))
    assert found.dtype == np.float32
    assert found.tobytes() == matrix.tobytes()


def test_reads_the_dialects_of_llama_cpp_and_tei() -> None:
    wanted = [[1.0, 2.0], [3.0, 4.0]]
    nested = [{"index": 1, "embedding": [[3.0, 4.0]]}, {"index": 0, "embedding": [[1.0, 2]]}]
    assert read(nested, 2).tolist() == wanted
    assert read(wanted, 2).tolist() == wanted


def test_one_embedding_need_not_say_its_index() -> None:
    assert read({"data": [{"embedding": [1.5]}]}, 1).tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"data": [{"index": 0, "embedding": [1]}]}, "1 of 2 embeddings; that of index 1"),
        (reply_of([[1], [2], [3]]), "index is 2, not one of 2"),
        ({"data": [{"index": 0, "embedding": [1]}] * 2}, "two embeddings of index 0"),
        ({"data": [{"index": -1, "embedding": [1]}] * 2}, "index is -1"),
        ({"data": [{"index": True, "embedding": [1]}] * 2}, "index is True"),
        ({"data": [{"embedding": [1]}] * 2}, "index is None"),
        (reply_of([[1], [2, 3]]), "of 1 and of 2 dimensions"),
        (reply_of([[1], []]), r"data\[1\].embedding is \[\]"),
        (reply_of([[1], [float("nan")]]), r"embedding\[0\] is nan"),
        (reply_of([[1], [1e39]]), r"embedding\[0\] is inf"),
        (reply_of([[1], [10**400]]), "not a finite float32"),
        (reply_of([[1], [None]]), r"embedding\[0\] is None"),
        (reply_of([[1], ["1"]]), r"embedding\[0\] is '1'"),
        (reply_of([[1], [True]]), r"embedding\[0\] is True"),
        (reply_of([[1], [[1], [2]]]), "start the server with pooling"),
        (reply_of([[1], "AAA"]), "not base64 of float32"),
        (reply_of([[1], "AAAA"]), "not base64 of float32"),
        (reply_of([[1], None]), "not a list"),
        ([[1.0]], "1 of 2 embeddings"),
        ({"data": None}, "data is None"),
        ({"error": "Busy"}, "reply is an error: 'Busy'"),
        ("<html>", "reply is '<html>'"),
        (None, "reply is None"),
    ],
)
def test_refuses_what_is_no_embedding_of_each_text(reply: Any, message: str) -> None:
    with pytest.raises(MalformedReplyError, match=message):
        read(reply, 2)


def test_a_message_is_one_short_line() -> None:
    with pytest.raises(MalformedReplyError) as caught:
        read(reply_of([[1], "\x1b[31m\n" * 1000]), 2)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_asks_for_what_is_wanted_and_no_more() -> None:
    assert body("m", ("a", "b")) == {"model": "m", "input": ["a", "b"], "encoding_format": "float"}
    more = body("m", ["a"], 256, "base64", {"truncate_prompt_tokens": 512})
    assert more["dimensions"] == 256
    assert more["encoding_format"] == "base64"
    assert more["truncate_prompt_tokens"] == 512
    with pytest.raises(JobError, match="'input'"):
        body("m", ["a"], extra={"input": "b"})
