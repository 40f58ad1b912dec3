"""What a run says that it ran on."""

from lenet.fingerprint import fingerprint, headline


def test_a_fingerprint_names_the_stack() -> None:
    stack = fingerprint()

    assert headline(stack).startswith(f"torch {stack['torch']}, Python {stack['python']}, ")
