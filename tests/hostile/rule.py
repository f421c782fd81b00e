"""The rule for every hostile input: a code of an error class, few and short lines, no traceback, nothing changed on the
disk, nothing executed, bounded time.
"""

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from glmft.cli import main

CODES = (2, 3, 4)
LONGEST_LINE, MOST_LINES = 300, 20
SECONDS = 30.0  # of this process's own time; most take less than a tenth of one


def tree(folder: Path) -> dict[str, str]:
    """What a folder holds: names, kinds, and hashes of contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = os.lstat(path).st_mode
        is_file = stat.S_ISREG(mode)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
        found[str(path.relative_to(folder)).encode("utf-8", "surrogateescape").hex()] = f"{stat.S_IFMT(mode)} {content}"
    return found


@dataclass
class Attempt:
    """What came of one input."""

    code: int
    lines: list[str]
    broken: list[str] = field(default_factory=list)


def attempt(command: str, argv: list[str], folder: Path, capsys, harmless: bool = True) -> Attempt:
    """Run a command in this process and list which parts of the rule it broke.

    Args:
        folder: holds everything that may be touched; the process works in it.
        harmless: whether the command may also go through, with exit code 0, and then write.
    """
    before, started = tree(folder), time.process_time()
    capsys.readouterr()
    try:
        code = main(argv, command=command, program=command)
    except SystemExit as leaving:
        code = leaving.code
    seconds = time.process_time() - started
    output = capsys.readouterr()
    lines = output.err.splitlines()
    broken = []
    if code == 0 and harmless:
        return Attempt(0, lines, ["slow"] if seconds > SECONDS else [])
    if code not in CODES:
        broken.append(f"code {code}")
    told = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    if not told or len(lines) > MOST_LINES:
        broken.append(f"{len(lines)} lines, {len(told)} of errors")
    if any(len(line) > LONGEST_LINE for line in lines):
        broken.append("a long line")
    if any("Traceback" in line or 'File "' in line for line in (*lines, *output.out.splitlines())):
        broken.append("a traceback")
    if tree(folder) != before:
        broken.append(f"the disk changed: {set(tree(folder).items()) ^ set(before.items())}")
    if seconds > SECONDS:
        broken.append(f"{seconds:.0f} seconds")
    return Attempt(code, lines, broken)
