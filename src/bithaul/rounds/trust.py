"""How much a worker's updates weigh: a number and a state named without blame (exchange.md section 9).

Probation (weight 0.5) for the first three accepted reports and after a strike, then steady; resting until a
stated time; set aside by the operator only. Strikes that use the score up are a rest of an hour, after which
a quarter is there again. Loss scores (`rounds.scores`) are a factor beside that. Each state says why and what
leads out. Pure: events in, the next state out. The mean is normalised, so a fleet of newcomers is not slowed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from bithaul.rounds.scores import Fit

FIRST_REPORTS = 3
STRIKE = 0.25
RETURN = 0.05
PROBATION_WEIGHT = 0.5
LONG_REST = 3600.0  # seconds, when the score is used up


class Standing(StrEnum):
    PROBATION = "probation"
    STEADY = "steady"
    RESTING = "resting"
    SET_ASIDE = "set aside"


@dataclass(frozen=True)
class Trust:
    """`score` lies in [0, 1]; `to_go` accepted reports are left of the probation."""

    standing: Standing = Standing.PROBATION
    score: float = 1.0
    to_go: int = FIRST_REPORTS
    until: float = 0.0
    reason: str = "new here"
    pinned: bool = False  # by the operator, at 1
    fit: Fit = field(default_factory=Fit)  # what loss scores say

    def weight(self, now: float) -> float:
        """The factor on this worker's updates; 0: compared, not merged."""
        if self.pinned:
            return 1.0
        here = self.at(now)
        match here.standing:
            case Standing.STEADY:
                return here.score * here.fit.factor
            case Standing.PROBATION:
                return PROBATION_WEIGHT * here.score * here.fit.factor
            case _:
                return 0.0

    def at(self, now: float) -> Trust:
        """A rest ends by itself, in probation."""
        if self.standing is Standing.RESTING and now >= self.until:
            score = max(self.score, STRIKE)
            return replace(self, standing=Standing.PROBATION, score=score, to_go=FIRST_REPORTS)
        return self

    @property
    def why(self) -> str:
        """Why the weight is what it is, as far as there is something to say."""
        return "; ".join(words for words in (self.reason, self._doubt.why) if words)

    @property
    def way_out(self) -> str:
        """What leads to full weight, for the worker's owner."""
        match self.standing:
            case Standing.PROBATION:
                first = f"{self.to_go} more accepted reports"
            case Standing.RESTING:
                return "waiting; the rest ends by itself"
            case Standing.SET_ASIDE:
                return "the operator"
            case _:
                first = "" if self.score == 1.0 else "each accepted report returns a little"
        return "; ".join(words for words in (first, self._doubt.way_out) if words)

    @property
    def _doubt(self) -> Fit:
        """What loss scores say, where it counts."""
        return Fit() if self.pinned else self.fit


def accepted(trust: Trust, *, now: float) -> Trust:
    """After an accepted report."""
    trust = trust.at(now)
    if trust.standing in (Standing.RESTING, Standing.SET_ASIDE):
        return trust
    score = min(1.0, trust.score + RETURN)
    to_go = max(0, trust.to_go - 1)
    if trust.standing is Standing.PROBATION and to_go == 0:
        return replace(trust, standing=Standing.STEADY, score=score, to_go=0, reason="")
    return replace(trust, score=score, to_go=to_go)


def strike(trust: Trust, reason: str, *, now: float) -> Trust:
    """After a gate found something: a quarter less, and probation again. A pinned worker stays as it is."""
    trust = trust.at(now)
    if trust.pinned:
        return trust
    score = max(0.0, trust.score - STRIKE)
    if trust.standing in (Standing.RESTING, Standing.SET_ASIDE):
        return replace(trust, score=score)
    if score == 0.0:
        return replace(trust, standing=Standing.RESTING, score=score, until=now + LONG_REST, reason=reason)
    return replace(trust, standing=Standing.PROBATION, score=score, to_go=FIRST_REPORTS, reason=reason)


def rest(trust: Trust, reason: str, *, until: float) -> Trust:
    if trust.standing is Standing.SET_ASIDE:
        return trust
    return replace(trust, standing=Standing.RESTING, until=until, reason=reason)


def set_aside(trust: Trust, reason: str) -> Trust:
    """By the operator only."""
    return replace(trust, standing=Standing.SET_ASIDE, reason=reason, pinned=False)


def restore(trust: Trust, reason: str) -> Trust:
    """Back into probation, by the operator; ends a rest and a pin too."""
    score = max(trust.score, STRIKE)
    return Trust(Standing.PROBATION, score, FIRST_REPORTS, until=0.0, reason=reason)


def rolled_back(trust: Trust, reason: str) -> Trust:
    """After a rollback of a version it had a part in: probation, unless it is pinned or not at work."""
    if trust.pinned or trust.standing in (Standing.RESTING, Standing.SET_ASIDE):
        return trust
    return replace(trust, standing=Standing.PROBATION, to_go=FIRST_REPORTS, reason=reason)


def pin() -> Trust:
    """By the operator, for machines of one's own: full weight, whatever was before."""
    return Trust(Standing.STEADY, to_go=0, reason="pinned by the operator", pinned=True)
