"""A column of chats: lists of turns, each with a role and a content, as segments of text.

Of a column `messages`, a chat is learned up to its last answer; of `messages*`, each answer of the
assistant is an example of its own, with all that was said before it as its prompt.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.chats import Turns, asking_turns, chat_problem, chat_segment

EACH_ANSWER = "*"
"""Behind the name of a column of chats of which every answer is learned."""

Rows = npt.NDArray[np.int64]


def holds_chats(kind: pa.DataType) -> bool:
    """Whether a column of that type is one of lists of objects."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_struct(kind.value_type))


def read_chats(column: pa.ChunkedArray, asks: bool) -> tuple[list[Turns | None], dict[int, str]]:
    """The chats, and row -> what is wrong with it; `asks`: no answer is needed."""
    chats = column.to_pylist()
    found = ((row, chat_problem(_known(chat), asks)) for row, chat in enumerate(chats))
    return chats, {row: problem for row, problem in found if problem is not None}


def chat_examples(
    chats: Sequence[Turns | None], rows: Rows, each_answer: bool, asks: bool
) -> tuple[pa.Array, Rows]:
    """The segments of the chats of some rows, none of them with a problem, and the row of each;
    `asks`: each up to what asks for its last answer."""
    segments, owners = list[str](), list[int]()
    for row in rows.tolist():
        turns = _known(chats[row]) or []
        if asks:
            segments.append(chat_segment(asking_turns(turns)))
            owners.append(row)
            continue
        ends = [place for place, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
        for end in ends if each_answer else ends[-1:]:
            segments.append(chat_segment(turns[:end]))
            owners.append(row)
    return pa.array(segments, pa.large_string()), np.array(owners, dtype=np.int64)


def _known(turns: Turns | None) -> Turns | None:
    """The turns without what is null: columns of objects have all fields in every row."""
    if turns is None:
        return None
    return [
        {name: value for name, value in turn.items() if value is not None} if turn else {}
        for turn in turns
    ]
