"""The verdict: one sentence with numbers that says what happened to a sample and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atomdiffuser.config import ReportSettings
from atomdiffuser.report.facts import SeriesFacts, Witness
from atomdiffuser.report.formatting import (
    CRITICAL_SYMBOL,
    duration,
    integer,
    interval,
    known,
    number,
    plural,
    unit_text,
)

Level = Literal["good", "look", "bad"]
LEVEL_WORDS: dict[Level, str] = {"good": "Sound", "look": "Needs a look", "bad": "Do not use as is"}
LEVEL_ORDER: dict[Level, int] = {"good": 0, "look": 1, "bad": 2}
MIN_FRAMES_FOR_CURVE = 3
MANY_AMBIGUOUS = 0.5
"""Share of the used frames from which drift that is right only modulo a lattice vector is not to be used."""
MECHANISMS = {
    "amorphisation": "the lattice fades, the mass stays (amorphisation)",
    "mass loss": "signal and lattice fade together (mass loss)",
    "both": "lattice and mass are lost",
    "gain": "the signal grows",
}


@dataclass(frozen=True)
class Flag:
    """Something a reader should look at: a short label, and why it was raised."""

    level: Level
    label: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """Level, its word, the sentence's clauses and the flags behind the level."""

    level: Level
    clauses: tuple[str, ...]
    flags: tuple[Flag, ...]

    @property
    def word(self) -> str:
        return LEVEL_WORDS[self.level]

    @property
    def sentence(self) -> str:
        text = "; ".join(self.clauses)
        return text[:1].upper() + text[1:] + "."

    @property
    def damage_clause(self) -> str:
        """The first clause alone, for tables."""
        return self.clauses[0]


def judge(facts: SeriesFacts, settings: ReportSettings) -> Verdict:
    """Turn the numbers of one series into a verdict."""
    flags = tuple(_flags(facts, settings))
    level = max((f.level for f in flags), key=LEVEL_ORDER.__getitem__, default="good")
    if facts.n_valid < 2:
        why = "no frame could be used" if facts.n_valid == 0 else "only one frame could be used"
        clauses: list[str] = [f"{why}, so neither drift nor damage is known", frames_clause(facts)]
        return Verdict("bad", tuple(clauses), flags)
    clauses = [
        damage_clause(facts),
        *(clause for w in (facts.contrast, facts.intensity) if (clause := critical_clause(w)) and _speaks(w)),
        *(clause for clause in (mechanism_clause(facts), usable_clause(facts)) if clause),
        drift_clause(facts),
        frames_clause(facts),
        registration_clause(facts, settings),
    ]
    return Verdict(level, tuple(clauses), flags)


def damage_clause(facts: SeriesFacts) -> str:
    """What contrast and mean intensity did, and after how much beam."""
    parts = [change_text(w) for w in (facts.contrast, facts.intensity) if w.measured]
    if not parts:
        return f"change of contrast and intensity could not be measured ({exposure_text(facts)})"
    if not facts.contrast.measured:
        parts.insert(0, "contrast not measurable")
    return f"{', '.join(parts)} after {exposure_text(facts)}"


def change_text(witness: Witness) -> str:
    """“contrast lost 31 % (95 % CI 27–35)”, or how small a change would have been seen."""
    if not witness.changed:
        limit = witness.detection_limit_percent
        return (
            f"{witness.witness}: no change above {number(limit, 2)} %"
            if known(limit)
            else f"{witness.witness}: no change seen"
        )
    sign = 1.0 if witness.loss_percent >= 0 else -1.0
    lo, hi = sorted((sign * witness.loss_lo95, sign * witness.loss_hi95))
    value, _, ends = interval(sign * witness.loss_percent, lo, hi).partition(" (")
    ci = f" (95 % CI {ends}" if ends else ""
    return f"{witness.witness} {'lost' if sign > 0 else 'gained'} {value} %{ci}"


