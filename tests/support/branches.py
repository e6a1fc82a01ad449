"""Which branches of some files a test went through: each condition must have been true and false."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple


class Condition(NamedTuple):
    """A condition, or one part of it, at its place in a file."""

    file: str
    line: int
    column: int
    end: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}:{self.column}"


class Branches:
    """Watches the conditions of modules, opcode by opcode, while it is entered.

    A loop is compiled with its condition twice, which counts as one. Conditions that only an unforeseen error decides
    (which exception it is, assertions) and those outside functions are left out.

    Args:
        modules: whose functions are watched.
    """

    def __init__(self, *modules: ModuleType) -> None:
        self._jumps: dict[CodeType, dict[int, tuple[Condition, bool, int]]] = {}
        """By code and offset of a conditional jump: the condition, its value where it jumps, and the next offset."""
        for module in modules:
            source = Path(str(module.__file__)).read_text(encoding="utf-8")
            for code in _functions(compile(source, str(module.__file__), "exec")):
                self._jumps[code] = dict(_conditions(code))
        self._seen: dict[Condition, set[bool]] = {
            condition: set() for jumps in self._jumps.values() for condition, _, _ in jumps.values()
        }

    def __enter__(self) -> Branches:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def one_sided(self) -> list[str]:
        """The conditions that were not both true and false, with what they were."""
        return [f"{condition} {sorted(values)}" for condition, values in sorted(self._seen.items()) if len(values) < 2]

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        jumps = self._jumps.get(frame.f_code)  # code that was compiled anew equals the code that runs
        if jumps is None:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        last: tuple[Condition, bool, int] | None = None

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "opcode":
                if last is not None:
                    condition, value, following = last
                    self._seen[condition].add(value if frame.f_lasti != following else not value)
                last = jumps.get(frame.f_lasti)
            return step

        return step


def _functions(code: CodeType) -> Iterator[CodeType]:
    for held in code.co_consts:
        if isinstance(held, CodeType):
            if held.co_flags & 1:  # optimized: a function's body, not a class's
                yield held
            yield from _functions(held)


def _conditions(code: CodeType) -> Iterator[tuple[int, tuple[Condition, bool, int]]]:
    steps = list(dis.get_instructions(code))
    for before, jump, following in zip([steps[0], *steps], steps, [*steps[1:], steps[-1]], strict=False):
        name = jump.opname
        if "JUMP" not in name or "IF" not in name or before.opname in ("CHECK_EXC_MATCH", "WITH_EXCEPT_START"):
            continue
        if following.opname == "LOAD_ASSERTION_ERROR":
            continue
        # The parts of `a and b` all jump from one place: they are told apart by what is looked at just before.
        line, _, column, end = before.positions or (None,) * 4
        where = Condition(code.co_filename, line or 0, column or 0, end or 0)
        yield jump.offset, (where, "IF_TRUE" in name or "IF_NONE" in name, following.offset)
