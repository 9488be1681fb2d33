"""The n-gram floor of WikiText-2: interpolated modified Kneser-Ney, 4-grams, at fixed vocabularies.

Words are what stands between blanks, the end of every line is a word too, also of an empty one, and words
beyond the vocabulary are `<unk>`. The same text gets a lower perplexity from a smaller vocabulary: a word
perplexity means nothing without these figures at its own vocabulary. Needs no model. `--data` is a folder
with train.txt and valid.txt. With `--json` the last line is JSON. Example:

    python benchmarks/kneser_ney.py --data wikitext2 --vocab 33278 8000 --json
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bithaul.evaluation.kneser_ney import KneserNey

END, UNKNOWN = "<eos>", "<unk>"
FLOOR = 1e-6
FILES = ("train.txt", "valid.txt")


def words_of(path: Path) -> list[str]:
    """All words of a file, line ends included."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END)]


def measure(train: list[str], valid: list[str], vocab: int) -> dict[str, object]:
    """Perplexity of `valid` at a vocabulary of at most `vocab` words, `<unk>` and the line end included.

    The most frequent words stay; of equally frequent ones those seen first.
    """
    started = time.perf_counter()
    ranked = [word for word, _ in Counter(train).most_common() if word not in (END, UNKNOWN)]
    ids = {word: i for i, word in enumerate([END, UNKNOWN, *ranked][:vocab])}

    def encoded(words: list[str]) -> npt.NDArray[np.int64]:
        return np.array([ids.get(word, 1) for word in words], dtype=np.int64)

    found = KneserNey.fit(encoded(train), vocab_size=len(ids)).probabilities(encoded(valid))
    return {
        "vocab": len(ids),
        "perplexity": round(float(np.exp(-np.log(found).mean())), 2),
        "perplexity_floored": round(float(np.exp(-np.log(np.maximum(found, FLOOR)).mean())), 2),
        "floored_tokens": int((found < FLOOR).sum()),
        "unknown_share": round(float((encoded(valid) == 1).mean()), 4),
        "tokens": len(valid),
        "train_tokens": len(train),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.txt and valid.txt")
    parser.add_argument("--vocab", type=int, nargs="+", default=[33278, 8000], help="vocabularies to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    missing = [name for name in FILES if not (arguments.data / name).is_file()]
    if missing:
        parser.error(f"{arguments.data} holds no {' and no '.join(missing)}; give the folder of WikiText-2")
    if min(arguments.vocab) < 2:
        parser.error("--vocab must be at least 2: the line end and <unk>")
    train, valid = (words_of(arguments.data / name) for name in FILES)
    rows = []
    for vocab in arguments.vocab:
        rows.append(measure(train, valid, vocab))
        print(
            f"{rows[-1]['vocab']:,} words: perplexity {rows[-1]['perplexity']}, "
            f"{rows[-1]['unknown_share']:.1%} unknown, {rows[-1]['seconds']} s",
            flush=True,
        )
    if arguments.json:
        print(json.dumps({"order": 4, "floor": FLOOR, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
