# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person may write as desired settings, and what is refused with file and line."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.errors import Problem, ZernelError
from zernel.host.sysctl_input import Policy, parse

KEYS = st.from_regex(r"[a-z]{1,8}(\.[a-z_]{1,12}){1,3}", fullmatch=True)
NUMBERS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4)


def refused(text: str, lines_form: bool = False) -> list[tuple[str, int | None]]:
    with pytest.raises(ZernelError) as caught:
        parse(text, "wanted", lines_form)
    return [(p.code, p.locations[0].line) for p in caught.value.problems]


def test_a_mapping_gives_keys_values_and_policies_in_order() -> None:
    text = "vm.swappiness: 1\nnet.core.rmem_max: {value: 134217728, policy: raise, optional: true}\n"
    first, second = parse(text, "wanted")
    assert (first.key, first.value, first.policy, first.optional) == ("vm.swappiness", "1", None, False)
    assert (second.key, second.value, second.policy, second.optional) == (
        "net.core.rmem_max",
        "134217728",
        Policy.RAISE,
        True,
    )


@given(st.dictionaries(KEYS, NUMBERS, min_size=1, max_size=10))
def test_every_form_means_the_same(settings: dict[str, list[int]]) -> None:
    values = {key: " ".join(map(str, numbers)) for key, numbers in settings.items()}
    forms = [
        parse(json.dumps(values), "wanted"),
        parse(json.dumps({k: {"value": v} for k, v in values.items()}, indent=1), "wanted"),
        parse("".join(f"{k} = {v}\n# a comment\n\n" for k, v in values.items()), "wanted", lines_form=True),
    ]
    for form in forms:
        assert {asked.key: asked.value for asked in form} == values


def test_json_needs_no_yaml_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The playbook judges the settings of a host that has no python3-yaml yet."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    wanted = {
        "vm.swappiness": {"value": 1.5, "policy": "raise"},
        "vm.dirty_ratio": {"value": 7, "policy": "lower"},
        "vm.overcommit_memory": {"value": 1, "optional": 1},
        "fs.file-max": True,
        "fs.nr_open": [1],
        "fs.aio-max-nr": None,
    }
    text = json.dumps({"vm.max_map_count": {"value": 1}, **wanted}, indent=1)
    assert [(code, text.splitlines()[(line or 0) - 1].strip(" ,")) for code, line in refused(text)] == [
        ("sysctl-bad-type", '"value": 1.5'),
        ("sysctl-bad-policy", '"policy": "lower"'),
        ("sysctl-bad-entry", '"vm.overcommit_memory": {'),
        ("sysctl-bad-type", '"fs.file-max": true'),
        ("sysctl-bad-type", '"fs.nr_open": ['),
        ("sysctl-bad-type", '"fs.aio-max-nr": null'),
    ]
    assert refused("vm.swappiness: 1") == [("sysctl-syntax", 1)]
    assert [asked.value for asked in parse('{"vm.swappiness": 1, "net.a.b": "x"}', "wanted")] == ["1", "x"]


def test_a_key_that_is_twice_in_json_is_refused() -> None:
    assert refused('{"vm.swappiness": 1, "vm.swappiness": 2}') == [("sysctl-duplicate", 1)]


def test_a_key_written_as_a_path_is_the_key_with_dots() -> None:
    (asked,) = parse("net/ipv4/conf/eth0.100/rp_filter = 1", "wanted", lines_form=True)
    assert asked.key == "net.ipv4.conf.eth0/100.rp_filter"


@pytest.mark.parametrize("comment", ["  # Never swap", " ; never"])
def test_a_comment_behind_a_value_is_refused_with_its_line(comment: str) -> None:
    text = f"# fine\nvm.swappiness=0{comment}\nvm.dirty_ratio=40{comment}\n"
    assert refused(text, lines_form=True) == [("sysctl-comment-in-value", 2), ("sysctl-comment-in-value", 3)]
    assert refused(f'vm.swappiness: "0{comment}"') == [("sysctl-comment-in-value", 1)]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("yes", "sysctl-bad-type"),
        ("true", "sysctl-bad-type"),
        ("1.5", "sysctl-bad-type"),
        ("0x10", "sysctl-bad-type"),
        ("010", "sysctl-bad-type"),
        ("1:30", "sysctl-bad-type"),
        ("[1, 2]", "sysctl-bad-type"),
        ("", "sysctl-bad-type"),
        ('""', "sysctl-empty"),
        (r'"1\n2"', "sysctl-control-character"),
        ("{value: 1, policy: lower}", "sysctl-bad-policy"),
        ("{valeu: 1}", "sysctl-bad-entry"),
        ("{value: 1, value: 2}", "sysctl-bad-entry"),
        ("{value: 1, [a]: 2}", "sysctl-bad-entry"),
        ("{value: 1, optional: perhaps}", "sysctl-bad-entry"),
    ],
)
def test_values_of_the_wrong_type_are_refused(value: str, code: str) -> None:
    assert refused(f"vm.a: 1\nvm.b: {value}\n") == [(code, 2)]


@pytest.mark.parametrize("entry", ["{value: {a: 1}}", "{value: !x {a: 1}}", "{value: 1, policy: {a: 1}}"])
def test_a_mapping_as_value_is_named_plainly(entry: str) -> None:
    with pytest.raises(ZernelError) as caught:
        parse(f"vm.a: {entry}\n", "wanted")
    (problem,) = caught.value.problems
    assert "Node" not in problem.render()
    assert "{" not in problem.explanation[0]


@pytest.mark.parametrize("text", ["", "\n", "# vm.swappiness = 1\n"])
@pytest.mark.parametrize("lines_form", [False, True])
def test_an_empty_input_is_refused_and_an_empty_mapping_is_not(text: str, lines_form: bool) -> None:
    with pytest.raises(ZernelError) as caught:
        parse(text, "wanted", lines_form)
    assert caught.value.problems[0].code == "sysctl-empty-input"
    assert parse("{}", "wanted") == []


@pytest.mark.parametrize("text", ["- vm.swappiness", "just text", "vm.a: [1", "{", "\tx"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert [code for code, _ in refused(text)] == ["sysctl-syntax"]


def test_a_key_that_is_there_twice_is_refused_in_every_spelling() -> None:
    assert refused("vm.swappiness: 1\nvm/swappiness: 2\n") == [("sysctl-duplicate", 2)]


@pytest.mark.parametrize(
    "key", ["swappiness", "../../etc/passwd", "vm..swappiness", "vm.swap piness", "vm/../x"]
)
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    assert refused(f'"{key}": 1') == [("sysctl-bad-key", 1)]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_and_never_breaks(text: str) -> None:
    for lines_form in (False, True):
        problems: tuple[Problem, ...] = ()
        try:
            parse(text, "wanted", lines_form)
        except ZernelError as error:
            problems = error.problems
        assert all(problem.suggestion for problem in problems)
