"""Print what the bytes of the image are in which this runs: python3 - < images/table.py."""

import os
from collections import Counter
from pathlib import Path

PACKAGES = Path("/opt/evasion/lib/python3.11/site-packages")
MEGABYTE = 1e6
SHOWN = 10.0  # MB; smaller packages are one row


def owner(path: Path) -> str:
    """Say what a file belongs to."""
    if path.is_relative_to(PACKAGES):
        name = path.relative_to(PACKAGES).parts[0].removesuffix(".libs")
        return f"{name}, compiled" if path.suffix == ".pyc" and name == "tensorflow" else name
    return "Python and Debian's libraries"


def main() -> None:
    """Sum up the files, each counted once however many names it has."""
    sizes: Counter[str] = Counter()
    seen = set()
    for folder, below, files in os.walk("/"):
        below[:] = [name for name in below if str(Path(folder, name)) not in ("/proc", "/sys", "/dev")]
        for name in files:
            path = Path(folder, name)
            found = path.lstat()
            if path.is_symlink() or (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            sizes[owner(path)] += found.st_size
    large = {name: size for name, size in sizes.most_common() if size >= SHOWN * MEGABYTE}
    rows = {**large, f"{len(sizes) - len(large)} smaller packages": sum(sizes.values()) - sum(large.values())}
    print("| what | MB |\n| --- | ---: |")
    for name, size in rows.items():
        print(f"| {name} | {size / MEGABYTE:.0f} |")
    print(f"| all | {sum(sizes.values()) / MEGABYTE:.0f} |")


if __name__ == "__main__":
    main()
