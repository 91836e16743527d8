# SPDX-License-Identifier: GPL-3.0-or-later
"""``zernel rollback`` against the simulation, and random sequences of changes and rollbacks."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zernel.devicetree.model import Instance
from zernel.multikernel.wire_v1 import V1

from .conftest import BOTH, Host, Killed, names, settled_by_next, wire_of, without_parts, write_overlay

WEB = ("create", "web", "--cpus=4-7", "--memory=2GB", "--devices=eth0:vf1")
DB = ("create", "db", "--cpus=8-9", "--memory=1GB", "--devices=nvme0:ns2")


def test_the_last_change_is_rolled_back_then_the_one_before(host: Host) -> None:
    host.ok(*WEB)
    first = host.instances()
    host.ok("update", "web", "--cpus=4-9", "--memory=1GB")
    second = host.instances()
    host.ok("delete", "web")
    shown = host.ok("rollback")
    assert "create web: CPUs 4-9, 1GB at 0x80000000, eth0:vf1" in shown
    assert "✓ 'zernel delete web' (tx_4) rolled back (transaction tx_5)" in shown
    assert host.instances() == second
    done = host.json("rollback")
    assert done["undone"] == {"command": "zernel update web", "transactions": [3]}
    assert [one["operation"] for one in done["steps"][0]["operations"]] == ["memory-add", "cpu-remove"]
    assert host.instances() == first
    host.ok("rollback")
    assert host.instances() == {}
    assert "There is no change to roll back" in host.refused("rollback")


@BOTH
def test_a_named_transaction_is_rolled_back_and_a_rollback_too(host: Host) -> None:
    host.ok(*without_parts(host, WEB))
    host.ok(*without_parts(host, DB))
    before = host.instances()
    host.ok("rollback", "tx_2")
    assert set(host.instances()) == {"db"}
    host.ok("rollback", "4")
    assert host.instances() == before
    # The change that stands again is the last one but for rollbacks.
    assert host.json("rollback")["undone"]["transactions"] == [3]


def test_what_was_deleted_unread_is_created_anew_by_the_advised_command(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-5", "--memory=1GB")
    host.ok("delete", "web")
    (file,) = host.state.rglob("history/2.json")
    entry = json.loads(file.read_text())
    entry["steps"][0][0] |= {"cpus": [], "memory_base": 0, "memory_bytes": 0}
    file.write_text(json.dumps(entry))
    shown = host.refused("rollback")
    assert "What the instance owned is not known" in shown
    advice = shown.partition("Create it anew: zernel ")[2].splitlines()[0]
    host.ok(*advice.replace("LIST", "4-5").replace("SIZE", "1GB").split())
    assert set(host.instances()) == {"web"}


def test_a_state_that_is_not_what_the_change_left_is_refused(host: Host) -> None:
    host.ok(*WEB)
    host.ok("update", "web", "--cpus=4-5")
    shown = host.refused("rollback", "tx_2")
    assert "ERROR: web: The instance is not what tx_2 left" in shown
    assert "CPUs: has 4-5, not 4-7" in shown
    assert host.instances()["web"]["cpus"] == [4, 5]


def test_what_another_has_by_now_is_not_taken_from_it(host: Host) -> None:
    host.ok(*WEB)
    host.ok("delete", "web")
    write_overlay(host, V1().create(Instance("kerf", 7, (6, 7), 0x80000000, 1 << 30)))
    shown = host.refused("rollback")
    assert "CPU allocation conflict" in shown
    assert "Memory region overlap" in shown
    assert set(host.instances()) == {"kerf"}


def commands(advice: str) -> list[list[str]]:
    """Return the words of the commands that an advice names, without ``zernel``."""
    return [command.split() for command in re.findall(r"zernel (.*?)(?: && |$)", advice)]


AWAY = "--memory-base=0x200000000"
"""Where web's memory is not; kernels of the second version choose the place themselves."""


@BOTH
@pytest.mark.parametrize(
    ("other", "life", "advised"),
    [
        (("--cpus=6-9", AWAY), (), ["update"]),
        (("--cpus=6-7", AWAY), (), ["delete"]),
        (("--cpus=10-11", "--id=1", AWAY), ("load",), ["unload", "delete"]),
        (("--cpus=6-9", "--id=1"), ("load", "exec"), ["kill", "unload", "delete"]),
    ],
)
def test_what_a_refused_rollback_advises_can_be_done(
    host: Host, kernel: Path, other: tuple[str, ...], life: tuple[str, ...], advised: list[str]
) -> None:
    number = "--id=9" if "--id=1" not in other else ""
    words = [word for word in (*other, number) if word and (host.version == 1 or word != AWAY)]
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    host.ok("delete", "web")
    host.ok("create", "kerf", "--memory=1GB", *words)
    for verb in life:
        host.ok(verb, "kerf", *([f"--kernel={kernel}"] if verb == "load" else []))
    done = host.run("rollback", "tx_3", "--format=json")
    assert done.returncode == 1
    (suggestion,) = {error["suggestion"] for error in json.loads(done.stdout)["errors"]}
    (alternative,) = {error["alternative"] for error in json.loads(done.stdout)["errors"]}
    free = commands(suggestion)
    assert [command[0] for command in free] == advised
    (create,) = commands(alternative)
    host.ok(*create, "--dry-run")
    for command in free:
        host.ok(*command)
    host.ok("rollback", "tx_3")
    assert host.instances()["web"]["cpus"] == [4, 5, 6, 7]


