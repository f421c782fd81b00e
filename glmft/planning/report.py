"""A plan as figures and as lines for a reader."""

from typing import Any

from glmft.planning.cards import GIB, MIB, Card
from glmft.planning.memory import Setting
from glmft.planning.run import Run, fastest
from glmft.planning.shape import numbers
from glmft.planning.time import FORMULAS, GB, Pace, step_time, traffic, work

MOST_RANKS = 256
HELPS = 1.5  # times faster with twice as many: less no longer pays


def figures(run: Run, pace: Pace, card: Card | None, needs_floats: bool) -> dict[str, Any]:
    """All of a plan, as JSON holds it: sizes in bytes, times in seconds."""
    s, memory = run.setting, run.memory
    of, step = work(s), step_time(s, run.accumulation, pace)
    plan: dict[str, Any] = {
        "model": {"numbers": numbers(s.shape.parameters), "layers": s.shape.layers, "hidden": s.shape.hidden},
        "trained_numbers": s.numbers,
        "run": {
            "dtype": s.dtype,
            "quantization_bit": s.bits,
            "zero_stage": s.zero.stage,
            "offload_optimizer": s.zero.offloads_optimizer,
            "offload_param": s.zero.offloads_parameters,
            "gpus": s.ranks,
            "layers_computed_again": len(s.recomputed),
        },
        "batch": {
            "rows": run.batch,
            "documents": len(s.load.documents),
            "tokens": s.load.tokens,
            "supervised": s.load.supervised,
            "gradient_accumulation_steps": run.accumulation,
        },
        "gpu_bytes": memory.parts,
        "host_bytes": memory.host,
        "peak_bytes": {name: getattr(memory, name) for name in ("forward", "backward", "step")},
        "peak": memory.peak,
        "operations": {**vars(of), "total": of.total},
        "time": {
            "flops": pace.rate,
            "step": step.total,
            "compute": step.compute,
            "waiting_for_traffic": step.waited,
            "optimizer": step.optimizer,
            "sent_bytes_a_step": traffic(s, run.accumulation).sent(s.ranks),
            "rows": run.rows,
            "epoch": run.epoch(pace),
        },
        "more_gpus": more_gpus(run, pace, card),
    }
    if card is not None:
        plan["card"] = {"name": card.name, "room": card.room, "fits": memory.peak <= card.room}
        best = fastest(run, pace, card.room, needs_floats)
        plan["fastest"] = best and {
            "flags": list(best.flags),
            "peak": best.memory.peak,
            "host": sum(best.memory.host.values()),
            "epoch": best.epoch(pace),
        }
    return plan


def more_gpus(run: Run, pace: Pace, card: Card | None) -> list[dict[str, Any]]:
    """The same settings on 1, 2, 4 … GPUs, as long as there is a row for each."""
    table: list[dict[str, Any]] = []
    ranks = 1
    while ranks <= MOST_RANKS and (ranks == 1 or run.batch * ranks <= run.rows):
        other = run.at(ranks)
        step, peak = step_time(other.setting, run.accumulation, pace), other.memory.peak
        entry = {
            "gpus": ranks,
            "step": step.total,
            "waiting_for_traffic": step.waited,
            "sent_bytes_a_step": traffic(other.setting, run.accumulation).sent(ranks),
            "epoch": other.epoch(pace),
            "peak": peak,
        }
        table.append(entry | ({"fits": peak <= card.room} if card else {}))
        ranks *= 2
    return table


def lines(run: Run, pace: Pace, card: Card | None, plan: dict[str, Any], name: str, notes: list[str]) -> list[str]:
    """A plan for a reader."""
    s = run.setting
    documents = f"{len(s.load.documents)} document{'s' * (len(s.load.documents) > 1)}"
    devices = f"{s.ranks} GPU{'s' * (s.ranks > 1)}" if s.on_gpu else f"{s.ranks} rank{'s' * (s.ranks > 1)} on a CPU"
    steps = f"{run.accumulation} micro-batch{'es' * (run.accumulation > 1)} of each of {devices}"
    about = [
        ("model", f"{name}: {plan['model']['numbers']:,} numbers, {s.shape.layers} layers, hidden {s.shape.hidden}"),
        ("trains", f"{s.numbers:,} numbers"),
        ("run", described(s)),
        ("micro-batch", f"{s.load.tokens:,} tokens of {documents}, {s.load.supervised:,} of them learned"),
        ("optimizer step", steps),
        *(("", note) for note in notes),
    ]
    shown = [f"{title:16}{text}" for title, text in about]
    return [*shown, "", *memory_lines(plan, s.on_gpu), "", *card_lines(card, plan), *time_lines(run, pace, plan)]


