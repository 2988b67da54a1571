"""Semantics: a stream has its places in order, an error in the place of what cannot be asked, and no truth."""

import itertools
import json
import os
import queue
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttrl_jax.data.ahead import Ahead
from ttrl_jax.data.problems import load
from ttrl_jax.data.stream import LONGEST_ID, MOST_BYTES, Asked, Waiting, read_stream
from ttrl_jax.errors import InputError


def read(path: Path | str, *, follow: bool = False, stop: threading.Event | None = None, **changes) -> Iterator[Asked]:
    way = {"column": "prompt", "split": "train", "subset": None, "seed": 0, "say": lambda line: None} | changes
    return read_stream(str(path), waiting=Waiting(follow, stop or threading.Event()), **way)


def asked(path: Path | str, **changes) -> list[tuple]:
    return [(each.number, each.id, each.question, each.error) for each in read(path, **changes)]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_line_has_its_place(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "one?", "id": "a", "answer": "1"}\n'
        b"\n"
        b"{broken\n"
        b'"two?"\r\n'
        b'{"problem": "three?", "id": 7}\n'
        b'{"question": "four?", "problem": "or?"}\n'
        b"17\n"
        b"\xff\xfe\n"
        b'{"messages": [{"role": "user", "content": "five?"}], "id": null}\n'
        b'{"prompt": "  "}\n'
        b'{"prompt": "half \\ud800"}\n'
        b'{"prompt": 3}\n'
        b'{"prompt": "six?", "id": ["x"]}\n'
        b'{"prompt": "seven?"}'
    )
    found = asked(path)
    assert [number for number, *_ in found] == list(range(13))
    questions = ["one?", None, "two?", "three?", None, None, None, "five?", None, None, None, None, "seven?"]
    assert [question for _, _, question, _ in found] == questions
    assert [name for _, name, _, _ in found] == ["a", 1, 2, 7, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    errors = {number: error for number, _, _, error in found if error}
    assert sorted(errors) == [1, 4, 5, 6, 8, 9, 10, 11]
    said = {1: "not JSON", 4: "'question', 'problem'", 5: "must be an object", 6: "not UTF-8", 8: "no question"}
    said |= {9: "half a character", 10: "a number", 11: "for its id text of at most"}
    for number, words in said.items():
        assert words in errors[number], errors[number]


def test_the_digest_names_what_was_asked_and_no_truth(tmp_path: Path):
    rows = [{"prompt": "one?", "id": "a", "answer": "1"}, {"prompt": "one?", "id": "b"}, {"prompt": "two?", "id": "a"}]
    one, other, third = (each.digest for each in read(write(tmp_path / "q.jsonl", *rows)))
    assert len({one, other, third}) == 3 and len(one) == 16
    (without,) = read(write(tmp_path / "again.jsonl", {"question": "one?", "id": "a"}))
    assert without.digest == one and not hasattr(without, "truth")


@pytest.mark.parametrize("name", ["q.txt", "q.json", "q.csv", "q.tsv"])
def test_the_formats_of_data_path_ask_what_training_asks(name: str, tmp_path: Path):
    """Slow twin: data/problems.py reads the same file as a whole."""
    path, questions = tmp_path / name, ["What is 1 + 1?", "And 2 + 2?"]
    if name == "q.json":
        path.write_text(json.dumps([{"problem": q, "answer": "2"} for q in questions]))
    else:
        head = {"q.txt": [], "q.csv": ["question,answer"], "q.tsv": ["question\tanswer"]}[name]
        end = {"q.txt": "", "q.csv": ",2", "q.tsv": "\t2"}[name]
        path.write_text("\n".join([*head, *(q + end for q in questions)]) + "\n")
    whole = load(str(path), split="train", question_column="prompt", truth_column="answer", level=None, limit=None)
    assert [each.question for each in read(path)] == [each.question for each in whole] == questions


def test_built_in_questions_and_what_is_missing(tmp_path: Path):
    assert len(asked("builtin:sums.train")) == 64
    for path in ("builtin:nothing", tmp_path / "none.jsonl", tmp_path / "none.json"):
        with pytest.raises(InputError):
            read(path)
    with pytest.raises(InputError, match="--follow is for a folder"):
        read(write(tmp_path / "q.json", ["a"]), follow=True)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        read(tmp_path / "bad.json")


def hostile(rng: random.Random) -> bytes:
    """A line that somebody may send who wishes us ill."""
    kinds = [
        lambda: rng.randbytes(rng.randint(1, 200)).replace(b"\n", b" "),
        lambda: b"[" * rng.randint(1, 100_000),
        lambda: b'{"prompt": ' + b'{"a":' * rng.randint(1, 3000) + b"1",
        lambda: json.dumps({"prompt": "__import__('os').system('touch ' + MARK)", "id": rng.randint(0, 9)}).encode(),
        lambda: json.dumps({"prompt": ["a"] * rng.randint(0, 50)}).encode(),
        lambda: json.dumps(
            {"messages": [{"role": rng.choice(["user", "system", 1, None]), "content": {"x": 1}}]}
        ).encode(),
        lambda: json.dumps({"prompt": None, "id": "x" * rng.randint(0, 1000)}).encode(),
        lambda: b'{"id": ' + b"9" * rng.randint(1, 6000) + b', "prompt": "q"}',
        lambda: b'{"prompt": "\\ud800", "id": "\\udfff"}',
        lambda: b'{"prompt": NaN, "id": Infinity}',
        lambda: json.dumps({"prompt": "x" * rng.randint(1, 5000), "__class__": "x", "error": "mine"}).encode(),
        lambda: b"!!python/object/apply:os.system ['touch mark']",
        lambda: b'{"prompt": "{{ cycler.__init__.__globals__ }}"}',
        lambda: b"\x00" * rng.randint(1, 50),
        lambda: "\u2028\u0085\x0b\x0c{}".encode(),
    ]
    return rng.choice(kinds)()


def test_ten_thousand_hostile_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rng, path = random.Random(0), tmp_path / "hostile.jsonl"
    with path.open("wb") as file:
        for i in range(10_000):
            file.write(hostile(rng) + b"\n")
            if i % 1000 == 500:
                file.write(json.dumps({"prompt": f"good {i}", "id": f"good {i}"}).encode() + b"\n")
    began, numbers, good, errors = time.monotonic(), [], [], 0
    for each in read(path):
        numbers.append(each.number)
        assert (each.question is None) != (each.error is None)
        errors += each.error is not None
        if each.error is not None:
            assert len(each.error) <= 300
        json.dumps([each.id, each.error], ensure_ascii=False).encode()
        assert isinstance(each.id, int) or len(each.id) <= LONGEST_ID
        good += [each.question] if each.question and each.question.startswith("good") else []
    assert numbers == list(range(len(numbers))) and len(numbers) >= 9000  # lines of white space have no place
    assert good == [f"good {i}" for i in range(500, 10_000, 1000)] and 2000 < errors < len(numbers)
    assert time.monotonic() - began < 30
    assert os.listdir(tmp_path) == ["hostile.jsonl"]


def test_a_line_that_is_too_long_is_passed_over_in_pieces(tmp_path: Path):
    path = tmp_path / "q.txt"
    path.write_bytes(b"a" * MOST_BYTES + b"\n" + b"b" * (MOST_BYTES + 1) + b"\n" + b"c" * (3 * MOST_BYTES) + b"\nd\n")
    found = list(read(path))
    assert [len(each.question or "") for each in found] == [MOST_BYTES, 0, 0, 1]
    assert [each.error is None for each in found] == [True, False, False, True]


def test_a_file_that_grows(tmp_path: Path):
    path, stop = write(tmp_path / "q.jsonl", "one"), threading.Event()
    stream = read(path, follow=True, stop=stop)
    assert next(stream).question == "one"
    with path.open("a") as file:
        file.write('"tw')
        file.flush()
        timer = threading.Timer(0.5, lambda: (file.write('o"\n"thr'), file.flush()))
        timer.start()
        assert next(stream).question == "two"  # not half of it
        timer.join()
        stop.set()
        assert list(stream) == []
    assert [each.question for each in read(path)] == ["one", "two", None]  # whoever does not follow takes what there is


def test_a_file_that_shrinks_is_refused(tmp_path: Path):
    path = write(tmp_path / "q.jsonl", "one", "two", "three")
    stream = read(path, follow=True)
    assert next(stream).question == "one"
    path.write_text('"a"\n')
    with pytest.raises(InputError, match="shorter"):
        list(itertools.islice(stream, 5))


def settle(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - 60,) * 2)


