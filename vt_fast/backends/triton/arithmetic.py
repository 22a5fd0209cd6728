"""Integer arithmetic of sizes."""


def ceil_div(number: int, by: int) -> int:
    """Rounded up."""
    return -(-number // by)


def power_of_two(number: int, least: int = 1) -> int:
    """The next one from ``number`` on, and from ``least``."""
    return max(least, 1 << max(number - 1, 0).bit_length())
