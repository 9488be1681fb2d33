"""Numbers as people say them: digits, words, digit by digit. Values are always digits."""

from __future__ import annotations

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def words(number: int) -> str:
    """0 to 9,999 in words, without "and": 235 is "two hundred thirty five", 1,200 "twelve hundred"."""
    if number < 10:
        return ONES[number]
    if number < 20:
        return TEENS[number - 10]
    if number < 100:
        return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")
    unit, size = ("thousand", 1000) if number >= 1000 and number // 100 % 10 == 0 else ("hundred", 100)
    return f"{words(number // size)} {unit}" + (f" {words(number % size)}" if number % size else "")


def spelled(digits: str) -> str:
    """Digit by digit: "four eight two one"."""
    return " ".join(ONES[int(digit)] for digit in digits)


def pairs(digits: str) -> str:
    """Two by two: 482105 is "forty eight twenty one oh five". No pair of two zeros."""
    said = [digits[i : i + 2] for i in range(0, len(digits), 2)]
    return " ".join(f"oh {ONES[int(pair)]}" if pair[0] == "0" else words(int(pair)) for pair in said)


def highway_words(number: int) -> str:
    """How a road number is said: 40 "forty", 101 "one oh one", 287 "two eighty seven"."""
    if number < 100:
        return words(number)
    rest = number % 100
    tail = f"oh {ONES[rest]}" if rest < 10 else words(rest)
    return f"{ONES[number // 100]} {tail}"
