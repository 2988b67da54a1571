"""What a command that refuses its input must look like, for tests."""


def assert_one_sentence(result: tuple[int, str], *words: str) -> None:
    """Exit code 2, and one line on stderr that has all the words."""
    code, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, f"not one line: {stderr}"
    for word in words:
        assert word in stderr, stderr
