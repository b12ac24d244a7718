"""PAGE: memories that have a name, as specs: shipped files, and a few that are written here.

Names are found by comparing normal forms, so a file says which memory is meant, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from .alone import shipped


@dataclass(frozen=True, slots=True)
class Known:
    """A published memory. `file`: under specs/memory; `own`: its text, if no file has it; `given`:
    settings that are not those of the file.
    """

    name: str
    cite: str
    file: str = ""
    own: str = ""
    given: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        return shipped(self.file) if self.file else self.own


def one(state: str, objective: str, learn: str, retain: str = "", frozen: bool = True) -> str:
    """A memory as its paper has it, with a rate `eta` and, if it forgets, a fraction `alpha`."""
    lines = [f"state M : {state}", f"objective {objective}"]
    lines += [f"retain {retain.partition('[')[0]}"] if retain else []
    lines += [f"learn {learn}", *(["linearise every chunk tokens"] if frozen else []), "read M(q)"]
    streams = ["q[n]", "k[n]", "v[n]", *([retain] if retain else []), "eta"]
    head = f"nl 1\nmemory known({', '.join(streams)}{', chunk = 16' if frozen else ''}) {{\n"
    return head + "".join(f"  {line}\n" for line in lines) + "}\n"


WINDOW = "sum((M(past(k, 4)) - past(v, 4))^2) / 2"
HALF = "sum((M(k) - v)^2) / 2"
STEP = "gradient(rate = eta)"  # TTT divides its rate by the length of a key

KNOWN = (
    Known("linear attention", "arXiv:2006.16236", "linear_attention"),
    Known("RetNet", "arXiv:2307.08621", "retnet"),
    Known("Mamba2", "arXiv:2405.21060", "scalar_gated"),
    Known("GLA", "arXiv:2312.06635", "gla"),
    Known("DeltaNet", "arXiv:2406.06484", "delta"),
    Known("Gated DeltaNet", "arXiv:2412.06464", "gated_delta"),
    Known("KDA", "arXiv:2510.26692", "kda"),
    Known("Longhorn", "arXiv:2407.14207", "longhorn"),
    Known("Mesa", "arXiv:2506.05233", "mesa"),
    Known("Titans, linear", "arXiv:2501.00663", "titans_linear"),
    Known("Momentum DeltaNet", "arXiv:2605.05838", "momentum_delta"),
    Known("gated Oja", "doi:10.1007/BF00275687", "oja"),
    Known(  # what is written is the error of the state before it forgets, found and put by one key
        "RWKV-7, one key and one rate", "arXiv:2503.14456",
        own=one("matrix(n, n)", HALF, STEP, "alpha[n]", frozen=False),
    ),
    Known("MIRAS l_p, linear, p = 1", "arXiv:2504.13173 (10), (11)", "lp", given=(("p", 1),)),
    Known("MIRAS l_p, linear, p = 1.5", "arXiv:2504.13173 (10)", "lp", given=(("p", 1.5),)),
    Known("MIRAS l_p, linear, p = 3", "arXiv:2504.13173 (10)", "lp"),
    Known("MIRAS Huber, linear", "arXiv:2504.13173 (13), (14)", "huber"),
    Known("MIRAS Huber of the length, linear", "arXiv:2504.13173 (15)", "huber_norm"),
    Known("MIRAS elastic net, linear", "arXiv:2504.13173 (22)", "elastic"),
    Known("MIRAS elastic net of all writes, linear", "arXiv:2504.13173 (23)", "elastic_ftrl"),
    Known("Titans", "arXiv:2501.00663", "titans"),
    Known(
        "TTT-MLP", "arXiv:2407.04620", own=one("residual(layernorm(mlp(n, 4*n)))", HALF, STEP)
    ),
    Known("Moneta", "arXiv:2504.13173 (24), (25)", "moneta"),
    Known("Moneta, by the mirror map", "arXiv:2504.13173 (24)", "moneta_ftrl"),
    Known("Yaad", "arXiv:2504.13173 (26)", "yaad"),
    Known("Memora", "arXiv:2504.13173 (27)", "memora"),
    Known(
        "TTT-Linear, without a bias", "arXiv:2407.04620", own=one(
            "residual(layernorm(matrix(n, n))) = normal(0.02)", HALF, STEP
        ),
    ),
    Known(
        "OmegaNet, all pairs alike", "arXiv:2505.23735",
        own=one("residual(mlp(n, 4*n))", WINDOW, STEP, "alpha"),
    ),
    Known(
        "Atlas, all pairs alike", "arXiv:2505.23735",
        own=one("residual(mlp(n, 4*n))", WINDOW, "muon(rate = eta)", "alpha"),
    ),
    Known(
        "OmegaNet, linear, all pairs alike", "arXiv:2505.23735",
        own=one("matrix(n, n)", WINDOW, STEP, "alpha", frozen=False),
    ),
    Known(
        "DLA", "arXiv:2505.23735",
        own=one("residual(mlp(n, 4*n))", "-dot(M(k), v)", STEP, "alpha"),
    ),
    Known(
        "SWLA", "arXiv:2505.23735", own=one(
            "matrix(n, n)", "-sum(M(past(k, 4)) * past(v, 4))", STEP, "alpha",
            frozen=False,
        ),
    ),
    Known(
        "recursive least squares", "doi:10.1007/978-3-030-29057-3", own="""nl 1
memory known(q[n], k[n], v[m], beta, ridge[n]) {
  state M : matrix(n, m)
  objective sum(past(beta) * length(M(past(k)) - past(v))^2) / 2 + sum(ridge * M^2) / 2
  learn exact
  read M(q)
}
""",
    ),
)  # fmt: skip
