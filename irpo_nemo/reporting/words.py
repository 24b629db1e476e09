"""The index that full-text search reads: which problems hold a word, in which model's completions.

    word -> [place of problem, mask, place, mask, ...]        places rising

Bit 0 of a mask stands for the question (with its prompt and solution), bit 1 + t for the completions of M_t; models
from M_29 on share the last bit, as bits of a number in a browser end there. A word is a run of letters and digits in
lower case; longer ones count by their first `MAX_LENGTH` characters. browser.js cuts a query the same way.
"""

import re
from array import array
from collections.abc import Iterable, Iterator

MAX_LENGTH = 32
_LAST_BIT = 30
_WORD = re.compile(r"\w+")

QUESTION = 0


def bit_of(model: int) -> int:
    """The bit of M_t's completions."""
    return min(1 + model, _LAST_BIT)


def find_words(text: str) -> set[str]:
    """The different words of a text."""
    words = set(_WORD.findall(text.lower()))
    return {word[:MAX_LENGTH] for word in words}


class WordIndex:
    """Grows problem by problem; holds eight bytes for each word of each problem."""

    def __init__(self) -> None:
        self._postings: dict[str, array[int]] = {}

    def add(self, place: int, texts: Iterable[tuple[int, str]]) -> None:
        """Add the problem at `place`, with the bit and the text of each of its parts. Places rise."""
        masks: dict[str, int] = {}
        for bit, text in texts:
            for word in find_words(text):
                masks[word] = masks.get(word, 0) | 1 << bit
        for word, mask in masks.items():
            self._postings.setdefault(word, array("I")).extend((place, mask))

    def pop_shards(self, max_numbers: int) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Yield the words in order, with their postings, in shards of about `max_numbers` numbers; empties the index.

        The order is that of UTF-16 units, which is how a browser compares.
        """
        words: list[str] = []
        postings: list[list[int]] = []
        size = 0
        for word in sorted(self._postings, key=lambda word: word.encode("utf-16-be", "surrogatepass")):
            found = self._postings.pop(word).tolist()
            words.append(word)
            postings.append(found)
            size += len(found)
            if size >= max_numbers:
                yield words, postings
                words, postings, size = [], [], 0
        if words:
            yield words, postings
