"""Figures of the Truck Mate corpus for docs/explanation/corpus.md: speed, variety, lengths, splits.

Run `python benchmarks/corpus_generate.py`; it prints one JSON object, with machine and date beside it all.
Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import Counter
from datetime import UTC, datetime

from bithaul.corpus.generator import GENERATOR_VERSION
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.frames import frames
from bithaul.corpus.truckmate.generator import trace
from bithaul.corpus.truckmate.grammar import phrasings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--heldout", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    start = time.process_time()
    train = list(trace(count=arguments.count, seed=arguments.seed, split="train"))
    generated = time.process_time() - start
    heldout = list(trace(count=arguments.heldout, seed=arguments.seed, split="heldout"))
    examples = [found.example for found in train]
    start = time.process_time()
    tokenizer = Tokenizer.train(examples)
    learned = time.process_time() - start
    start = time.process_time()
    lengths = [len(ids) for ids in tokenizer.encode_many(examples)]
    encoded = time.process_time() - start
    intents = Counter(found.example.intent for found in train)
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "generator_version": GENERATOR_VERSION,
        "seed": arguments.seed,
        "lines": len(train),
        "lines_per_second": round(len(train) / generated),
        "unique_share": round(len({example.line() for example in examples}) / len(train), 4),
        "distinct_words": len({word for example in examples for word in example.text.split()}),
        "vocabulary": tokenizer.vocab_size,
        "tokens_per_line_mean": round(statistics.mean(lengths), 2),
        "tokens_per_line_max": max(lengths),
        "tokens": sum(lengths),
        "tokenizer_training_seconds": round(learned, 2),
        "encoding_seconds": round(encoded, 2),
        "frames_train": sum(not frame.held for frame in frames()),
        "frames_heldout": sum(frame.held for frame in frames()),
        "phrasings_train": len({t for f in frames() if not f.held for t in phrasings(f.phrase)}),
        "phrasings_heldout": len({t for f in frames() if f.held for t in phrasings(f.phrase)}),
        "dialogue_share": round(sum(" over " in example.text for example in examples) / len(train), 4),
        "intent_share": {name: round(n / len(train), 4) for name, n in sorted(intents.items())},
        "heldout_reasons": dict(sorted(Counter(found.reason for found in heldout).items())),
        "heldout_lines_in_training": len({f.example.text for f in heldout} & {e.text for e in examples}),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
