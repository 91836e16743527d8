# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``zernel scheduler`` says, as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zernel.scheduler import ab

_SHOWN_PROCESSES = 12
_SHOWN_THREADS = 20


def status_lines(data: dict[str, Any]) -> list[str]:
    """Return the status for people."""
    of_kernel, service, daemon = data["kernel"], data["service"], data["daemon"]
    if of_kernel["state"] is None:
        state = "the kernel has no sched_ext ('zernel doctor' says what it takes)"
    else:
        loaded = f", loaded: {of_kernel['scheduler']}" if of_kernel["scheduler"] else ""
        state = f"sched_ext is {of_kernel['state']}{loaded}"
    lines = [
        f"tasks     run by {_who(data['runs_tasks'])}",
        f"kernel    {state}",
        f"service   {service['active'] or 'unknown'}, at boot: {service['boot'] or 'unknown'}",
    ]
    if service["says"]:
        lines.append(f"          {service['says']}")
    lines += [
        f"real-time {one['says']}: no other scheduler's tasks run there meanwhile" for one in data["realtime"]
    ]
    if daemon is None:
        return [*lines, f"daemon    {data['daemon_unavailable']}"]
    if daemon["off"]:
        what = "STAYING OFF until a reload" if daemon["gave_up"] else "off, will try again"
        lines.append(f"daemon    {what}: {daemon['off']}")
    lines.append(f"daemon    {daemon['loads']} loads, {daemon['ejections']} ejections")
    gpus = daemon["gpus"]
    words = gpus["unavailable"] or f"{len(gpus['list'])} known to NVML"
    lines.append(f"GPUs      {words}")
    absent = [f"{name} ({one['absent']})" for name, one in daemon["signals"].items() if not one["up"]]
    lines += [f"{'' if number else 'signals':10}absent: {words}" for number, words in enumerate(absent)]
    counts = [f"{name} {one['processes']}" for name, one in daemon["phases"].items() if one["processes"]]
    lines.append(f"phases    {', '.join(counts) or 'no process of machine learning now'}")
    for part in (
        _process_lines(daemon["processes"]),
        _role_lines(daemon["roles"]),
        _tenant_lines(daemon["tenants"]),
    ):
        lines += ["", *part] if part else []
    return lines


def _who(name: str) -> str:
    return {"zernel": "Zernel's scheduler", "kernel": "the kernel's own scheduler"}.get(name, f"'{name}'")


def _process_lines(processes: list[dict[str, Any]]) -> list[str]:
    """Return the processes of machine learning, and those that use the most CPU time."""
    table = [("PID", "NAME", "PHASE", "I/O WAIT", "BURST", "GPU", "SYNC", "NCCL", "FUTEX", "TENANT", "NODE")]
    for one in processes[:_SHOWN_PROCESSES]:
        signals = one["signals"]
        sync, nccl, futex = (signals[name] for name in ("since_gpu_sync_s", "nccl_active", "futex_waits"))
        used = signals["gpu_utilization"]
        table.append(
            (
                str(one["pid"]),
                one["name"],
                one["phase"],
                _percent(signals["io_wait_fraction"]),
                "-" if signals["cpu_burst_ns"] is None else f"{signals['cpu_burst_ns'] / 1e6:.3g} ms",
                "-" if used is None else f"{used:.0f}%",
                "-" if sync is None else f"{sync:.3g} s ago",
                "-" if nccl is None else "yes" if nccl else "no",
                "-" if futex is None else str(futex),
                one["tenant"],
                "-" if one["node"] is None else str(one["node"]),
            )
        )
    return columns(table) if processes else []


def _role_lines(roles: list[dict[str, Any]]) -> list[str]:
    """Return how soon threads of each role run, once one was seen."""
    table = [("ROLE", "WAKE-UPS", "MEDIAN DELAY", "99%")]
    for one in roles:
        if one["wakeups"]:
            delays = (_delay(one["delay_p50"]), _delay(one["delay_p99"]))
            table.append((one["role"], str(one["wakeups"]), *delays))
    return columns(table) if len(table) > 1 else []


def _delay(between: dict[str, float | None]) -> str:
    above, below = between["above_seconds"] or 0.0, between["below_seconds"]
    return f"> {above * 1000:.3g} ms" if below is None else f"< {below * 1000:.3g} ms"


