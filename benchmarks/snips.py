"""Snips: intent accuracy and slot F1 on its validation split. Example:

python benchmarks/snips.py --data data/snips
"""

from __future__ import annotations

import own_data


def main() -> None:
    args = own_data.parser(__doc__, tokens=4e6).parse_args()
    own_data.measure(args, args.data / "train.jsonl", args.data / "valid.jsonl", evaluate=())


if __name__ == "__main__":
    main()
