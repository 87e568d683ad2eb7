"""Documents to tokens, many at a time (torch side)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from blake3 import blake3

from hybridize.cpt.data.blocks import Array, Document
from hybridize.errors import HybridizeError
from hybridize.torch_model.windows import Reader

LONG = 1 << 21  # characters; a longer document is tokenized in pieces
PIECE = 1 << 16  # characters of a piece, at most: larger ones are tokenized more slowly
AT_ONCE = 16  # pieces
LINE = re.compile(r".*\S\n(?=\S)", re.DOTALL)  # up to where a line begins, and no empty one
WORD = re.compile(r".*\S(?= \S)", re.DOTALL)  # up to where a word ends


class Tokens:
    """Makes tokens of documents, each between what the reader puts before text and the end token.

    A document of more than LONG characters is tokenized in pieces, since a tokenizer takes some
    hundred bytes for each character while it works. They end where a line begins or else where a
    word ends: there most tokenizers begin a new token anyway. Where one does not, or where there is
    neither, a few tokens at the cut are others than those of the whole document.

    Attributes:
        blake3: of all that decides what tokens a text has.
    """

    def __init__(self, reader: Reader) -> None:
        tokenizer: Any = reader.tokenizer
        first, last = reader.start, tokenizer.eos_token_id
        self._begin, self._end = _ids(first), _ids([] if last is None else [last])
        self._num_rows, self._backend = reader.rows, tokenizer.backend_tokenizer
        # What each call of the tokenizer sets, so that the hash is the same before it and after.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        settings = (tokenizer.split_special_tokens, first, last, reader.rows, LONG, PIECE, AT_ONCE)
        self.blake3 = blake3(f"{settings} {self._backend.to_str()}".encode()).hexdigest()

    def of(self, texts: Sequence[str]) -> list[Document]:
        """Documents of some texts, which together should not be long."""
        return [
            Document(np.concatenate([self._begin, i, self._end])) for i in self._tokenize(texts)
        ]

    def of_long(self, text: str, enough: int) -> Document:
        """The document of a long text, up to the end of the piece where there are enough tokens."""
        found, pieces = [self._begin], _pieces(text)
        while some := list(islice(pieces, AT_ONCE)):
            found += self._tokenize(some)
            if sum(map(len, found)) > enough:
                break
        else:
            found.append(self._end)
        return Document(np.concatenate(found))

    def _tokenize(self, texts: Sequence[str]) -> list[Array]:
        """Ids of each text.

        Raises:
            HybridizeError: the model's embedding has no row for one of them.
        """
        # The tokenizer's own call would take half as long again, for offsets and masks.
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        found = [_ids(encoding.ids) for encoding in encoded]
        largest = max((int(ids.max()) for ids in found if len(ids)), default=0)
        if largest >= self._num_rows:
            raise HybridizeError(
                f"the tokenizer gives token {largest}, the embedding has {self._num_rows} rows",
                fix="put the model's own tokenizer files into its folder",
            )
        return found


def _ids(tokens: Sequence[int]) -> Array:
    return np.array(tokens, np.int32)


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = begin + PIECE
        if end < len(text):
            cut = LINE.match(text, begin, end) or WORD.match(text, begin, end)
            end = cut.end() if cut else end
        yield text[begin:end]
        begin = end