def described(s: Setting) -> str:
    held = f"weights in {s.bits if s.bits == 'nf4' else s.bits + ' bits'}" if s.bits else ""
    where = ("optimizer", s.zero.offloads_optimizer), ("weights", s.zero.offloads_parameters)
    offloaded = [f"{what} on the host" for what, is_on in where if is_on]
    again = len(s.recomputed)
    kept = f"{again} of {s.shape.layers} layers computed again" if again else "no checkpointing"
    return ", ".join(part for part in (s.dtype, held, f"ZeRO-{s.zero.stage}", *offloaded, kept) if part)


def unit_of(plan: dict[str, Any]) -> tuple[str, int]:
    """What sizes are shown in."""
    return ("GiB", GIB) if plan["peak"] >= GIB else ("MiB", MIB)


def memory_lines(plan: dict[str, Any], on_gpu: bool) -> list[str]:
    """The table of the parts."""
    titles = {"head": "head and loss", "buckets": "gradient buckets"}
    name, unit = unit_of(plan)
    rows = [f"{name:18}{'GPU' if on_gpu else 'rank':>9}{'host':>9}"]
    for part, size in plan["gpu_bytes"].items():
        on_host = plan["host_bytes"].get(part, 0)
        rows.append(f"{titles.get(part, part):18}{size / unit:9.2f}{on_host / unit:9.2f}")
    moments = ", ".join(f"{name} {size / unit:.2f}" for name, size in plan["peak_bytes"].items())
    rows.append(f"{'at one time':18}{plan['peak'] / unit:9.2f}{sum(plan['host_bytes'].values()) / unit:9.2f}")
    return [*rows, f"not all parts are there together; the most in each moment: {moments}"]


def card_lines(card: Card | None, plan: dict[str, Any]) -> list[str]:
    """Whether it fits, and what is the fastest that does."""
    if card is None:
        return []
    room, best = f"{card.name} has {card.room / GIB:.1f} GiB for a run's tensors", plan["fastest"]
    answer = "fits" if plan["card"]["fits"] else "does not fit"
    if best is None:
        return [f"{answer}: {room}", "nothing of the same model and tuner fits: more GPUs, or shorter rows", ""]
    how, (name, unit) = " ".join(best["flags"]) or "as it is", unit_of(best)
    host = f", {best['host'] / unit:.1f} on the host" if best["host"] else ""
    size = f"{best['peak'] / unit:.2f} {name}{host}"
    return [f"{answer}: {room}", f"fastest that fits: {how} ({size}, epoch {duration(best['epoch'])})", ""]


def time_lines(run: Run, pace: Pace, plan: dict[str, Any]) -> list[str]:
    """Times at 1, 2, 4 … GPUs, and the formulas."""
    head = (
        f"time of an epoch of {run.rows:,} rows at {pace.rate / 1e12:.3g} TFLOP/s each, {pace.link / GB:g} GB/s in a "
        f"host of {pace.per_host}, {pace.network / GB:g} GB/s between hosts"
    )
    (name, unit), devices = unit_of(plan), "GPUs" if run.setting.on_gpu else "ranks"
    titles = f"{'s a step':>10}{'waiting':>9}{'sent GB':>9}{'epoch':>11}{'faster':>8}"
    rows = [head, f"{devices:>6}{name:>9}{titles}"]
    table = plan["more_gpus"]
    for before, row in zip([None, *table], table, strict=False):
        waiting = row["waiting_for_traffic"] / row["step"]
        times = table[0]["epoch"] / row["epoch"]
        note = "" if row.get("fits", True) else "  does not fit"
        if before is not None and before["epoch"] / row["epoch"] < HELPS:
            note += f"  twice the GPUs, {before['epoch'] / row['epoch']:.2f} times as fast"
        rows.append(
            f"{row['gpus']:6}{row['peak'] / unit:9.2f}{row['step']:10.3g}{waiting:9.0%}"
            f"{row['sent_bytes_a_step'] / GB:9.3g}{duration(row['epoch']):>11}{times:8.1f}{note}"
        )
    return [*rows, "", FORMULAS]


def duration(seconds: float) -> str:
    """Hours and minutes, or seconds."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02}"
