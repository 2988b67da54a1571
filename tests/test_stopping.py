"""Hand-worked, slow twins and semantics: when the votes on a question stop, and what a certificate promises."""

import importlib.util
import itertools
import json
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ttrl_jax.reward.equivalence import cluster, surely
from ttrl_jax.reward.extract import Answer
from ttrl_jax.reward.stopping import Poll, Race, capital, wins_needed
from ttrl_jax.reward.vote import vote

ROOT = Path(__file__).parent.parent


def plain(one: Answer, other: Answer) -> bool | None:
    """All that is written otherwise is another answer."""
    return one == other


def race(votes: str, *, error: float | Fraction = 0.5, surely=plain) -> Race:
    """The race of votes of one letter each, of which - is no answer."""
    found = Race(wins_needed(error, 64), surely)
    for letter in votes:
        found.add(None if letter == "-" else Answer(letter))
    return found


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (0, 0, Fraction(1)),
        (1, 0, Fraction(3, 2)),  # (C(2,0) + C(2,1)) / (2 C(1,1)) = 3 / 2
        (2, 0, Fraction(7, 3)),  # (1 + 3 + 3) / (3 C(2,2))
        (0, 1, Fraction(1, 2)),  # 1 / (2 C(1,0))
        (1, 1, Fraction(2, 3)),  # (1 + 3) / (3 C(2,1)) = 4 / 6
        (2, 1, Fraction(11, 12)),  # (1 + 4 + 6) / (4 C(3,2)) = 11 / 12
    ],
)
def test_the_capital_by_hand(wins: int, losses: int, expected: Fraction) -> None:
    assert capital(wins, losses) == expected


@pytest.mark.parametrize(("wins", "losses"), [(0, 3), (5, 5), (20, 2), (31, 9), (64, 0)])
def test_the_capital_is_the_mean_over_all_bets(wins: int, losses: int) -> None:
    """Slow twin: the mean of (2q)^s (2(1-q))^f over q from 1/2 to 1, by Simpson's rule."""
    q, weights = np.linspace(0.5, 1, 20_001), np.tile([2.0, 4.0], 10_000)
    weights = np.append(weights, 1.0)
    weights[0] = 1.0
    mean = (weights * (2 * q) ** wins * (2 * (1 - q)) ** losses).sum() / weights.sum()
    assert float(capital(wins, losses)) == pytest.approx(mean, rel=1e-9)


def test_the_wins_that_are_needed_by_hand() -> None:
    """With an error of 1/2 the capital has to be 4. Of s wins and no loss it is (2^(s+1) - 1) / (s + 1): 3.75 for 3,
    6.2 for 4. With one loss it is 120 / 42 for 5 wins and 247 / 56 for 6: with 7 votes that is the last that can be."""
    assert wins_needed(0.5, 7) == (4, 6, 8, 8, 8, 8, 8, 8)
    assert wins_needed(0.5, 6) == (4, 7, 7, 7, 7, 7, 7)  # 6 wins and a loss are 7 votes
    # At least 2 / error, not more: 15 / 4 is what 3 wins make.
    assert wins_needed(Fraction(8, 15), 4)[0] == 3
    assert wins_needed(Fraction(8, 15) - Fraction(1, 10**9), 4)[0] == 4
    for error in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            wins_needed(error, 8)


def test_more_losses_need_more_wins() -> None:
    needed = [wins for wins in wins_needed(0.05, 64) if wins < 65]
    assert needed == sorted(set(needed)) and len(needed) == 20 and needed[0] == 8


@pytest.mark.parametrize(
    ("votes", "certified"),
    [
        ("a", False),
        ("aaaa", False),  # the first vote is no bet, as nobody led: 3 wins
        ("aaaaa", True),  # 4 wins, against all that has not been seen
        ("abaaaa", False),  # one loss to b: 4 wins, and 6 are needed
        ("abaaaaa", False),
        ("abaaaaaa", True),  # 6 wins
        ("abacadaa", False),  # 4 wins, a loss to each of three
        ("abacadaeafa", False),  # 5 wins
        ("abacadaeafaa", True),  # 6 wins, and one loss to each of five: all others together have 5 of 12
        ("-aaaaa", False),  # having no answer is a rival that never leads: one loss
        ("-aaaaaaa", True),  # 6 wins
        ("------------", False),
    ],
)
def test_races_by_hand(votes: str, certified: bool) -> None:
    assert race(votes).certified == certified