def _tenant_lines(tenants: list[dict[str, Any]]) -> list[str]:
    if not tenants:
        return []
    table = [("TENANT", "CLASS", "GPUS", "WEIGHT", "WANTED", "GOT", "LONGEST WAIT", "CGROUP")]
    for one in tenants:
        wait = one["longest_wait_seconds"]
        table.append(
            (
                one["name"],
                one["class"],
                "-" if one["gpus"] is None else f"{one['gpus']:g}",
                str(one["weight"]),
                _percent(one["share_wanted"]),
                _percent(one["share_received"]),
                "-" if wait is None else f"{wait * 1000:.1f} ms",
                one["absent"] or one["cgroup"] or "all others",
            )
        )
    return columns(table)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows of words as lines, with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def explanation_lines(data: dict[str, Any]) -> list[str]:
    """Return why a process is treated as it is."""
    tenant, verdict = data["tenant"], data["verdict"]
    lines = [
        f"process   {data['pid']} {data['name']}",
        f"cgroup    {data['cgroup'] or 'unknown'}",
        f"tenant    {tenant['name']}, class {tenant['class']}, weight {tenant['weight']}"
        if tenant
        else "tenant    unknown: no scheduler runs",
        f"GPUs      {', '.join(map(str, data['gpus'])) or 'none that NVML tells of'}",
        f"CPUs      may run on {data['cpus_allowed'] or 'unknown'}",
    ]
    if data["cpus_preferred"]:
        near = verdict["node_from"]
        cpus = ",".join(map(str, data["cpus_preferred"]))
        lines.append(f"          prefers {cpus}: node {verdict['node']}, next to its {near}")
    if verdict is None:
        why = "it did nothing lately" if tenant else "no scheduler runs"
        return [*lines, f"phase     unknown: {why}"]
    lines.append(f"phase     {verdict['phase']}")
    if verdict["next_phase"] and verdict["next_phase"] != verdict["phase"]:
        lines.append(f"          {verdict['next_phase']} was seen {verdict['seen_in_a_row']} times in a row")
    rows = [("CONDITION OF", "SIGNAL", "MUST BE", "IS", "")]
    for one in data["evidence"]:
        holds = "holds" if one["holds"] else ""
        is_now = _value(one["signal"], one["value"])
        rows.append((one["phase"], one["signal"], one["condition"], is_now, holds))
    lines += ["", *columns(rows)]
    lines += [f"  {name} is absent: {why}" for name, why in data["absent"].items()]
    threads = [("THREAD", "ROLE", "POLICY", "RUNS", "SLEEPS", "OF THAT FOR I/O")]
    for one in data["threads"][:_SHOWN_THREADS]:
        times = (f"{one[name] / 1e6:.4g} ms" for name in ("run_avg_ns", "sleep_avg_ns", "io_avg_ns"))
        threads.append((str(one["tid"]), one["role"], one["policy"].removeprefix("POLICY_").lower(), *times))
    if len(threads) > 1:
        lines += ["", *columns(threads)]
        more = data["thread_count"] - (len(threads) - 1)
        lines += [f"  and {more} more"] if more > 0 else []
    return lines


def _value(signal: str, value: float | bool | None) -> str:
    if value is None:
        return "absent"
    if signal.endswith("_ns"):
        return f"{value / 1e6:.4g} ms"
    if signal.endswith("_s"):
        return f"{value:.3g} s ago"
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}"


def result_lines(result: ab.Result) -> list[str]:
    """Return a comparison for people."""
    rows = [("ROUND", "KERNEL", "ZERNEL", "RATIO")]
    figures = zip(result.kernel, result.zernel, result.ratios, strict=True)
    for number, (theirs, ours, ratio) in enumerate(figures, start=1):
        rows.append((str(number), f"{theirs:.4g}", f"{ours:.4g}", f"{ratio:.3f}"))
    better = "less" if result.lower_is_better else "more"
    verdict = {
        "better": "Zernel's scheduler is better for this: every round agrees",
        "worse": "the kernel's own scheduler is better for this: every round agrees",
        "unclear": f"no clear difference: it takes {ab.CLEAR_ROUNDS} rounds or more that all agree",
    }[result.verdict]
    spread = f"{min(result.ratios):.3f} to {max(result.ratios):.3f}"
    return [
        *columns(rows),
        "",
        f"Zernel / kernel: {result.ratio:.3f} (median; {spread}); {better} is better",
        verdict,
    ]
