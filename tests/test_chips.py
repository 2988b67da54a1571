"""Hand-worked: how much of a device's memory a process gets, and what is said of it. Semantics: GPUs that are described
to the compiler are those whose speed is known."""

from types import SimpleNamespace

import pytest

from ttrl_jax.errors import InputError
from ttrl_jax.plan import gpus
from ttrl_jax.plan.chips import CHIPS, FRACTION, OLDER, Memory, memory_of, verdict


def device(kind: str, platform: str, limit: float | None) -> SimpleNamespace:
    stats = None if limit is None else {"bytes_limit": limit}
    return SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: stats)


def test_a_process_gets_a_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """JAX says what it has taken; of a GPU that is not there, what it would take. Its newer variable, or its older."""
    for name in (FRACTION, OLDER):
        monkeypatch.delenv(name, raising=False)
    assert memory_of(device("NVIDIA B200", "gpu", 60e9), there=True) == Memory(80e9, 60e9)
    absent = memory_of(device("NVIDIA H100 80GB HBM3", "gpu", None), there=False)
    assert absent == Memory(84_942_979_072, 0.75 * 84_942_979_072)
    for name in (FRACTION, OLDER):
        monkeypatch.setenv(name, "0.5")
        assert memory_of(device("NVIDIA B200", "gpu", 60e9), there=True) == Memory(120e9, 60e9)
        monkeypatch.delenv(name)
    assert memory_of(device("TPU v5 lite", "tpu", 15e9), there=True) == Memory(16e9, 16e9)
    with pytest.raises(InputError, match="how much memory a GPU has is not known"):
        memory_of(device("GPU", "gpu", None), there=True)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (60e9, "it fits: sample decode needs 60.00 GB, and a process gets 60.00 of 80.00, its share of 75%"),
        (70e9, "it fits with XLA_CLIENT_MEM_FRACTION=0.90: sample decode needs 70.00 GB, and a process gets 60.00"),
        (76e9, "it fits with XLA_CLIENT_MEM_FRACTION=0.95: "),
        (77e9, "it does not fit: sample decode needs 77.00 GB, and a device has 80.00"),
    ],
)
def test_the_verdict_on_a_gpu(needed: float, words: str):
    """Hand-worked: 1.02 x 70 of 80 is 0.8925, and no process gets more than 0.95."""
    assert verdict("sample decode", needed, Memory(80e9, 60e9)).startswith(words)


def test_the_verdict_where_a_process_gets_all():
    assert verdict("copy", 16e9, Memory(16e9, 16e9)) == "it fits: copy needs 16.00 GB, and a device has 16.00"
    assert verdict("copy", 16.01e9, Memory(16e9, 16e9)).startswith("it does not fit: copy needs 16.01 GB")


@pytest.mark.parametrize("name", gpus.GPUS)
def test_a_gpu_that_is_described_is_one_whose_speed_is_known(name: str):
    gpu = gpus.GPUS[name]
    chip, text = CHIPS[gpu.kind], gpus.target(gpu)
    fields = dict(line.strip().split(": ") for line in text.splitlines() if line.startswith("  ") and "{" not in line)
    assert int(fields["memory_bandwidth"]) == chip.bandwidth and int(fields["device_memory_size"]) == chip.memory
    # What the cores multiply in a turn is what the data sheet says, within what it rounds.
    each = {(8, 0): 1024, (8, 9): 512, (9, 0): 2048}[gpu.capability]  # multiplications of a core
    assert 2 * each * gpu.cores * gpu.clock * 1e9 == pytest.approx(chip.flops, rel=0.1)
    assert gpu.kind in text and text.count("{") == text.count("}")