def test_while_a_rival_leads_nothing_is_bet_against_it() -> None:
    """a leads until the fifth vote. Its first vote came when nobody led, a loss of those that lead later; its second,
    while it led, is none. b's are no wins before it leads: it needs 6 from then on."""
    assert wins_needed(0.5, 64)[1] == 6
    found = [race("aabbb" + "b" * more).certified for more in range(8)]
    assert found == [False] * 6 + [True] * 2


def test_a_leader_that_is_not_alone_is_not_certified() -> None:
    """Nothing was lost while a led, and then b has as many votes as a."""
    tied = Race((1,) * 65, plain)  # a test that asks for hardly anything
    for letter in "aaabbb":
        tied.add(Answer(letter))
    assert not tied.certified
    tied.add(Answer("a"))
    assert tied.certified


def test_answers_that_may_be_the_same_are_one_rival() -> None:
    """40 votes for 1, and 30 each for two spellings of one value, which no key joins: as two rivals they would lose."""
    one, two = Answer(r"\sin 2x"), Answer(r"2\sin x\cos x")
    assert surely(one, two) is None and surely(one, Answer("1")) is False
    order = [Answer("1"), one, Answer("1"), two] * 30 + [Answer("1")] * 24
    apart, joined = (Race(wins_needed(0.05, 200), way) for way in (plain, surely))
    for answer in order:
        apart.add(answer)
        joined.add(answer)
    assert apart.certified and not joined.certified
    assert vote(order[:120]).tied  # 60 to 60


def test_what_may_be_the_leaders_is_a_rival_of_it() -> None:
    """Of x = 5 and 5 a ballot decides by the names in it. The leader's own spelling wins, the other one loses."""
    assert surely(Answer("x = 5"), Answer("5")) is None

    def found(*texts: str) -> bool:
        race = Race(wins_needed(0.5, 64), surely)
        for text in texts:
            race.add(Answer(text))
        return race.certified

    assert found("5", "5.0", "5", "10/2", "5")
    assert not found("5", "x = 5", "5", "x = 5", "5", "5", "5")


def test_an_empty_answer_is_none() -> None:
    assert surely(Answer(r"\,"), Answer(r"\,")) is False
    found = Race(wins_needed(0.5, 64), surely)
    for _ in range(20):
        found.add(Answer(r"\,"))
    assert not found.certified and found.votes == 20


ROWS = [json.loads(line) for line in (ROOT / "tests/golden/answers.jsonl").read_text().splitlines()]


def test_nothing_that_is_the_same_is_surely_not() -> None:
    """Golden: pairs of answers that are equal, among them those that only a formula comparison joins."""
    pairs = [(Answer(row["a"]), Answer(row["b"])) for row in ROWS if row["kind"] == "equal"]
    assert len(pairs) > 100
    said = Counter(surely(one, other) for one, other in pairs)
    assert said[False] == 0 and said[True] > 50 and said[None] > 10
    apart = [surely(Answer(row["a"]), Answer(row["b"])) for row in ROWS if row["kind"] == "different"]
    assert True not in apart and apart.count(False) > len(apart) / 2


def test_no_ballot_joins_what_a_race_tells_apart() -> None:
    """Semantics, of random ballots of golden answers: a class of `cluster` lies among answers that may be the same, and
    what is surely the same is in one class."""
    texts = sorted({row[side] for row in ROWS if row["kind"] in ("equal", "different") for side in "ab"})
    rng = np.random.default_rng(0)
    for _ in range(20):
        group = [Answer(texts[i]) for i in rng.choice(len(texts), 12)]
        for start in rng.choice(len(ROWS), 4):
            group += [Answer(ROWS[start][side]) for side in "ab" if ROWS[start]["kind"] == "equal"]
        ids, joined = cluster(group).ids, {}
        for a, b in itertools.combinations(range(len(group)), 2):
            if surely(group[a], group[b]):
                assert ids[a] == ids[b]
            if surely(group[a], group[b]) is not False:
                joined.setdefault(a, set()).add(b)
                joined.setdefault(b, set()).add(a)
        for a, b in itertools.combinations(range(len(group)), 2):
            if ids[a] is not None and ids[a] == ids[b]:
                assert b in reached(joined, a), (group[a], group[b])