def exposure_text(facts: SeriesFacts) -> str:
    """How much beam the series had: fluence, else time, else frames."""
    if known(facts.fluence_e_per_A2):
        return f"{number(facts.fluence_e_per_A2)} {unit_text('e_per_A2')}"
    if known(facts.duration_s):
        return f"{duration(facts.duration_s)} (fluence unknown)"
    return f"{plural(facts.n_frames, 'frame')} (time and fluence unknown)"


def critical_clause(witness: Witness) -> str:
    """“F_c 8.6 (7.1–10.9) × 10⁴ e⁻/Å²”, a lower bound as “F_c > X (95 %)”, empty when unknown."""
    text = critical_text(witness)
    if not text:
        return ""
    name = CRITICAL_SYMBOL.get(witness.unit, "F_c") + (
        "" if witness.witness == "contrast" else f" of {witness.witness}"
    )
    return f"{name} {text} {unit_text(witness.unit)}" if not witness.lower_bound else f"{name} {text}"


def critical_text(witness: Witness) -> str:
    """The critical fluence with its interval, without its unit; “> X unit (95 %)” for a lower bound."""
    cell = critical_cell(witness)
    return f"{cell} {unit_text(witness.unit)} (95 %)" if cell and witness.lower_bound else cell


def critical_cell(witness: Witness) -> str:
    """The same for a column whose head gives the unit: “8.6 (7.1–10.9) × 10⁴” or “> 8.6 × 10⁴”."""
    if not known(witness.critical) or witness.critical <= 0:
        return ""  # nothing fitted; a bound of zero says nothing either
    if witness.lower_bound:
        return f"> {number(witness.critical)}"
    return interval(witness.critical, witness.critical_lo95, witness.critical_hi95)


def mechanism_clause(facts: SeriesFacts) -> str:
    """What the witnesses say together; empty when nothing changed or these results do not say."""
    return MECHANISMS.get(facts.mechanism, "") if any(w.changed for w in facts.witnesses) else ""


def usable_clause(facts: SeriesFacts) -> str:
    """Up to which frame the data can be trusted; empty when the whole series can or these results do not say."""
    last, tolerance = facts.contrast.usable_last_frame, facts.contrast.number("usable_tolerance_percent")
    if last is None or not facts.contrast.changed or last >= facts.last:
        return ""
    within = f"within {number(tolerance)} % of the start" if known(tolerance) else "within the tolerance"
    if last <= facts.first:
        return f"no later frame is {within}"
    return f"frames {facts.first}–{last} are {within}"


def drift_clause(facts: SeriesFacts) -> str:
    return (
        f"drift {number(facts.drift_rate, 2)} {facts.drift_rate_unit}"
        if known(facts.drift_rate)
        else "drift rate unknown"
    )


def frames_clause(facts: SeriesFacts) -> str:
    flagged = facts.n_flagged_used
    if facts.n_excluded == 0:
        return f"all {plural(facts.n_frames, 'frame')} used" + (f" ({integer(flagged)} flagged)" if flagged else "")
    more = f" ({integer(flagged)} more flagged)" if flagged else ""
    return f"{integer(facts.n_excluded)} of {plural(facts.n_frames, 'frame')} excluded{more}"


def registration_clause(facts: SeriesFacts, settings: ReportSettings) -> str:
    """Whether the drift can be trusted, from closure and suspected lattice hops."""
    closure = f"closure {number(facts.closure_px, 2)} px" if known(facts.closure_px) else ""
    hops = _hops_text(facts)
    details = ", ".join(d for d in (closure, hops) if d)
    if facts.n_valid < MIN_FRAMES_FOR_CURVE:
        return f"registration from one pair, which nothing checks{f' ({details})' if details else ''}"
    if hops or over_closure(facts, settings):
        return f"registration needs a look ({details})"
    return f"registration sound ({details})" if details else "registration could not be checked"


