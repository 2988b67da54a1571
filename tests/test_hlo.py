"""Hand-worked: what is read out of the text of compiled programs."""

from ttrl_jax.plan import hlo


def test_collectives_are_looked_for_in_loops_alone():
    text = """HloModule x

%inner (p: f32[4]) -> f32[4] {
  %a = f32[4,8]{1,0} all-gather(f32[4] %p), dimensions={0}
}

%body (p: f32[4]) -> f32[4] {
  %c = f32[4] fusion(f32[4] %p), calls=%inner
  %r = bf16[2,3]{1,0} all-reduce(bf16[2,3] %c), to_apply=%sum
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4] while(f32[4] %p), condition=%cond, body=%body
  %g = f32[100] all-gather(f32[4] %w), dimensions={0}
}
"""
    found = [(one["kind"], one["shape"], one["bytes"], one["count"]) for one in hlo.loop_collectives(text)]
    assert found == [("all-gather", "f32[4,8]", 128, 1), ("all-reduce", "bf16[2,3]", 12, 1)]


LOOPS = """HloModule x

%inner (p: f32[4]) -> f32[4] {
  %a = f32[4] scatter(f32[4] %p), to_apply=%sum
}

%together (p: f32[4]) -> f32[4] {
  %f = f32[4] fusion(f32[4] %p), calls=%inner
  %g = f32[4] custom-call(f32[4] %f), custom_call_target="__cublas$gemm"
}

%body (p: f32[4]) -> f32[4] {
  %c = f32[4] call(f32[4] %p), to_apply=%together
  %k = (bf16[8,16]{1,0:S(1)}, bf16[8,16]{1,0}, u32[]) copy-start(bf16[8,16] %c)
  %l = f32[2]{0} copy(f32[2] %k)
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4] while(f32[4] %p), condition=%cond, body=%body
  %e = f32[4] fusion(f32[4] %w), calls=%other
  %t = f32[100] copy(f32[100] %w)
  %s = f32[4] scatter(f32[4] %t), to_apply=%sum
}
"""


def test_what_a_loop_starts_and_copies():
    """Of what is not in a loop, nothing counts but calls of others' kernels."""
    assert hlo.loop_kernels(LOOPS) == 2
    assert [(one["kind"], one["bytes"]) for one in hlo.loop_copies(LOOPS)] == [("copy-start", 256), ("copy", 8)]
    assert hlo.loop_scatters(LOOPS) == 1
    assert hlo.custom_calls(LOOPS) == {"__cublas$gemm": 1}
    assert hlo.loop_kernels("ENTRY %main (p: f32[4]) -> f32[4] {\n}") == 0