def reached(joined: dict[int, set[int]], start: int) -> set[int]:
    found, todo = set(), [start]
    while todo:
        at = todo.pop()
        todo += joined.get(at, set()) - found
        found |= joined.get(at, set())
    return found


# ---------------------------------------------------------------------- votes that end in any order


def poll_of(answers: list[Answer | None], *, least: int, error: float = 0.05) -> tuple[int, list[int]]:
    """How many count where all end in their order, and how many were wanted on the way."""
    poll, wanted = Poll(votes=len(answers), least=least, error=error, surely=plain), []
    at = 0
    while at < (now := poll.wanted()):
        wanted.append(now)
        while at < now:
            poll.end(at, answers[at])
            at += 1
    return now, wanted


def test_as_many_are_wanted_as_are_cast_in_any_case_and_then_as_the_leader_lacks() -> None:
    """Of 64 votes, 32 in any case. Where all differ, the leader has no win, and a loss to each other: it lacks 11."""
    assert poll_of([Answer("5")] * 64, least=32) == (32, [32])
    scattered = [Answer(str(i)) for i in range(64)]
    assert poll_of(scattered, least=32) == (64, [32, 43, 54, 64])
    late = scattered[:30] + [Answer("5.5")] * 34  # which leads since vote 32, and then gets the 11 wins
    assert poll_of(late, least=32) == (race_length(late, 32), [32, 43]) == (43, [32, 43])
    near = [Answer("5")] * 20 + [Answer("6")] * 12 + [Answer("5")] * 32  # 19 wins, 12 losses, for which 33 are needed
    assert poll_of(near, least=32) == (46, [32, 46])
    # Of 8 votes none can be certified: 8 wins are needed, and the first vote is no bet.
    assert poll_of([Answer("5"), None] * 4, least=1) == (8, [8])


def race_length(answers: list[Answer | None], least: int, error: float = 0.05) -> int:
    """Slow twin: the smallest prefix that is certified, each counted from its first vote."""
    for count in range(least, len(answers)):
        found = Race(wins_needed(error, len(answers)), plain)
        for answer in answers[:count]:
            found.add(answer)
        if found.certified:
            return count
    return len(answers)


def test_the_order_in_which_votes_end_changes_nothing() -> None:
    """Invariance: votes end in any order, some of them long before they are wanted, and with looks at any time."""
    rng, counts = np.random.default_rng(1), set()
    for _ in range(150):
        share = rng.uniform(0.2, 1)
        drawn = [int(rng.integers(1, 12)) * (rng.random() > share) for _ in range(40)]
        answers = [None if number == 11 else Answer(str(number)) for number in drawn]
        expected = race_length(answers, 8)
        poll, left = Poll(votes=40, least=8, error=0.05, surely=plain), list(range(40))
        early = set(rng.choice(40, 5).tolist())  # that end at their first token
        for vote_of in sorted(early):
            poll.end(vote_of, answers[vote_of])
        left = [v for v in left if v not in early]
        while running := [v for v in left if v < poll.wanted()]:
            for vote_of in rng.permutation(running)[: rng.integers(1, 6)].tolist():
                poll.end(vote_of, answers[vote_of])
                left.remove(vote_of)
        assert poll.wanted() == expected
        counts.add(expected)
    assert len(counts) > 10 and {9, 40} < counts


def test_no_more_are_wanted_while_those_that_ended_agree() -> None:
    """Votes 0 to 8 of 64 have ended, all alike; the others of the first 32 run, and may take their time."""
    poll = Poll(votes=64, least=32, error=0.05, surely=plain)
    assert poll.wanted() == 32
    for v in range(20, 28):
        poll.end(v, Answer("5"))
    assert poll.wanted() == 32  # 8 and 16 running at most: 24 are fewer than 32
    for v in range(10, 20):
        poll.end(v, Answer("5"))
    assert [poll.wanted() for _ in range(3)] == [32] * 3
    other = Poll(votes=64, least=32, error=0.05, surely=plain)
    for v in range(10, 28):
        other.end(v, Answer(str(v)))
    assert [other.wanted() for _ in range(3)] == [34] * 3  # 18 have ended, and 16 may run


