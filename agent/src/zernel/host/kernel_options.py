# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel has and lacks of what machine learning and Zernel want. Reads only, on any Linux."""

from __future__ import annotations

import difflib
import gzip
import io
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zernel import files
from zernel.bpf.btf import Btf
from zernel.errors import Problem, ZernelError, fail
from zernel.host.kernel_image import NO_BTF, btf_of_image
from zernel.host.kernel_wants import AREAS, WANTS, Want

_MAX_CONFIG = 4 << 20
_MAX_BTF = 256 << 20  # bytes; today's kernels have some 6 MiB
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
_LINE = re.compile(r"^(CONFIG_[A-Za-z0-9_]+)=(.*)$|^# (CONFIG_[A-Za-z0-9_]+) is not set$")

Config = dict[str, str]
"""Option to its value; ``n`` for one that is known and off."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which kernel to look at. With neither ``release`` nor ``config`` nor ``image``, the running one."""

    root: Path = Path("/")
    release: str | None = None
    config: Path | None = None
    image: Path | None = None


@dataclass(frozen=True, slots=True)
class OptionReport:
    """One line of the report. ``verdict``: ``ok``, ``module`` (serves as well), ``missing``, ``unknown``."""

    want: Want
    found: str | None
    verdict: str
    why: str = ""

    def as_dict(self) -> dict[str, object]:
        want = self.want
        return {
            "option": want.option,
            "asked": want.asked,
            "found": self.found,
            "verdict": self.verdict,
            "area": want.area,
            "source": want.source,
            "rationale": want.rationale,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class BtfReport:
    """Type information. ``verdict``: ``ok``, ``malformed`` (no scheduler loads), ``missing``, ``unknown``."""

    verdict: str
    source: str | None
    malformed_kfuncs: tuple[str, ...] = ()
    why: str = ""

    def as_dict(self) -> dict[str, object]:
        return {
            "verdict": self.verdict,
            "source": self.source,
            "malformed_kfuncs": list(self.malformed_kfuncs),
            "why": self.why,
        }


@dataclass
class KernelReport:
    """The whole report. ``unmet`` are the problems with what was required."""

    release: str | None
    running: bool
    config_source: str | None
    options: list[OptionReport]
    btf: BtfReport
    unmet: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return the stable JSON form of ``zernel kernel report``."""
        verdicts = [option.verdict for option in self.options]
        return {
            "status": "refused" if self.unmet else "ok",
            "errors": [problem.as_dict() for problem in self.unmet],
            "kernel": self.release,
            "running": self.running,
            "config_source": self.config_source,
            "summary": {word: verdicts.count(word) for word in ("ok", "module", "missing", "unknown")},
            "btf": self.btf.as_dict(),
            "options": [option.as_dict() for option in self.options],
        }


def report(source: Source, required: Iterable[str] = (), strict: bool = False) -> KernelReport:
    """Compare a kernel with ``kernel_wants``.

    :param required: options, areas, or ``btf``/``kfuncs``, that must be met; see ``REQUIREMENTS``.
    :param strict: every option and the BTF must be met.
    :raises ZernelError: for a name that is none of these, a kernel that is not installed,
        or a file given by name that cannot be read or is something else.
    """
    names = [_requirement(name) for name in required]
    here = _running_release(source.root)
    running = source.config is None and source.image is None and source.release in (None, here)
    _check_installed(source, running)
    release = source.release if source.release or source.config or source.image else here
    config, where, why = _config(source, release, running)
    options = [_judge(want, config, why, source.root if running else None) for want in WANTS]
    result = KernelReport(release, running, where, options, _btf(source, release, running))
    result.unmet = _unmet(result, names, strict)
    return result


REQUIREMENTS = ("btf", "kfuncs", *AREAS)
"""Words for ``required`` besides the options' own names: ``btf`` is there, ``kfuncs`` is well-formed too."""


def _requirement(name: str) -> str:
    upper = name.upper()
    option = upper if upper.startswith("CONFIG_") else f"CONFIG_{upper}"
    known = [want.option for want in WANTS]
    if name in REQUIREMENTS:
        return name
    if option in known:
        return option
    near = difflib.get_close_matches(name, [*REQUIREMENTS, *known], n=1) or difflib.get_close_matches(
        option, known, n=1
    )
    raise fail(
        "kernel-unknown-requirement",
        "Not an option of the report",
        subject=name,
        suggestion=f"Did you mean {near[0]}?"
        if near
        else f"Use an option, or one of {', '.join(REQUIREMENTS)}",
    )


def _running_release(root: Path) -> str | None:
    """Return what uname -r shows, or None where it cannot be told or could be no file's name."""
    try:
        text = (root / "proc/sys/kernel/osrelease").read_text(errors="replace").strip()
    except OSError:
        return None
    return text if _RELEASE.fullmatch(text) else None


def _check_installed(source: Source, running: bool) -> None:
    """Refuse a release of which nothing is installed."""
    release = source.release
    if running or release is None:
        return
    if _RELEASE.fullmatch(release):
        places = config_paths(source.root, release, running=False) + image_paths(source.root, release)
        if any(place.exists() for place in places):
            return
    there = installed(source.root)
    raise fail(
        "kernel-not-installed",
        "This kernel is not installed",
        subject=release or "(empty)",
        current_state=f"Installed: {', '.join(there) or f'none below {source.root}'}",
        suggestion="Give one of these releases, as uname -r writes it"
        if there
        else "Check --root, or give files with --config and --image",
    )


def installed(root: Path) -> list[str]:
    """Return the releases of which an image or a configuration is installed."""
    names = {
        path.name.partition("-")[2] for kind in ("vmlinuz", "config") for path in root.glob(f"boot/{kind}-*")
    }
    for pattern in ("lib/modules/*", "usr/lib/modules/*"):
        names |= {path.name for path in root.glob(pattern) if path.is_dir()}
    return sorted(
        name
        for name in names
        if _RELEASE.fullmatch(name)
        and any(path.exists() for path in config_paths(root, name, running=False) + image_paths(root, name))
    )


def parse_config(text: str) -> Config:
    """Return the options of a kernel configuration file."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            name, value, off = match.groups()
            found[off or name] = "n" if off else value.strip().strip('"')
    return found


def config_paths(root: Path, release: str | None, running: bool) -> list[Path]:
    """Return where a kernel's configuration may lie, the best place first."""
    paths = [root / "proc/config.gz"] if running else []
    if release:
        paths += [root / "boot" / f"config-{release}"]
        for modules in ("lib/modules", "usr/lib/modules"):
            paths += [root / modules / release / "config", root / modules / release / "build/.config"]
        paths.append(root / "usr/src" / f"linux-headers-{release}" / ".config")
    return paths


def _config(source: Source, release: str | None, running: bool) -> tuple[Config | None, str | None, str]:
    """Return the options, the file they come from, and why there are none."""
    if source.config is not None:
        try:
            return _read_config(source.config), str(source.config), ""
        except (OSError, EOFError) as error:
            raise fail(
                "kernel-config",
                "The kernel configuration cannot be read",
                subject=str(source.config),
                explanation=str(getattr(error, "strerror", None) or error),
                suggestion="Give a .config, a config-RELEASE or a config.gz",
            ) from error
    tried = config_paths(source.root, release, running)
    denied = []
    for path in tried:
        try:
            return _read_config(path), str(path), ""
        except PermissionError:
            denied.append(str(path))
        except (OSError, EOFError):
            continue
        except ZernelError:
            continue  # not a configuration; the next place may hold one
    if denied:
        return None, None, f"{', '.join(denied)} may only be read by root"
    return None, None, f"no configuration at {', '.join(map(str, tried)) or 'any known place'}"


def _read_config(path: Path) -> Config:
    data = files.read_regular(path, _MAX_CONFIG)
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MAX_CONFIG)
        except zlib.error as error:
            raise gzip.BadGzipFile(str(error)) from error
    config = parse_config(data.decode(errors="replace"))
    if not config:
        raise fail(
            "kernel-config",
            "The file is no kernel configuration",
            subject=str(path),
            explanation="It has no line that begins with CONFIG_",
            suggestion="Give a .config, a config-RELEASE or a config.gz",
        )
    return config


