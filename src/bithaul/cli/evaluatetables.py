"""What `bithaul evaluate intents` shows people: tables, the top confusions, and a line for each figure."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bithaul.evaluation.audit import IntentAudit
from bithaul.evaluation.intents import IntentReport

CONFUSIONS = 10


def show_audit(audit: IntentAudit, seconds: float, terminal: Console, *, mistakes: int) -> None:
    """Print everything; `mistakes` wrong requests in full. The last line holds the main figures."""
    _tables(audit.intents, terminal)
    for wrong in audit.intents.mistakes[:mistakes]:
        said, right = wrong.example.text, wrong.example.label_json()
        terminal.print(f"\nsaid   {said}\nright  {right}\nmodel  {wrong.parse.to_json()}")
    for line in (*_scope(audit), *_calibration(audit), *_noise(audit)):
        terminal.print(line, soft_wrap=True)
    report = audit.intents
    terminal.print(
        f"accuracy {_percent(report.accuracy)}  {_slots(report.slot_f1)}  "
        f"exact match {_percent(report.exact_match)}  ({report.examples:,} requests in {seconds:.1f} s)"
    )


def _tables(report: IntentReport, terminal: Console) -> None:
    table = Table(title="per intent", title_justify="left")
    table.add_column("intent", overflow="fold")
    for column in ("n", "precision", "recall", "f1", "exact"):
        table.add_column(column, justify="right")
    for row in report.per_intent:
        table.add_row(row.intent, str(row.n), *map(_percent, (row.precision, row.recall, row.f1, row.exact)))
    terminal.print(table)
    if report.per_slot:
        slots = Table(title="per slot", title_justify="left")
        slots.add_column("slot", overflow="fold")
        for column in ("n", "precision", "recall", "f1"):
            slots.add_column(column, justify="right")
        for slot in report.per_slot:
            slots.add_row(slot.slot, str(slot.n), *map(_percent, (slot.precision, slot.recall, slot.f1)))
        terminal.print(slots)
    for confusion in report.confusion[:CONFUSIONS]:
        terminal.print(f"{confusion.count:5}  {confusion.gold} taken for {confusion.predicted}")


def _scope(audit: IntentAudit) -> list[str]:
    found = audit.out_of_scope
    if found is None:
        return []
    others = "  ".join(f"{name} {value:.3f}" for name, value in found.candidates.items())
    return [
        f"out of scope  AUROC {found.auroc:.3f}  AUPR {found.aupr:.3f}  {found.fpr_at_95_tpr:.1%} of the "
        f"requests in scope refused where 95 % out of scope are  ({found.score}, {found.out_of_scope:,} "
        f"against {found.in_scope:,})",
        f"  AUROC of every score  {others}",
    ]


def _calibration(audit: IntentAudit) -> list[str]:
    found = audit.calibration
    if found is None:
        return []
    plain = (found.ece, found.ece_equal_mass, found.brier, found.nll)
    tempered = (
        found.tempered_ece,
        found.tempered_ece_equal_mass,
        found.tempered_brier,
        found.tempered_nll,
    )
    return [
        f"calibration   {_errors(plain)}",
        f"  at temperature {found.temperature:.2f}, the best for this very data:  {_errors(tempered)}",
    ]


def _errors(figures: tuple[float, float, float, float]) -> str:
    width, mass, brier, nats = figures
    return f"ECE {width:.3f} (equal mass {mass:.3f})  Brier {brier:.3f}  NLL {nats:.3f}"


def _noise(audit: IntentAudit) -> list[str]:
    return [
        f"{level} noise   accuracy {_percent(noise.intents.accuracy)}  {_slots(noise.intents.slot_f1)}  "
        f"exact match {_percent(noise.intents.exact_match)}  (word error rate {noise.word_error_rate:.1%}, "
        f"{noise.changed_share:.0%} of the requests changed)"
        for level, noise in audit.noise.items()
    ]


def _slots(f1: float | None) -> str:
    return "no slots" if f1 is None else f"slot F1 {_percent(f1)}"


def _percent(share: float) -> str:
    return f"{share:.1%}"