def test_what_was_taken_from_an_instance_since_is_advised_to_be_freed(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    host.ok("update", "web", "--cpus=4-5")
    host.ok("create", "db", "--cpus=6-8", "--memory=1GB")
    shown = host.refused("rollback", "tx_3")
    assert "Suggestion: Free what is in its way: zernel update db --remove-cpus=6-7\n" in shown
    delete, create = commands(next(line for line in shown.splitlines() if "Alternative: " in line))
    assert delete == ["delete", "web"]
    host.ok(*delete)
    host.ok(*create)
    assert len(host.instances()["web"]["cpus"]) == 4


@BOTH
def test_where_nothing_is_free_a_refused_rollback_says_who_may_give(host: Host) -> None:
    host.ok("create", "web", "--cpus=4-7", "--memory=2GB")
    host.ok("delete", "web")
    host.ok("create", "all", "--cpus=4-31", "--memory=1GB", "--id=5")
    shown = host.refused("rollback", "tx_3")
    assert "Suggestion: Free what is in its way: zernel " in shown
    assert "Alternative: Free CPUs, memory and devices first: 'zernel show' tells who has them" in shown


@BOTH
def test_only_transactions_of_ours_on_this_mount_can_be_rolled_back(host: Host) -> None:
    host.ok(*without_parts(host, WEB))
    write_overlay(host, wire_of(host).remove("web"))
    shown = host.refused("rollback", "tx_3")
    assert "There is no transaction tx_3 of Zernel's" in shown
    assert "Those that can be rolled back: tx_2" in shown
    assert "It is not there" in host.refused("rollback")
    host.stop()
    host.start()
    host.init()
    host.ok(*without_parts(host, DB))  # tx_2 again, and not the same
    assert host.json("rollback", "tx_2", "--dry-run")["undone"]["command"] == "zernel create db"
    host.ok("rollback")
    assert "There is no change to roll back" in host.refused("rollback")


@pytest.mark.parametrize("words", [[], ["tx_2"], ["tx_3"], ["tx_9"]])
def test_a_dry_run_gives_the_verdict_and_the_text_of_the_real_run(host: Host, words: list[str]) -> None:
    host.ok(*WEB)
    host.ok("update", "web", "--cpus=4-5")
    before = host.instances()
    dry = host.run("rollback", *words, "--dry-run")
    assert host.instances() == before
    real = host.run("rollback", *words)
    assert (dry.returncode, dry.stderr) == (real.returncode, real.stderr)
    shared = dry.stdout.replace("can be rolled back (dry run: nothing was written)", "rolled back")
    assert shared == real.stdout.replace(" (transaction tx_4)", "")


@pytest.mark.parametrize("transaction", ["last", "tx_", "tx_-1", "²", "9" * 40, "../tx_2"])
def test_what_is_no_transaction_is_wrong_usage(host: Host, transaction: str) -> None:
    assert host.run("rollback", transaction).returncode == 2


@pytest.mark.parametrize("version", [2], indirect=True)
def test_what_is_created_anew_comes_back_where_there_is_room(host: Host) -> None:
    host.ok("create", "web", "--cpus=4", "--memory=4GB")
    replaced = host.ok("update", "web", "--memory=1GB", "--id=9")
    assert "It is 1, and is to be 9" in replaced
    assert "memory begins" not in replaced  # nobody asked for a place
    host.ok("create", "db", "--cpus=5", "--memory=2GB", "--id=20")  # behind it
    host.ok("rollback", "tx_3")
    web = host.instances()["web"]
    assert (web["id"], web["memory_bytes"]) == (1, 4 << 30)


@BOTH
@pytest.mark.parametrize("faulty", [["none", "none", "midway"]], indirect=True)
def test_a_rollback_that_fails_leaves_what_was_there(faulty: Host) -> None:
    faulty.ok(*without_parts(faulty, WEB))
    faulty.ok("update", "web", "--cpus=4-9", "--memory=3GB")
    before = faulty.instances()
    assert "A part of it was changed, and was changed back" in faulty.refused("rollback")
    assert faulty.instances() == before
    faulty.ok("rollback")
    assert faulty.instances()["web"]["cpus"] == [4, 5, 6, 7]


def test_the_history_is_bounded(host: Host, killed: Killed) -> None:
    for number in range(36):
        assert killed(-1, "create", "web", "--cpus=4", f"--memory={number + 1}MB")[0] == 0
        assert killed(-1, "delete", "web")[0] == 0
    assert len(list(host.state.rglob("history/*.json"))) == 64
    assert host.json("rollback")["steps"][0]["after"]["memory_bytes"] == 36 << 20


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"action": "create"}', "[" * 100_000])
def test_a_broken_history_is_no_traceback(host: Host, content: str) -> None:
    host.ok(*WEB)
    (file,) = host.state.rglob("history/*.json")
    file.write_text(content)
    assert f"then remove {file}" in host.refused("rollback")
    host.ok("delete", "web")