def _judge(want: Want, config: Config | None, no_config: str, root: Path | None) -> OptionReport:
    """Compare one option; ``root`` is that of the running kernel, where its own traces may be looked at."""
    if config is None:
        if root is not None and want.evidence and (root / want.evidence).exists():
            return OptionReport(want, "y", "ok", f"shown by /{want.evidence}")
        return OptionReport(want, None, "unknown", no_config)
    found = config.get(want.option, "n")
    if found == want.asked:
        return OptionReport(want, found, "ok")
    if found == "m" and want.asked == "y" and want.module:
        return OptionReport(want, found, "module", "as a module, loaded when needed")
    if want.implied_by and config.get(want.implied_by) == "y":
        return OptionReport(want, None, "ok", f"comes with {want.implied_by}=y; kernels have no such option")
    return OptionReport(want, found, "missing", want.lack)


def image_paths(root: Path, release: str) -> list[Path]:
    """Return where a kernel's image may lie, that of a package whose signed form is not out yet included."""
    modules = root / "usr/lib/modules" / release
    return [root / "boot" / f"vmlinuz-{release}", modules / "vmlinuz", modules / "vmlinuz.unsigned"]


def _btf(source: Source, release: str | None, running: bool) -> BtfReport:
    if running:
        path = source.root / "sys/kernel/btf/vmlinux"
        if not path.exists():
            return BtfReport(
                "missing", None, (), f"the kernel has no {path}: built without CONFIG_DEBUG_INFO_BTF"
            )
    elif source.image is not None:
        path = source.image
    elif source.config is None and release:
        there = [image for image in image_paths(source.root, release) if image.exists()]
        if not there:
            return BtfReport("unknown", None, (), f"no image of {release} is installed")
        path = there[0]
    else:
        return BtfReport("unknown", None, (), "a configuration alone does not tell; give --image")
    try:
        data = files.read_regular(path, _MAX_BTF) if running else btf_of_image(path)
        malformed = Btf(data, str(path)).malformed_kfuncs()
    except OSError as error:
        return BtfReport("unknown", str(path), (), f"{path}: {error.strerror}")
    except ZernelError as error:
        first = error.problems[0]
        if first.code == "kernel-image" and source.image is not None:
            raise  # it was given by name
        verdict = "missing" if first.code == NO_BTF else "unknown"
        return BtfReport(verdict, str(path), (), ". ".join((first.category, *first.explanation)))
    if malformed:
        why = "built with a pahole that leaves an implicit argument in public kernel functions"
        return BtfReport("malformed", str(path), tuple(malformed), why)
    return BtfReport("ok", str(path))