def test_a_folder_that_grows(tmp_path: Path):
    """Each file once, by name among those that are there; one that has just been written is left for later."""
    settle(write(tmp_path / "b.jsonl", "b1", "b2"))
    settle(tmp_path / "b.jsonl")
    (tmp_path / ".hidden.jsonl").write_text('"no"\n')
    (tmp_path / "notes.pdf").write_text("no")
    settle(tmp_path / ".hidden.jsonl", tmp_path / "notes.pdf")
    said, stop = [], threading.Event()
    stream = read(tmp_path, follow=True, stop=stop, say=said.append)
    found = [next(stream)]
    write(tmp_path / "a.jsonl", "a1")  # has just been written
    (tmp_path / "c.json").write_text("[broken")
    settle(tmp_path / "c.json")
    found += [next(stream), next(stream)]
    settle(tmp_path / "a.jsonl")
    found.append(next(stream))
    stop.set()
    assert list(stream) == []
    told = [(each.number, each.source, each.question) for each in found]
    assert told == [(0, "b.jsonl", "b1"), (1, "b.jsonl", "b2"), (2, "c.json", None), (3, "a.jsonl", "a1")]
    assert "not JSON" in found[2].error and len(said) == 2 and "notes.pdf" in said[1]


def test_the_files_of_a_folder_in_a_given_order(tmp_path: Path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", name)
    assert [question for _, _, question, _ in asked(tmp_path)] == ["a", "b", "c"]
    assert [question for _, _, question, _ in asked(tmp_path, order=("c.jsonl", "a.jsonl"))] == ["c", "a", "b"]
    with pytest.raises(InputError, match="gone.jsonl is missing"):
        asked(tmp_path, order=("gone.jsonl",))


def test_reading_ahead_is_bounded():
    """Hand-worked: `most` items wait in the queue, and one more in the hand of the thread that reads."""
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    ahead = Ahead(items(), most=4)
    wait_until(lambda: len(taken) == 5)
    time.sleep(0.1)
    assert len(taken) == 5
    assert ahead.take(3, whole=True) == [0, 1, 2]
    wait_until(lambda: len(taken) == 8)
    assert [*itertools.chain.from_iterable(iter(lambda: ahead.take(8, whole=True), []))] == list(range(3, 100))
    assert ahead.take(1, whole=True) == [] and ahead.take(1, whole=False) == []


def test_what_is_there_is_taken():
    source: queue.Queue[str] = queue.Queue()
    ahead = Ahead(iter(source.get, ""), most=8)
    for item in "abc":
        source.put(item)
    wait_until(lambda: ahead._queue.qsize() == 3)
    assert ahead.take(8, whole=False) == ["a", "b", "c"]
    source.put("d")
    threading.Timer(0.2, lambda: (source.put("e"), source.put(""))).start()
    assert ahead.take(2, whole=True) == ["d", "e"]


def test_what_reading_raises_comes_after_what_was_read():
    def items() -> Iterator[int]:
        yield 1
        raise InputError("broken")

    ahead = Ahead(items(), most=4)
    assert ahead.take(8, whole=True) == [1]
    for _ in range(2):
        with pytest.raises(InputError, match="broken"):
            ahead.take(8, whole=True)


def wait_until(holds) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)
