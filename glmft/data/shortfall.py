"""What is lost of the data, where it is more than a little: how much, and the flag that mends it."""

from dataclasses import dataclass, replace

from glmft.data.encode import EncodingReport, Lengths

NOTED, GRAVE = 0.01, 0.20  # shares of the rows from which on a line is a warning, and one that is repeated at the end


@dataclass(frozen=True)
class Shortfall:
    """A share of the rows that is lost or cut, and a line for whoever reads the log."""

    share: float
    line: str


def shortfalls(reports: list[EncodingReport], lengths: Lengths, rejected: int) -> list[Shortfall]:
    """What is worth a warning.

    Args:
        reports: of all files.
        rejected: records that are left out as bad.
    """
    whole = EncodingReport()
    for report in reports:
        whole.add(replace(report, lengths=[]))
    records = whole.read + rejected
    possible = [
        _too_long(whole, lengths),
        _of(rejected, records, "records are bad and left out; rejected.jsonl says why"),
        _of(whole.nothing_learned, records, "records have nothing to learn and are left out; --loss_on says what is"),
    ]
    return [shortfall for shortfall in possible if shortfall.share > NOTED]


def _of(count: int, total: int, what: str) -> Shortfall:
    share = count / max(1, total)
    return Shortfall(share, f"warning: data: {count} of {total} {what} ({share:.1%})")


def _too_long(report: EncodingReport, lengths: Lengths) -> Shortfall:
    mend = f"; {mending_flags(report, lengths)}"
    if lengths.is_skip:
        return _of(report.dropped, report.kept + report.dropped, f"rows are dropped as too long (--is_skip){mend}")
    parts = {"prompts": report.cut_prompt, "answers": report.cut_answer, "dialogues' oldest turns": report.cut_turns}
    named = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    return _of(report.shortened, report.kept, f"rows are cut ({named}){mend}")


def mending_flags(report: EncodingReport, lengths: Lengths) -> str:
    """The lengths that would hold all rows whole."""
    if lengths.max_tgt_len is None:
        asked = {"max_src_len": report.longest_prompt, "max_len": report.longest_row}
        given = {"max_src_len": lengths.max_src_len, "max_len": lengths.max_len}
    else:
        asked = {"max_source_length": report.longest_prompt, "max_target_length": report.longest_answer}
        given = {"max_source_length": lengths.max_src_len, "max_target_length": lengths.max_tgt_len}
    needed = [f"--{name} {asked[name]}" for name in asked if given[name] is not None and asked[name] > given[name]]
    if report.cut_turns or not needed:  # what the oldest turns would take was not measured
        return f"a larger --{list(given)[-1]} keeps more"
    return f"{' '.join(needed)} holds them all"
