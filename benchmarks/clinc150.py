"""CLINC150: accuracy on the 150 classes of its validation split, and how well the rest stands out.

Trained on the training split and the 100 training requests out of scope. Example:

    python benchmarks/clinc150.py --data data/clinc150
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import own_data


def main() -> None:
    args = own_data.parser(__doc__, tokens=3.6e6).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder) / "train.tsv"
        parts = [(args.data / name).read_text(encoding="utf-8") for name in ("train.tsv", "oos_train.tsv")]
        train.write_text("\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")
        oos = str(args.data / "oos_valid.tsv")
        own_data.measure(args, train, args.data / "valid.tsv", evaluate=("--oos", oos))


if __name__ == "__main__":
    main()