def _hops_text(facts: SeriesFacts) -> str:
    """Frames, or in older results pairs, that may be off by a lattice vector; empty without any."""
    if facts.ambiguous is not None:
        n = facts.n_ambiguous
        return f"{plural(n, 'frame')} may be off by a lattice vector" if n else ""
    return f"{plural(facts.hops, 'pair')} may be off by a lattice vector" if facts.hops else ""


def over_loss(witness: Witness, settings: ReportSettings) -> bool:
    """Whether a signal changed significantly, and by as much as the settings mark."""
    return witness.changed and abs(witness.loss_percent) >= settings.warn_loss_percent


def over_closure(facts: SeriesFacts, settings: ReportSettings) -> bool:
    """Whether the largest closure error is above what the settings allow."""
    return known(facts.closure_px) and facts.closure_px > settings.warn_closure_px


def _speaks(witness: Witness) -> bool:
    """Contrast always states its critical fluence; intensity only when it fell measurably."""
    return witness.witness == "contrast" or (witness.changed and witness.loss_percent > 0 and not witness.lower_bound)


def _flags(facts: SeriesFacts, settings: ReportSettings) -> list[Flag]:
    flags = []
    if facts.n_valid < 2:
        flags.append(
            Flag("bad", "no result", f"{integer(facts.n_valid)} of {plural(facts.n_frames, 'frame')} could be used")
        )
    elif facts.n_valid < MIN_FRAMES_FOR_CURVE:
        flags.append(Flag("look", "two frames", "neither a curve nor a closure can be checked"))
    return flags + _drift_flags(facts, settings) + _damage_flags(facts, settings) + _data_flags(facts, settings)


def _drift_flags(facts: SeriesFacts, settings: ReportSettings) -> list[Flag]:
    flags = []
    if facts.n_ambiguous:
        level: Level = "bad" if facts.n_ambiguous >= MANY_AMBIGUOUS * facts.n_valid else "look"
        why = f"{integer(facts.n_ambiguous)} of {plural(facts.n_valid, 'frame')}: right only modulo a lattice vector"
        flags.append(Flag(level, "lattice hops", why))
    elif facts.hops and facts.ambiguous is None:
        why = f"{integer(facts.hops)} of {plural(facts.n_pairs, 'pair')} suspected"
        flags.append(Flag("look", "lattice hops", why))
    if over_closure(facts, settings):
        bad = facts.closure_px > settings.bad_closure_px
        limit = settings.bad_closure_px if bad else settings.warn_closure_px
        flags.append(Flag("bad" if bad else "look", "closure", f"above {number(limit)} px"))
    if facts.out_of_view and facts.n_valid >= 2:
        why = f"after frame {facts.last} too little of the reference field is in view"
        flags.append(Flag("look", "drifted away", why))
    return flags


def _damage_flags(facts: SeriesFacts, settings: ReportSettings) -> list[Flag]:
    flags = []
    for witness in (facts.contrast, facts.intensity):
        if over_loss(witness, settings):
            loss = witness.loss_percent > 0
            bad = loss and witness.loss_percent >= settings.bad_loss_percent
            limit = settings.bad_loss_percent if bad else settings.warn_loss_percent
            what = f"{witness.witness} {'loss' if loss else 'gain'}"
            flags.append(Flag("bad" if bad else "look", what, f"{number(limit)} % or more"))
    return flags


def _data_flags(facts: SeriesFacts, settings: ReportSettings) -> list[Flag]:
    flags = []
    share = settings.warn_excluded_percent
    if 100 * facts.n_excluded > share * facts.n_frames and facts.n_valid >= 2:
        flags.append(Flag("look", "frames excluded", f"more than {number(share)} %"))
    used = {flag: [k for k in frames if facts.valid[k]] for flag, frames in facts.flagged.items()}
    for flag, frames in used.items():
        if 100 * len(frames) > share * facts.n_frames:
            why = f"{plural(len(frames), 'frame')} used all the same"
            flags.append(Flag("look", flag.replace("_", " "), why))
    if not facts.fluence_known:
        flags.append(Flag("look", "fluence unknown", "beam current, dwell time or pixel size is missing"))
    return flags