def _unmet(result: KernelReport, names: list[str], strict: bool) -> list[Problem]:
    """Return a problem for each requirement that is not met."""
    subject = result.release or result.config_source or "kernel"
    problems = []
    for option in result.options:
        wanted = strict or option.want.option in names or option.want.area in names
        if wanted and option.verdict in ("missing", "unknown"):
            problems.append(_lacks(subject, option))
    if (strict or "btf" in names) and result.btf.verdict in ("missing", "unknown"):
        problems.append(_no_btf(subject, result.btf))
    if strict or "kfuncs" in names:
        problems += _kfunc_problems(subject, result.btf, strict or "btf" in names)
    return problems


def _lacks(subject: str, option: OptionReport) -> Problem:
    want = option.want
    if option.verdict == "unknown":
        return Problem(
            code="kernel-option-unknown",
            category=f"Whether it has {want.option} cannot be told",
            subject=subject,
            explanation=(option.why,),
            suggestion="Run as root, or give the configuration with --config",
        )
    return Problem(
        code="kernel-option-missing",
        category=f"The kernel lacks {want.option}={want.asked}",
        subject=subject,
        explanation=tuple(text for text in (want.rationale, option.why) if text),
        current_state=f"{want.option}={option.found}",
        suggestion="Install a kernel that has it: role zernel.fleet.kernel, or linux-image from backports",
    )


def _no_btf(subject: str, btf: BtfReport) -> Problem:
    return Problem(
        code="kernel-no-btf",
        category="No BTF type information"
        if btf.verdict == "missing"
        else "Its BTF type information cannot be read",
        subject=subject,
        explanation=(btf.why,),
        suggestion="Use a kernel with CONFIG_DEBUG_INFO_BTF=y, as every Debian kernel is built",
    )


def _kfunc_problems(subject: str, btf: BtfReport, btf_reported: bool) -> list[Problem]:
    if btf.verdict == "malformed":
        return [
            Problem(
                code="kernel-malformed-kfuncs",
                category="Its BTF has malformed kernel functions: no BPF scheduler can be loaded",
                subject=subject,
                explanation=(", ".join(btf.malformed_kfuncs), btf.why),
                suggestion="Use another build of the kernel (7.0.13 and 7.3.4 of trixie-backports are right)",
            )
        ]
    return [] if btf.verdict == "ok" or btf_reported else [_no_btf(subject, btf)]