# ---------------------------------------------------------------------- the simulation


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location("check_stopping", ROOT / "scripts" / "check_stopping.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_simulation_counts_as_the_program_does(simulation) -> None:
    """Slow twin: ballots of all kinds, one after the other through a Race."""
    rng, stopped = np.random.default_rng(2), 0
    for chances in ([0.5, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1], [0.2] * 5):
        votes = simulation.draw(chances, ballots=20, rng=rng)
        counts, winners = simulation.leader(votes, error=0.3, least=6)
        for row, count, winner in zip(votes.tolist(), counts, winners, strict=True):
            answers = [Answer(str(answer)) for answer in row]
            assert race_length(answers, 6, 0.3) == count
            label = vote(answers[:count]).answers[vote(answers[:count]).label]
            assert winner == -1 or label == Answer(str(winner))
            stopped += winner >= 0
    assert 10 < stopped < 60


@pytest.mark.parametrize("error", [0.05, 0.01])
def test_wrong_certificates_are_as_rare_as_promised(simulation, error: float) -> None:
    rng = np.random.default_rng(3)
    shares = {
        name: simulation.wrong(chances, simulation.leader(votes, error=error, least=1))
        for name, chances in simulation.NULLS.items()
        if (votes := simulation.draw(chances, ballots=4000, rng=rng)) is not None
    }
    assert max(shares.values()) <= error and shares["2 tied"] > 0  # the test could fail
    tied = simulation.draw(simulation.NULLS["2 tied"], ballots=4000, rng=rng)
    assert simulation.wrong([0.5, 0.5], simulation.newest(tied, error=error, least=1)) > 2 * error  # of no bound


def test_labels_of_a_run_that_would_have_stopped(simulation, tmp_path: Path) -> None:
    """Hand-worked, at an error of 0.05. 32 votes for one answer certify it: 32 of 64 are saved, and what comes after
    would not have counted. Votes that alternate, or that have no answer, certify nothing."""
    classes = {"early": [0] * 32 + [1] * 32, "turned": [0] * 31 + [1] * 33, "tied": [0, 1] * 32, "silent": [-1] * 64}
    rows = [
        {"samples": [{"class": at, "answer": None if at < 0 else str(at)} for at in votes]}
        for votes in classes.values()
    ]
    where = tmp_path / "rollouts"
    where.mkdir()
    (where / "train_000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (where / "eval_data_000000.jsonl").write_text("")
    assert simulation.of_run(tmp_path, error=0.05) == (4, 1, (32 + 32) / (4 * 64))
    with pytest.raises(SystemExit, match="generations_every=1"):
        simulation.of_run(tmp_path / "nothing", error=0.05)


def test_what_stops_early_saves_what_it_may(simulation) -> None:
    """From a share of 0.8 on at least 40 % of the votes, whatever the errors; half of them are cast in any case. Where
    errors scatter, the leader against all others together would decide far less at a share of one half."""
    rng, saved = np.random.default_rng(4), {}
    for share, errors in itertools.product((0.3, 0.5, 0.8, 0.95), ("scattered", "one rival")):
        votes = simulation.draw(simulation.answers(share, errors), ballots=1000, rng=rng)
        for name, way in simulation.WAYS.items():
            saved[share, errors, name] = 1 - way(votes, error=0.05, least=32)[0].mean() / 64
    assert all(0.4 <= x <= 0.5 for (share, _, name), x in saved.items() if share >= 0.8 and name == "leader")
    for share in (0.3, 0.5):
        of_leader, of_ranked, of_rest = (saved[share, "scattered", name] for name in simulation.WAYS)
        assert of_leader > of_ranked > max(0.03, 10 * of_rest)
    assert saved[0.5, "one rival", "leader"] < 0.05
