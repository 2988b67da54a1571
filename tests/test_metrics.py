"""Semantics: rows survive a kill and a resume exactly once, JSON stays strict, files are whole or absent."""

import json
import sys

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ttrl_jax.errors import InputError
from ttrl_jax.run.files import STARTS, Files
from ttrl_jax.run.metrics import Lines, MetricsLog, write_json, write_jsonl


def open_log(folder, start_step=0, *, tensorboard=False, wandb_project=None):
    return MetricsLog(folder, start_step=start_step, tensorboard=tensorboard, wandb_project=wandb_project)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]  # called for NaN and Infinity


def test_rows_are_on_disk_at_once_and_strict_json(tmp_path):
    with open_log(tmp_path / "run") as log:
        log.write(0, {"loss": np.float32(0.5), "count": 3, "kl": float("nan"), "max": np.inf})
        assert rows(tmp_path / "run") == [{"step": 0, "loss": 0.5, "count": 3, "kl": None, "max": None}]
        log.write(1, {"loss": 0.25})
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]


def test_resume_drops_later_rows_and_an_unfinished_line(tmp_path):
    with open_log(tmp_path) as log:
        for step in range(5):
            log.write(step, {"x": step})
    path = tmp_path / "metrics.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    with path.open("a") as file:
        file.write('{"step": 5, "x"')
    with open_log(tmp_path, 3) as log:
        assert path.read_bytes() == b"".join(kept)
        log.write(3, {"x": 30})
    assert [(row["step"], row["x"]) for row in rows(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    with open_log(tmp_path, 0):
        assert path.read_bytes() == b""
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_is_full_stays_so_and_what_is_dropped_makes_room(tmp_path):
    def write(start_step: int, *steps: int) -> list[int]:
        path = tmp_path / "lines.jsonl"
        with Lines(path, start_step=start_step, most=3) as lines:
            for step in steps:
                lines.write({"step": step} for _ in range(2))
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    assert write(0, 0, 1, 2) == [0, 0, 1]
    assert write(2, 2) == [0, 0, 1]
    assert write(1, 1, 2) == [0, 0, 1]
    assert write(0, 5) == [5, 5]


def test_a_line_without_its_newline_counts_as_unfinished(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    with open_log(tmp_path, 2) as log:
        log.write(2, {})
    assert rows(tmp_path) == [{"step": 0}, {"step": 2}]


def test_a_foreign_file_is_refused_and_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nhello\n{"step": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl line 2 is not a JSON object"):
        open_log(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\nhello\n{"step": 1}\n'


def events_of(path):
    """The events of a file, in the order written. TFRecord: length, its CRC, the event, its CRC."""
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def read_events(folder):
    """[(step, tag, value)] in the order written, and the steps that TensorBoard is told to purge from."""
    scalars, purges = [], []
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        for event in events_of(path):
            scalars += [(event.step, each.tag, each.simple_value) for each in event.summary.value]
            if event.HasField("session_log"):
                purges.append(event.step)
    return scalars, purges


def test_tensorboard_gets_every_row_and_the_step_to_purge_from(tmp_path):
    with open_log(tmp_path, tensorboard=True) as log:
        log.write(0, {"vote/majority_ratio": 0.5})
        log.write(1, {"vote/majority_ratio": 0.75})
    assert read_events(tmp_path / "tensorboard") == (
        [(0, "vote/majority_ratio", 0.5), (1, "vote/majority_ratio", 0.75)],
        [0],
    )
    for path in (tmp_path / "tensorboard").iterdir():
        path.rename(path.with_name(path.name + ".first"))
    with open_log(tmp_path, 1, tensorboard=True) as log:
        log.write(1, {"vote/majority_ratio": 1.0})
    scalars, purges = read_events(tmp_path / "tensorboard")
    assert (scalars[-1], purges) == ((1, "vote/majority_ratio", 1.0), [0, 1])


def test_tensorboard_shows_the_settings_and_texts_as_they_stand(tmp_path):
    settings = {"rollout.votes": 64, "reward.label": "majority"}
    with MetricsLog(tmp_path, start_step=0, tensorboard=True, wandb_project=None, config=settings) as log:
        log.text("responses/train", "# 1 + 1\n\n<b>2</b>", 3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    texts = {}
    for event in events_of(file):
        texts |= {v.tag: (event.step, v.tensor.string_val[0].decode()) for v in event.summary.value}
    config, response = texts["config/text_summary"], texts["responses/train/text_summary"]
    assert config == (0, "    rollout.votes = 64\n    reward.label = 'majority'\n")
    assert response == (3, "    # 1 + 1\n    \n    <b>2</b>\n")


def test_missing_wandb_names_the_extra_and_nothing_is_touched(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes its import raise ImportError
    with pytest.raises(InputError, match=r'wandb is not installed: pip install -e "\.\[wandb\]"'):
        open_log(tmp_path, tensorboard=True, wandb_project="ttrl")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for start in (0, 1):
        with open_log(tmp_path, start, wandb_project="ttrl") as log:
            log.write(start, {"x": 1.0})
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    runs = [path.name for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run-")]
    assert runs and all(ids[0] in name for name in runs)


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "rollouts" / "step_000010.jsonl"
    first, second = (
        {"text": "½ = \\frac{1}{2}\n", "reward": float("nan")},
        {"text": "\ud800", "votes": (1, None)},
    )
    write_jsonl(path, [first, second])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('{"text": "½')
    assert [json.loads(line) for line in lines] == [
        {"text": "½ = \\frac{1}{2}\n", "reward": None},
        {"text": "\ud800", "votes": [1, None]},
    ]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_jsonl(path, [{"ok": 1}, {"not json": object()}])
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]

    write_json(tmp_path / "summary.json", {"after": {"avg@16": 0.85, "maj@16": float("inf")}})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == {"after": {"avg@16": 0.85, "maj@16": None}}
    assert text.startswith('{\n  "after"') and text.endswith("}\n")


def test_each_start_is_kept(tmp_path):
    """Semantics: with its devices and versions; a run that goes on from an earlier step had no later starts."""
    for step in (0, 4, 4, 8, 6):  # killed at 4; a checkpoint lost
        Files(tmp_path, start_step=step, tensorboard=False, wandb_project=None).close()
    rows = [json.loads(line) for line in (tmp_path / STARTS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 4, 4, 6]
    assert {(row["devices"], row["processes"], row["jax"]) for row in rows} == {("8 x cpu", 1, jax.__version__)}
