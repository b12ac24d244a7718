"""How long a check takes: of HOPE beside `import torch`, and of systems with many levels.

python bench/check_speed.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from nlc.driver import check_text


def command(*words: str, rounds: int = 7) -> float:
    """Seconds of a command, the median of its runs."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def many(levels: int) -> str:
    """A system of so many levels, each written out."""
    lines = ["nl 1", 'use "memory/continuum"', "system many(vocab = 16, width = 4) {"]
    lines.append("  level training every step { objective loss; learn adamw(rate = 4e-4) }")
    for i in range(levels):
        lines.append(f"  level l{i}(x) every {i + 2} tokens {{ read continuum(x) }}")
    for i in range(levels):
        lines.append(f"  transfer backprop l{i} -> training first order")
        lines.append(f"  transfer init training -> l{i} first order")
    lines.append("  flow(tokens) {")
    lines.append("    x = embed(tokens, vocab, width)")
    lines += [f"    x += l{i}(x)" for i in range(levels)]
    lines.append("    logits = unembed(x, vocab)")
    lines.append("    loss = cross_entropy(logits, next(tokens))")
    lines += ["    return logits", "  }", "}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    check = command("-m", "nlc", "check", "hope")
    torch = command("-c", "import torch")
    print(f"nlc check hope {check:.2f} s, import torch {torch:.2f} s: {check / torch:.2f} of it")
    for levels in (250, 500, 1000):
        text = many(levels)
        start = time.perf_counter()
        checked = check_text(text)
        assert checked.levels is not None, checked.diagnostics[:3]
        print(f"{levels} levels checked and ordered in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
