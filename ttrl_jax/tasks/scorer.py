"""A scorer: a Python file whose score(prompt, response) says how good a response is, to choose one of several by."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from ttrl_jax.errors import InputError
from ttrl_jax.run import distributed
from ttrl_jax.tasks.task import loaded

Scorer = Callable[[str, str], float]  # the prompt as the model sees it, the response -> its score; higher is better


def from_file(path: str) -> Scorer:
    """The function `score` of a Python file, which comes back with InputError for whatever goes wrong in it: an
    exception, or what is no finite number. Raises InputError if there is no such function."""
    score = loaded(path, key="eval.scorer").get("score")
    if not callable(score):
        raise InputError(f"the scorer {path} has no function score(prompt, response); define one that returns a number")

    def checked(prompt: str, response: str) -> float:
        try:
            found = score(prompt, response)
        except Exception as error:  # whatever a user's function may raise
            said = (str(error) or "no message").splitlines()[0]
            raise InputError(
                f"score() of {path} raised {type(error).__name__} ({said}) for the response {response[:60]!r}; it must "
                "return a number for every response"
            ) from error
        if isinstance(found, bool | int | float | np.integer | np.floating) and math.isfinite(found):
            return float(found)
        raise InputError(
            f"score() of {path} must return a finite number for every response, it returned {found!r} for "
            f"{response[:60]!r}"
        )

    return checked


def scores_of(scorer: Scorer, prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """The scores of responses [P][k] to prompts [P], float64 [P, k]. If there are several processes, each computes a
    share of them. Raises InputError where the scorer does."""

    def each(item: tuple[str, Sequence[str]]) -> list[float]:
        prompt, group = item
        return [scorer(prompt, text) for text in group]

    return np.array(distributed.each(each, list(zip(prompts, texts, strict=True))), np.float64)
