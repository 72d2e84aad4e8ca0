"""Compiles every Triton kernel without a device and prints their names; run by test_triton.py."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compiled

from strata.kernels import triton_adam, triton_rows, triton_select

F, B, LONG, INT = "*fp32", "*bf16", "*i64", "*i32"
TILE = {"E": 16, "D": 128}
ROWS = {"latents": LONG, "bounds": LONG, "bags": LONG, "rows": LONG, "starts": LONG, "places": LONG, "counts": LONG}
INTS = {"last_step": INT, "number_of": INT, "step": INT, "groups": INT}
SIZES = dict.fromkeys(("d_sae", "k", "size", "first_row", "capacity", "n_entries", "n_rows", "d"), "i32")
BETAS = {"BETA_FIRST": 0.9, "BETA_SECOND": 0.999, "LOG_FIRST": -0.152, "LOG_SECOND": -0.00144, "EPS": 1e-8}


def compile_one(kernel, constants, **other):
    names = kernel.arg_names
    kinds = {**dict.fromkeys(names, F), **ROWS, **INTS, **SIZES, **other}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    source = ASTSource(kernel, signature, constexprs={(names.index(name),): v for name, v in constants.items()})
    machine_code = compiled(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}).asm["cubin"]
    assert len(machine_code) > 1000
    print(kernel.__name__)


for scores, shift in ((F, 0), (B, 16)):
    groups = {"N_GROUPS": 1024, "K": 32, "SIZE": 32, "SHIFT": shift}
    compile_one(triton_select.topk_of_rows, groups, scores=scores)
for scores, per_latent in ((F, 0), (B, 1)):
    constants = {"PER_LATENT": per_latent, "TILE": 1024}
    compile_one(triton_select.count_above, constants, scores=scores, limit=scores)
for scores, per_latent in ((F, 0), (B, 1)):
    constants = {"PER_LATENT": per_latent, "TILE": 1024}
    compile_one(triton_select.list_above, constants, scores=scores, limit=scores)
for flag in (False, True):
    compile_one(triton_rows.decode_rows, {"RESIDUAL": flag, **TILE})
for flag in (False, True):
    compile_one(triton_adam.adam_latents, {"UNIT": flag, **BETAS, **TILE})
compile_one(triton_rows.dot_entries, TILE)
compile_one(triton_rows.sum_latents, TILE)