def test_a_directory_in_the_history_is_no_traceback(host: Host) -> None:
    host.ok(*WEB)
    (file,) = host.state.rglob("history/*.json")
    file.unlink()
    file.mkdir()
    advice = f"See what is in it, then remove it: rm -r {shlex.quote(str(file))}\n"
    assert advice in host.refused("rollback")
    host.ok("delete", "web")


def test_a_change_that_cannot_be_recorded_is_said_and_recorded_later(host: Host) -> None:
    host.ok(*DB)
    (history,) = host.state.rglob("history")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "none", history], check=True)
    try:
        shown = host.refused(*WEB)
    finally:
        subprocess.run(["umount", history], check=True)
    assert "The change was made, and could not be recorded" in shown
    assert "Free some space" in shown
    assert set(host.instances()) == {"db", "web"}
    host.ok("delete", "db")
    host.ok("rollback")
    assert host.json("rollback")["undone"]["command"] == "zernel create web"


def test_sigkill_at_every_moment_of_a_rollback(host: Host, killed: Killed) -> None:
    moment, outcomes, status = 0, [], -signal.SIGKILL
    while status == -signal.SIGKILL:
        assert killed(-1, *without_parts(host, WEB))[0] == 0
        assert killed(-1, "update", "web", "--cpus=4-9", "--memory=3GB")[0] == 0
        status, _ = killed(moment, "rollback")
        moment += 1
        settled_by_next(host, killed)
        found = json.loads(killed(-1, "show", "--format=json")[1])["instances"]["web"]
        outcomes.append((len(found["cpus"]), found["memory_bytes"] >> 30))
        assert killed(-1, "delete", "web")[0] == 0
        assert killed(-1, "delete", "other")[0] == 0
        assert names(host) == set()
    assert status == 0
    assert set(outcomes) == {(6, 3), (4, 2)}
    assert min(outcomes.count(one) for one in set(outcomes)) > 1


# -- random sequences ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
COUNTS = st.integers(1, 14).map(lambda count: f"--cpu-count={count}")
LISTS = st.tuples(st.integers(4, 31), st.integers(0, 9)).map(
    lambda pair: f"--cpus={pair[0]}-{min(31, sum(pair))}"
)
MEMORY = st.integers(1, 8).map(lambda size: f"--memory={size}GB")
DEVICES = st.sampled_from(["--devices=eth0:vf1", "--devices=eth0:vf2,nvme0:ns2", "--devices=nvme0:ns3"])
COMMANDS = st.one_of(
    st.tuples(st.just("create"), NAMES, COUNTS | LISTS, MEMORY),
    st.tuples(st.just("create"), NAMES, COUNTS | LISTS, MEMORY, DEVICES),
    st.tuples(st.just("update"), NAMES, COUNTS | LISTS, MEMORY),
    st.tuples(st.just("update"), NAMES, COUNTS | LISTS),
    st.tuples(st.just("delete"), NAMES),
    st.just(("rollback",)),
)


def check_nothing_is_owned_twice(instances: dict[str, Any]) -> None:
    for what in ("cpus", "devices"):
        owned = [item for one in instances.values() for item in one[what]]
        assert len(owned) == len(set(owned))
    ranges = sorted(
        (one["memory_base"], one["memory_base"] + one["memory_bytes"]) for one in instances.values()
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=st.lists(COMMANDS, min_size=2, max_size=10))
def test_a_rollback_restores_exactly_what_was_before(
    host: Host, killed: Killed, commands: list[tuple[str, ...]]
) -> None:
    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(killed(-1, "show", "--format=json")[1])["instances"]
        return found

    for name in names(host):
        write_overlay(host, V1().remove(name))
    for file in host.state.rglob("history/*.json"):
        file.unlink()
    now = shown()
    before: list[dict[str, Any]] = []
    for words in [*commands, *[("rollback",)] * len(commands)]:
        status, output = killed(-1, *words, "--format=json")
        was, now = now, shown()
        check_nothing_is_owned_twice(now)
        if words == ("rollback",):
            assert status == (0 if before else 1)
            assert now == (before.pop() if before else was)
        elif status == 0 and json.loads(output)["changed"]:
            before.append(was)
        else:
            assert now == was
    assert now == {}
