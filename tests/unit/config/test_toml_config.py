# SPDX-License-Identifier: GPL-3.0-or-later
"""The typed configuration that the daemons share: what is accepted, and how mistakes are answered."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zernel.config import Conflict, dump, load, option, parse, table, tables
from zernel.errors import Problem, ZernelError


@dataclass(frozen=True, slots=True)
class Server:
    port: int = option(9091, "The port.", minimum=1, maximum=65535)
    share: float = option(0.5, "A share.", minimum=0.0, maximum=1.0)
    factor: float = option(1.0, "A factor without bounds.")
    mode: str = option("fast", "The mode.", choices=("fast", "slow"))
    enabled: bool = option(True, "Whether at all.")


@dataclass(frozen=True, slots=True)
class Limits:
    entries: int = option(10, "How many.", minimum=1)


@dataclass(frozen=True, slots=True)
class Row:
    priority: int = option(0, "Sooner or later.", minimum=-20, maximum=20)
    lambda_: float = option(1.0, "A factor.", minimum=0.0)


@dataclass(frozen=True, slots=True)
class Rows:
    first: Row = table(Row, "The first row.", default=Row(10))
    second: Row = table(Row)


@dataclass(frozen=True, slots=True)
class Group:
    path: str = option(help="Where.", pattern=r"/\w+", accepted="a path", example="/a")
    weight: int = option(0, "How much.", minimum=0, maximum=9)


@dataclass(frozen=True, slots=True)
class Settings:
    server: Server = table(Server)
    limits: Limits = table(Limits)
    rows: Rows = table(Rows, "What is done.")
    group: dict[str, Group] = tables(Group, "Any group.", limit=3)

    def conflicts(self) -> Iterator[Conflict]:
        for name, one in self.group.items():
            if one.weight > self.limits.entries:
                yield Conflict(("group", name, "weight"), f"Group {name} is too heavy", "Write less")


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ZernelError) as caught:
        parse(Settings, text, "x.toml")
    return caught.value.problems


def test_what_is_not_written_has_its_default() -> None:
    settings = parse(Settings, "[server]\nport = 1234\nmode = 'slow'\n")
    assert settings == Settings(Server(port=1234, mode="slow"), Limits())


def test_a_whole_number_serves_where_a_fraction_may_stand() -> None:
    share = parse(Settings, "[server]\nshare = 1").server.share
    assert share == 1.0
    assert isinstance(share, float)


def test_dumped_defaults_are_valid_toml_and_read_back_the_same() -> None:
    text = dump(Settings(), "Two lines\nof heading.")
    assert text.startswith("# SPDX-License-Identifier: GPL-3.0-or-later\n# Two lines\n# of heading.\n")
    assert parse(Settings, text) == Settings()
    assert set(tomllib.loads(text)) == {"server", "limits", "rows"}
    assert "# Accepted: 1 to 65535." in text


# TOML forbids control characters in plain strings, and no setting of ours holds them.
PRINTABLE = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), st.sampled_from("\n\t"))
)


@given(PRINTABLE, st.floats(0, 1), st.booleans())
def test_every_value_survives_a_dump(mode: str, share: float, enabled: bool) -> None:
    @dataclass(frozen=True, slots=True)
    class Free:
        mode: str = option("", "Any text.")
        share: float = option(0.0, "A share.")
        enabled: bool = option(False, "Yes or no.")

    @dataclass(frozen=True, slots=True)
    class File:
        free: Free = table(Free)

    file = File(Free(mode, share, enabled))
    assert parse(File, dump(file, "x")) == file


def test_a_table_of_tables_keeps_what_is_not_written() -> None:
    text = "[rows]\nsecond.priority = 3\n[rows.first]\nlambda = 2\n"
    assert parse(Settings, text).rows == Rows(Row(10, 2.0), Row(3))


def test_tables_of_any_name_are_read_by_name() -> None:
    text = "[group.a]\npath = '/a'\n[group.'b.c']\nweight = 2\npath = '/b'\n"
    assert parse(Settings, text).group == {"a": Group("/a"), "b.c": Group("/b", 2)}


def test_the_dump_explains_a_kind_of_table_once_and_shows_one_of_any_name_as_a_comment() -> None:
    text = dump(Settings(), "x")
    assert text.count("# Sooner or later.") == 1
    assert '# Any group.\n# [group.NAME]\n# # Where.\n# # Accepted: a path.\n# path = "/a"\n' in text
    assert "# The first row.\n[rows.first]\n" in text


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
GROUPS = st.dictionaries(NAMES, st.builds(Group, st.just("/x"), st.integers(0, 9)), max_size=3)


@given(st.integers(-20, 20), st.floats(0, 1e300), GROUPS)
def test_nested_tables_survive_a_dump(priority: int, factor: float, groups: dict[str, Group]) -> None:
    settings = Settings(rows=Rows(Row(priority, factor)), group=groups)
    assert parse(Settings, dump(settings, "x")) == settings


LONG = "1" * 6000


@pytest.mark.parametrize(
    ("text", "code", "words", "line"),
    [
        ("[server]\nport = 0", "config-range", "'server.port' is 0; accepted: 1 to 65535", 2),
        ("[server]\nport = 65536", "config-range", "65536", 2),
        ("[server]\nport = true", "config-type", "must be a whole number", 2),
        ("[server]\nport = '1'", "config-type", "must be a whole number", 2),
        ("[server]\nport = 1.0", "config-type", "must be a whole number", 2),
        ("[server]\n\n# port\nshare = nan", "config-range", "is nan", 4),
        ("[server]\nfactor = inf", "config-range", "finite", 2),
        ("[server]\nenabled = 1", "config-type", "true or false", 2),
        ("[server]\nmode = 'slwo'", "config-range", '"fast", "slow"', 2),
        ("[server]\nprot = 1", "config-unknown", "Unknown key 'prot' in [server]", 2),
        ("[servr]\nport = 1", "config-unknown", "Unknown table 'servr'", 1),
        ("port = 1", "config-unknown", "Unknown key 'port'", 1),
        ("server = 3", "config-type", "'server' must be a table", 1),
        ("server.port = 0", "config-range", "'server.port' is 0", 1),
        ("[limits]\nentries = 1\n[server]\nport = 0", "config-range", "'server.port'", 4),
        ("[server]\nport = ", "config-syntax", "not valid TOML", 2),
        ("[server\nport = 1", "config-syntax", "not valid TOML", 1),
        ("[server]\nport = 1\nport = 2", "config-syntax", "not valid TOML", 3),
        (f"[server]\nmode = '{LONG}'\nport = {LONG}", "config-syntax", "too many digits", 3),
        (f"# {LONG}\n[server]\nport = [\n1,\n-{LONG}]", "config-syntax", "too many digits", 5),
        (f"[server]\nport = 0x{LONG}", "config-range", "more than 64 bits; accepted: 1 to 65535", 2),
        (f"[server]\nshare = -{LONG[:400]}", "config-range", "more than 64 bits", 2),
        (f"[server]\nfactor = {LONG}.0", "config-range", "finite", 2),
        (f"[server]\nmode = 0x{LONG}", "config-type", "text in quotes", 2),
        ("[rows]\nfirst = 1", "config-type", "'rows.first' must be a table", 2),
        ("[rows.frist]\npriority = 1", "config-unknown", "Unknown key 'frist' in [rows]", 1),
        ("[rows.first]\n\npriority = 99", "config-range", "'rows.first.priority' is 99", 3),
        ("[rows]\nfirst = {lambda = 1, priority = 99}", "config-range", "-20 to 20", 2),
        ("[rows.first]\nlambda_ = 1", "config-unknown", "Unknown key 'lambda_' in [rows.first]", 2),
        ("group = 1", "config-type", "'group' must be a table", 1),
        ("[group]\npath = '/a'", "config-type", "'group' must hold tables only", 1),
        ("[[group]]\npath = '/a'", "config-type", "'group' must be a table", 1),
        ("[group.a]\nweight = 1", "config-missing-key", "[group.a] needs 'path'", 1),
        ("[group.a]\npath = 'a'", "config-range", "'group.a.path' is \"a\"; accepted: a path", 2),
        ("[group.'a b']\npath = '/a'", "config-name", "A name of 3 characters in 'group'", 1),
        ("[limits]\nentries = 1\n[group.a]\npath = '/a'\nweight = 2", "config-conflict", "too heavy", 5),
        ("group = {a={}, b={}, c={}, d={}}", "config-range", "'group' has 4 tables; accepted: 3", 1),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, code: str, words: str, line: int) -> None:
    (problem,) = problems(text)
    assert problem.code == code
    assert words in problem.category
    assert problem.suggestion
    assert problem.locations[0].file == "x.toml"
    assert problem.locations[0].line == line
    assert problem.locations[0].source == text.splitlines()[line - 1]


def test_a_near_miss_is_suggested() -> None:
    assert problems("[server]\nprot = 1")[0].suggestion == "Did you mean 'port'?"
    assert problems("[zzz]")[0].suggestion == "Known here: server, limits, rows, group"


def test_all_mistakes_are_told_at_once() -> None:
    found = problems("[server]\nport = 0\nmode = 1\n[limits]\nx = 1\n")
    assert [problem.code for problem in found] == ["config-range", "config-type", "config-unknown"]


def test_a_missing_file_is_the_defaults_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert load(Settings, tmp_path / "none.toml") == Settings()
    with pytest.raises(ZernelError) as caught:
        load(Settings, tmp_path / "none.toml", required=True)
    assert caught.value.problems[0].code == "config-missing"


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"[server]\nmode = '\xff'\n")
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    for name, code in (
        ("binary", "config-not-utf8"),
        ("large", "config-too-large"),
        ("", "config-unreadable"),
        ("binary/below", "config-unreadable"),
    ):
        with pytest.raises(ZernelError) as caught:
            load(Settings, tmp_path / name)
        assert caught.value.problems[0].code == code
    with pytest.raises(ZernelError) as caught:
        load(Settings, tmp_path / "binary")
    assert caught.value.problems[0].locations[0].line == 2


def test_a_directory_is_no_matter_of_rights(tmp_path: Path) -> None:
    with pytest.raises(ZernelError) as caught:
        load(Settings, tmp_path)
    assert caught.value.problems[0].suggestion == "Name a file, not a directory"


@given(st.text())
def test_no_text_is_answered_with_anything_but_settings_or_problems(text: str) -> None:
    told: tuple[Problem, ...] = ()
    try:
        parse(Settings, text)
    except ZernelError as error:
        told = error.problems
    assert all(problem.suggestion for problem in told)


def test_deep_nesting_is_refused_in_words() -> None:
    assert problems("x = " + "[" * 100_000)[0].code == "config-syntax"


@pytest.mark.parametrize("text", ["[{}]", "{} = 1", "x = {{ {} = 1 }}"])
def test_a_key_of_very_many_parts_is_refused_before_it_is_read(text: str) -> None:
    # tomllib's time grows with the square of their number: this would take minutes.
    said = problems("y = 1\n" + text.format(".".join(["a"] * 50_000)))
    assert [problem.code for problem in said] == ["config-syntax"]
    assert said[0].locations[0].line == 2


# Values whose insides look like headers and keys, to whoever does not read them as TOML does.
VALUES = st.one_of(
    st.integers().map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.sampled_from(
        [
            "1979-05-27 07:32:00",
            '"""\n[server]\nport = 0\n"""',
            "'''\nrows.first = {\n'''",
            "[\n  1, # ]\n  [2, {x = 1}],\n]",
            "{ port = 1, b = { port = [ { port = 2 } ] } }",
            "'# no comment ]'",
        ]
    ),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"])).map(json.dumps),
)
BLANK = st.sampled_from(["", "\n", "# [limits]\n", "  \n# x = 1\n", "\t"])
KEY = st.sampled_from(["marked", '"marked"', "'marked'", '"m\\u0061rked"', " \tmarked "])


@given(st.lists(st.tuples(BLANK, VALUES), max_size=5), BLANK, KEY, st.booleans())
def test_the_line_of_a_key_is_found_whatever_stands_before_it(
    others: list[tuple[str, str]], blank: str, key: str, dotted: bool
) -> None:
    before = "".join(f"{space}k{number} = {value}\n" for number, (space, value) in enumerate(others))
    head = f"{before}{blank}" if dotted else f"{before}[server] # [limits]\n{blank}"
    text = f"{head}{'server . ' if dotted else ''}{key} = 0\n{before.replace('k', 'z')}"
    tomllib.loads(text)
    found = next(problem for problem in problems(text) if "'marked'" in problem.category)
    assert found.locations[0].line == head.count("\n") + 1


def test_a_hostile_text_is_answered_soon() -> None:
    deep = ".".join("a" * 2000)
    assert problems(f"[{deep}]\n" + "".join(f"k{number} = 0\n" for number in range(200)))
    assert problems("x = " + "{a=" * 200 + "1" + "}" * 200)
